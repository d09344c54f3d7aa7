/* SPDX-License-Identifier: BSD-3-Clause */
/* L2 entries, and making L2 tables that may be changed.
 *
 * The active L1 is whole in memory.  A snapshot's L1 is read through the table
 * cache, because it is asked for rarely and may be big.
 *
 * An L2 table whose L1 entry has COPIED belongs to the active root alone and
 * is changed in place (in memory).  One without is a snapshot's as well: it
 * is copied, and loses one reference; the clusters it points to have a
 * reference for each path already, so theirs stay.
 *
 * Replay makes the copy again from the old table, and may do so as long as the
 * last checkpoint lies before the copy.  The old table stays as it is while a
 * snapshot has it.  If it had no other owner (an image whose COPIED flag was
 * wrong), its refcount becomes 0 but its cluster is kept from reuse until the
 * next open; so it is if its other owner is guest data (guard.c), when that is
 * dropped.
 *
 * Protected by the image's lock.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

static uint64_t
load_u64 (const uint8_t *p)
{
  be64 wire;

  memcpy (&wire, p, sizeof wire);
  return be64_load (wire);
}

static void
store_u64 (uint8_t *p, uint64_t v)
{
  be64 wire = be64_make (v);

  memcpy (p, &wire, sizeof wire);
}

/* Bit 0, the zero flag of standard entries, is reserved in extended ones, and
 * nothing can be allocated and read as zero. */
static bool
extended_ok (const struct qcow2_geometry *g, uint64_t entry, uint64_t bitmap)
{
  return !(entry & QCOW2_L2_ZERO) && !(bitmap >> 32 & bitmap) &&
    (qcow2_has_place (g, entry) || !(bitmap & QCOW2_BITMAP_ALLOCATED));
}

uint64_t
qcow2_l2_load (const struct qcow2_geometry *g, const uint8_t *table,
               uint64_t i, uint64_t *bitmap)
{
  const uint8_t *p = table + i * g->l2_entry_size;
  uint64_t entry = load_u64 (p);

  *bitmap = 0;
  if (!qcow2_extended_l2 (g))
    return entry;
  *bitmap = load_u64 (p + sizeof (be64));
  if (entry & QCOW2_L2_COMPRESSED)
    return entry;
  if (!extended_ok (g, entry, *bitmap))
    return entry | QCOW2_L2_INVALID;
  if (*bitmap == QCOW2_BITMAP_ZERO)
    return entry | QCOW2_L2_ZERO;
  if (*bitmap == (qcow2_has_place (g, entry) ? QCOW2_BITMAP_ALLOCATED : 0))
    return entry;
  return entry | QCOW2_L2_PARTIAL;
}

void
qcow2_l2_store (const struct qcow2_geometry *g, uint8_t *table, uint64_t i,
                uint64_t entry)
{
  uint8_t *p = table + i * g->l2_entry_size;
  uint64_t bitmap = 0;

  if (!qcow2_extended_l2 (g)) {
    store_u64 (p, entry);
    return;
  }
  if (entry & QCOW2_L2_COMPRESSED)
    bitmap = 0;
  else if (entry & QCOW2_L2_ZERO)
    bitmap = QCOW2_BITMAP_ZERO;
  else if (qcow2_has_place (g, entry))
    bitmap = QCOW2_BITMAP_ALLOCATED;
  store_u64 (p, entry & QCOW2_L2_COMPRESSED ? entry : entry & ~QCOW2_L2_ZERO);
  store_u64 (p + sizeof (be64), bitmap);
}

static int
snapshot_l1_entry (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                   uint64_t *entry)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_snapshot *s;
  const struct qcow2_geometry *g = &img->header.geo;
  const struct qcow2_slice *t;
  uint64_t at = ti * sizeof (be64);
  int r;

  if (root > img->snapshots.nr || img->snapshots.v[root - 1].is_anchor)
    return -EINVAL;            /* the anchor's tables change in memory */
  s = &img->snapshots.v[root - 1];
  *entry = 0;
  if (ti >= s->l1_entries)
    return 0;
  /* l1_off is below 2^56, the rest below 2^25 (qcow2-limits.h). */
  t = qcow2_cache_get_locked (txn, s->l1_off + at / g->cluster_size *
                              g->cluster_size, at % g->cluster_size, &r);
  if (t)
    *entry = load_u64 (t->data + at % qcow2_slice_size (g));
  return r;
}

static int
l1_entry (struct qcow2_txn *txn, unsigned root, uint64_t ti, uint64_t *entry)
{
  struct qcow2_image *img = txn->img;

  if (root != QCOW2_ROOT_ACTIVE)
    return snapshot_l1_entry (txn, root, ti, entry);
  *entry = ti < img->l1.nr ? img->l1.v[ti] : 0;
  return 0;
}

/* How many of NR entries from I on name data clusters, one behind the other in
 * the host file; ENTRY is that at I. */
static uint64_t
length_of_run (const struct qcow2_geometry *g, const uint8_t *table, uint64_t i,
               uint64_t nr, uint64_t entry)
{
  const uint8_t *p = table + i * g->l2_entry_size;
  uint64_t n = 1;

  if (qcow2_extended_l2 (g) || !qcow2_has_place (g, entry) ||
      entry & (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO))
    return 1;
  while (n < nr && load_u64 (p + n * sizeof (be64)) ==
         entry + n * g->cluster_size)
    n++;
  return n;
}

int
qcow2_get_l2_locked (struct qcow2_txn *txn, unsigned root, uint64_t guest_idx,
                     uint64_t *entry, uint64_t *bitmap, uint64_t *nr)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  const uint64_t ti = guest_idx / g->l2_entries, i = guest_idx % g->l2_entries;
  const uint64_t in_slice = i % qcow2_l2_slice (g);
  const uint64_t max = MIN_OF (*nr, qcow2_l2_slice (g) - in_slice);
  const struct qcow2_slice *t;
  uint64_t l1e;
  int r;

  assert (lock_held (&txn->img->lock));
  *nr = 1;
  r = l1_entry (txn, root, ti, &l1e);
  if (r < 0)
    return r;
  *entry = *bitmap = 0;
  if ((l1e & QCOW2_OFFSET_MASK) == 0)
    return 0;
  t = qcow2_cache_get_locked (txn, l1e & QCOW2_OFFSET_MASK,
                              i * g->l2_entry_size, &r);
  if (t) {
    *entry = qcow2_l2_load (g, t->data, in_slice, bitmap);
    *nr = length_of_run (g, t->data, in_slice, max, *entry);
  }
  return r;
}

int
qcow2_get_entry_locked (struct qcow2_txn *txn, unsigned root,
                        uint64_t guest_idx, uint64_t *entry)
{
  uint64_t bitmap, nr = 1;

  return qcow2_get_l2_locked (txn, root, guest_idx, entry, &bitmap, &nr);
}

/* L1[TI] gets a table in cluster C, which is reserved and prepared. */
static int
attach (struct qcow2_txn *txn, uint64_t ti, uint64_t c, uint64_t source_off)
{
  struct qcow2_change change = {
    .type = QCOW2_CHANGE_L2_TABLE, .root = QCOW2_ROOT_ACTIVE,
    .table_idx = ti, .source_off = source_off,
    .host_off = c << txn->img->header.geo.cluster_bits,
  };
  int r = qcow2_change_locked (txn, &change);

  if (r == 0)
    qcow2_set_refcount_locked (txn, c, 1, false);
  return r;
}

static int
new_table (struct qcow2_txn *txn, uint64_t ti, uint64_t source_off)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_run run;
  int r = qcow2_pool_take_locked (txn, &run);

  if (r < 0)
    return r;
  r = qcow2_prepare_meta_locked (txn, run.host_idx);
  if (r == 0)
    r = attach (txn, ti, run.host_idx, source_off);
  if (r < 0)
    qcow2_pool_put_locked (img, &run);
  return r;
}

/* The disk gives up one of two references to the table in SOURCE.  If the other
 * one is no snapshot's, it is the disk's, as a table or as data, and would have to
 * get COPIED: as in drop.c, the reference passes to the anchor. */
static bool
passes_to_anchor (struct qcow2_image *img, uint64_t source, uint64_t refcount,
                  bool anchored)
{
  return refcount == 2 && !anchored && img->anchor.l1.nr > 0 &&
    !qcow2_guard_has_snapshot_locked (img, source);
}

static int
copy_table (struct qcow2_txn *txn, uint64_t ti, uint64_t source_off)
{
  struct qcow2_image *img = txn->img;
  uint64_t source = source_off >> img->header.geo.cluster_bits, refcount;
  bool anchored, pass;
  int r;

  r = qcow2_get_refcount_locked (txn, source, &refcount, &anchored);
  if (r < 0)
    return r;
  if (refcount == 0)
    return -EIO;               /* corrupt: in use, and counted as free */
  /* Counted too low, and so may be what it names: a write might free data of
   * whoever has the table as well. */
  if (refcount == 1 && qcow2_guard_is_shared_locked (img, source))
    return -EINVAL;
  pass = passes_to_anchor (img, source, refcount, anchored);
  if (img->direct.on)
    r = qcow2_direct_reserve_locked (img);
  else if (pass)
    r = qcow2_prepare_host_locked (txn, source, 1);
  if (r == 0)
    r = new_table (txn, ti, source_off);
  if (r < 0)
    return r;
  qcow2_guard_leave_locked (img, source);
  if (img->direct.on) {
    qcow2_direct_drop_locked (img, &(struct qcow2_run) { source, 1, false });
    return 0;
  }
  if (pass)
    qcow2_set_refcount_locked (txn, source, refcount, true);
  else
    qcow2_set_refcount_locked (txn, source, refcount - 1,
                               anchored && refcount > 1);
  if (refcount == 1)
    qcow2_alloc_keep_locked (img, source, 1);
  return 0;
}

int
qcow2_prepare_entry_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t guest_idx)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t ti = guest_idx / g->l2_entries, off;
  int r;

  assert (lock_held (&img->lock));
  if (root != QCOW2_ROOT_ACTIVE || ti >= img->l1.nr ||
      guest_idx >= img->header.geo.nr_clusters)
    return -EINVAL;
  off = img->l1.v[ti] & QCOW2_OFFSET_MASK;
  if (off == 0)
    return new_table (txn, ti, 0);
  if (img->l1.v[ti] & QCOW2_L2_COPIED) {
    (void) qcow2_cache_get_locked (txn, off, guest_idx % g->l2_entries *
                                   g->l2_entry_size, &r);
    return r;
  }
  r = qcow2_cache_get_whole_locked (txn, off);
  return r < 0 ? r : copy_table (txn, ti, off);
}
