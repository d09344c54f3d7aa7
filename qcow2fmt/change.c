/* SPDX-License-Identifier: BSD-3-Clause */
/* Applies changes (after-images) to the tables in memory.
 *
 * Each change is first checked against this image (-EINVAL, because a journal
 * may be corrupt), then everything it needs is pinned (-EAGAIN), then it is
 * made; so it is made as a whole or not at all.  Applying it twice has the
 * same effect as once: REFBLOCK, L2_TABLE and ANCHOR_TABLE rebuild their table
 * whatever the file holds at that place, and the records that follow fill it
 * again.
 *
 * The copy of a shared L2 table is the only change that depends on anything but
 * itself: on the old table.  prepare-entry.c and disks.c keep that from being
 * reused.
 *
 * It has no threads; the image's lock protects it.  Only qcow2_change_locked
 * reports a change to the log.
 */
#include <errno.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

/* Bits of a standard L2 entry that must be 0. */
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

/* Returns whether a table or data may be at HOST_OFF: it is aligned, not the
 * header, and covered by the refcount table. */
static bool
host_off_ok (const struct qcow2_image *img, uint64_t host_off)
{
  const struct qcow2_geometry *geo = &img->header.geo;

  return host_off != 0 && host_off % geo->cluster_size == 0 &&
    host_off < QCOW2_MAX_HOST_OFF &&
    host_off >> geo->cluster_bits < qcow2_refcount_coverage (img);
}

/* Returns how many of LEFT entries from IDX on lie in one slice, of PER
 * entries; or, where T is NULL, in one missing table, of WHOLE entries. */
static uint64_t
at_once (uint64_t idx, uint64_t left, const struct qcow2_slice *t, uint64_t per,
         uint64_t whole)
{
  if (!t)
    per = whole;
  return MIN_OF (left, per - idx % per);
}

/* --- L2 ----------------------------------------------------------------- */

/* Returns whether the clusters of a compressed entry are none of them the header,
 * and covered by the refcount table. */
static bool
compressed_ok (const struct qcow2_image *img, uint64_t entry)
{
  uint64_t first, count;

  qcow2_entry_clusters (img, entry, &first, &count);
  return !(entry & QCOW2_L2_COPIED) && first != 0 &&
    first + count <= qcow2_refcount_coverage (img);
}

static bool
entry_ok (const struct qcow2_image *img, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return !qcow2_has_data_file (&img->header.geo) && compressed_ok (img, entry);
  if (entry & L2_RESERVED)
    return false;
  if (qcow2_has_data_file (&img->header.geo))
    return (entry & QCOW2_OFFSET_MASK) % img->header.geo.cluster_size == 0;
  if ((entry & QCOW2_OFFSET_MASK) == 0)
    return !(entry & QCOW2_L2_COPIED);
  return host_off_ok (img, entry & QCOW2_OFFSET_MASK);
}

/* Finds the L2 table of L1 entry TI of a root, 0 if there is none.  Returns
 * -EINVAL if the table is shared, and so had to be copied first.
 *
 * A replay may meet records of L2 changes in an image with disks: those from
 * just before the first disk, when no table was lent.  L1 entries and refcounts
 * may be later ones, from an interrupted checkpoint, and say nothing about that
 * time. */
static int
table_to_change (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                 uint64_t *off)
{
  const struct qcow2_image *img = txn->img;
  const bool lends = qcow2_lends_tables (img);
  uint64_t e;

  if (lends && !img->replaying)
    return qcow2_owned_table_locked (txn, root, ti, off);
  e = img->l1.v[ti];
  *off = e & QCOW2_OFFSET_MASK;
  return *off != 0 && !(e & QCOW2_L2_COPIED) && !lends ? -EINVAL : 0;
}

/* Gets the slice of an L2 table with the entry of GUEST_IDX, to be changed.
 * *T is NULL if there is no table.  Returns -EINVAL if the table is shared. */
static int
get_l2 (struct qcow2_txn *txn, unsigned root, uint64_t guest_idx,
        struct qcow2_slice **t)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t off;
  int r = table_to_change (txn, root, guest_idx / g->l2_entries, &off);

  *t = NULL;
  if (r < 0 || off == 0)
    return r;
  *t = qcow2_cache_get_locked (txn, off, guest_idx % g->l2_entries *
                               g->l2_entry_size, &r);
  return r;
}

/* Returns whether a root may be changed up to cluster END. */
static bool
root_ok (struct qcow2_image *img, unsigned root, uint64_t end)
{
  const struct qcow2_geometry *g = &img->header.geo;
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);
  uint64_t nr_l1 = s ? s->l1_entries : img->l1.nr;

  if (root != QCOW2_ROOT_ACTIVE &&
      !(qcow2_lends_tables (img) && !img->replaying && s && s->is_disk))
    return false;
  return end <= div_round_up (qcow2_root_size_locked (img, root),
                              g->cluster_size) &&
    (end - 1) / g->l2_entries < nr_l1;
}

/* Checks that the change can be made, and pins all slices.  *FIRST becomes the
 * slice of the first entry. */
static int
check_l2 (struct qcow2_txn *txn, const struct qcow2_change *c,
          struct qcow2_slice **first)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t end, idx = c->guest_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r;

  if (c->count == 0 || !add_u64 (c->guest_idx, c->count, &end) ||
      !root_ok (img, c->root, end) || !entry_ok (img, c->entry))
    return -EINVAL;
  for (; left > 0; idx += n, left -= n) {
    r = get_l2 (txn, c->root, idx, &t);
    if (idx == c->guest_idx)
      *first = t;
    if (r == 0 && !t && c->entry != 0)
      r = -EINVAL;
    if (r < 0)
      return r;
    n = at_once (idx, left, t, qcow2_l2_slice (g), g->l2_entries);
  }
  return 0;
}

static void
fill_l2 (struct qcow2_image *img, struct qcow2_slice *t, uint64_t i,
         uint64_t n, uint64_t entry)
{
  for (; n > 0; ++i, --n)
    qcow2_l2_store (&img->header.geo, t->data, i, entry);
  qcow2_cache_dirty_locked (img, t);
}

static int
apply_l2 (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t per = qcow2_l2_slice (g);
  uint64_t idx = c->guest_idx, left = c->count, n;
  struct qcow2_slice *t = NULL;
  int r = check_l2 (txn, c, &t);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    if (idx != c->guest_idx)
      r = get_l2 (txn, c->root, idx, &t);
    assert (r == 0);           /* pinned by check_l2 */
    n = at_once (idx, left, t, per, g->l2_entries);
    if (t)
      fill_l2 (txn->img, t, idx % per, n, c->entry);
  }
  return 0;
}

/* --- REFCOUNT ------------------------------------------------------------- */

static int
check_refcount_range (const struct qcow2_image *img,
                      const struct qcow2_change *c)
{
  uint64_t end, last_part;

  if (c->host_idx == 0 || c->count == 0 ||
      !add_u64 (c->host_idx, c->count, &end) ||
      end > qcow2_refcount_coverage (img) ||
      end > QCOW2_MAX_HOST_OFF >> img->header.geo.cluster_bits ||
      c->refcount > img->header.geo.refcount_max ||
      (c->anchored && c->refcount == 0))
    return -EINVAL;
  last_part = qcow2_anchor_part_of (img, end - 1);
  for (uint64_t p = qcow2_anchor_part_of (img, c->host_idx);
       c->anchored && p <= last_part; ++p)
    if (!qcow2_anchor_has_part (img, p))
      return -EINVAL;
  return 0;
}

static int
check_refcount (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t idx = c->host_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r = check_refcount_range (txn->img, c);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    r = qcow2_refblock_locked (txn, idx, &t);
    if (r == 0 && !t && c->refcount != 0)
      r = -EINVAL;
    if (r < 0)
      return r;
    n = at_once (idx, left, t, qcow2_refcount_slice (g), g->refblock_entries);
  }
  return qcow2_anchor_need_range_locked (txn, c->host_idx, c->count);
}

void
qcow2_refblock_change_locked (struct qcow2_image *img, struct qcow2_slice *t,
                              uint64_t host_idx, uint64_t count,
                              uint64_t refcount, bool anchored)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t first = host_idx % qcow2_refcount_slice (geo);

  for (uint64_t i = 0; i < count; ++i)
    qcow2_refcount_put (geo->refcount_bits, t->data, first + i, refcount);
  t->is_refblock = true;
  qcow2_cache_dirty_locked (img, t);
  qcow2_anchor_put_locked (img, host_idx, count, anchored);
  qcow2_bitset_clear (img->alloc.garbage, host_idx, count);
  if (refcount == 0)
    qcow2_expanded_forget (img, host_idx, count);
  if (refcount > 0)
    qcow2_alloc_used_locked (img, host_idx, count);
  else if (img->replaying || !qcow2_lends_tables (img) ||
           mutation (MUTATION_LAW_13_FORGOTTEN))
    qcow2_cache_forget_locked (img, host_idx, count);
  /* Else it may be the source of a copy that is not in the file yet, and what is
   * in memory of it still has to be written: disks.c forgets it. */
}

static int
apply_refcount (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t per = qcow2_refcount_slice (g);
  uint64_t idx = c->host_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r = check_refcount (txn, c);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    r = qcow2_refblock_locked (txn, idx, &t);
    assert (r == 0);           /* pinned by check_refcount */
    n = at_once (idx, left, t, per, g->refblock_entries);
    if (t)
      qcow2_refblock_change_locked (txn->img, t, idx, n, c->refcount,
                                    c->anchored);
  }
  return txn->img->replaying ?
    qcow2_replay_refcount_locked (txn->img, c->host_idx, c->count,
                                  c->refcount == 0) : 0;
}

/* --- Tables ------------------------------------------------------------- */

/* Returns whether entry I may name a table at HOST_OFF.  It may not while it
 * names another one, whose contents would be lost. */
static bool
may_become (const struct qcow2_flat *f, uint64_t i, uint64_t host_off)
{
  uint64_t old;

  if (i >= f->nr)
    return false;
  old = f->v[i] & QCOW2_OFFSET_MASK;
  return old == 0 || old == host_off;
}

/* Notes that the cluster at HOST_OFF is a table from now on. */
static void
now_table (struct qcow2_image *img, uint64_t host_off)
{
  uint64_t idx = host_off >> img->header.geo.cluster_bits;

  qcow2_alloc_used_locked (img, idx, 1);
  qcow2_guard_put_locked (img, idx, 1, true);
}

static int
apply_l2_table (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (c->root != QCOW2_ROOT_ACTIVE || !host_off_ok (img, c->host_off) ||
      c->source_off == c->host_off ||
      (!may_become (&img->l1, c->table_idx, c->host_off) &&
       !may_become (&img->l1, c->table_idx, c->source_off)))
    return -EINVAL;
  if (c->source_off != 0 && !host_off_ok (img, c->source_off))
    return -EINVAL;
  r = qcow2_cache_create_locked (txn, c->host_off, c->source_off, false);
  if (r < 0)
    return r;
  qcow2_flat_set (&img->l1, c->table_idx, c->host_off | QCOW2_L2_COPIED);
  now_table (img, c->host_off);
  return 0;
}

static int
apply_refblock (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (!host_off_ok (img, c->host_off) ||
      !may_become (&img->reftable, c->table_idx, c->host_off))
    return -EINVAL;
  r = qcow2_cache_create_locked (txn, c->host_off, 0, true);
  if (r < 0)
    return r;
  qcow2_flat_set (&img->reftable, c->table_idx, c->host_off);
  now_table (img, c->host_off);
  return 0;
}

static int
apply_anchor_table (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (!host_off_ok (img, c->host_off) ||
      !may_become (&img->anchor.l1, c->table_idx, c->host_off))
    return -EINVAL;
  r = qcow2_anchor_create_locked (img, c->table_idx, c->host_off);
  if (r < 0)
    return r;
  now_table (img, c->host_off);
  return 0;
}

/* --- ENTRY, TABLE --------------------------------------------------------- */

static unsigned
entry_size (const struct qcow2_image *img, const struct qcow2_change *c)
{
  return c->is_l1 ? sizeof (be64) : img->header.geo.l2_entry_size;
}

/* Returns whether the entries lie in one cluster where a table may be. */
static bool
place_ok (const struct qcow2_image *img, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t within = c->place % g->cluster_size;

  return c->count > 0 && c->place % entry_size (img, c) == 0 &&
    host_off_ok (img, c->place - within) &&
    c->count <= (g->cluster_size - within) / entry_size (img, c) &&
    (c->is_l1 || entry_ok (img, c->entry));
}

/* Returns whether the entries lie in the L1 table of the active disk, which is
 * whole in memory.  *IDX becomes the first one's index. */
static bool
in_active_l1 (const struct qcow2_image *img, const struct qcow2_change *c,
              uint64_t *idx)
{
  *idx = (c->place - img->l1.host_off) / sizeof (be64);
  return c->is_l1 && c->place >= img->l1.host_off && *idx < img->l1.nr;
}

static int
apply_active_l1 (struct qcow2_image *img, const struct qcow2_change *c,
                 uint64_t idx)
{
  if (c->count > img->l1.nr - idx)
    return -EINVAL;
  for (uint64_t i = 0; i < c->count; ++i)
    qcow2_flat_set (&img->l1, idx + i, c->entry);
  qcow2_note_active_l1_locked (img, c->entry);
  return 0;
}

/* Calls qcow2_cache_get_locked for the slice that has the entry at PLACE. */
static int
get_slice (struct qcow2_txn *txn, uint64_t place, struct qcow2_slice **t)
{
  uint64_t within = place % txn->img->header.geo.cluster_size;
  int r = 0;

  *t = qcow2_cache_get_locked (txn, place - within, within, &r);
  return r;
}

static void
store_entry (struct qcow2_image *img, const struct qcow2_change *c,
             uint64_t place, struct qcow2_slice *t)
{
  uint64_t within = place % qcow2_slice_size (&img->header.geo);
  be64 wire = be64_make (c->entry);

  if (c->is_l1)
    memcpy (t->data + within, &wire, sizeof wire);
  else
    qcow2_l2_store (&img->header.geo, t->data, within / entry_size (img, c),
                    c->entry);
  qcow2_cache_dirty_locked (img, t);
}

static int
apply_entry (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  const unsigned size = entry_size (img, c);
  struct qcow2_slice *t;
  uint64_t idx;
  int r = 0;

  if (!place_ok (img, c))
    return -EINVAL;
  if (in_active_l1 (img, c, &idx))
    return apply_active_l1 (img, c, idx);
  for (uint64_t i = 0; i < c->count && r == 0; ++i)
    r = get_slice (txn, c->place + i * size, &t);
  for (uint64_t i = 0; i < c->count && r == 0; ++i) {
    r = get_slice (txn, c->place + i * size, &t);
    assert (r == 0);           /* pinned above */
    store_entry (img, c, c->place + i * size, t);
  }
  return r;
}

static int
apply_table (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (!host_off_ok (img, c->host_off) || c->source_off == c->host_off ||
      (c->source_off != 0 && !host_off_ok (img, c->source_off)))
    return -EINVAL;
  r = qcow2_cache_create_locked (txn, c->host_off, c->source_off, false);
  if (r < 0)
    return r;
  now_table (img, c->host_off);
  return img->replaying && c->source_off != 0 ?
    qcow2_note_source_locked (img, c->source_off >>
                              img->header.geo.cluster_bits) : 0;
}

/* --- HEADER ------------------------------------------------------------- */

static bool
aligned_or_zero (const struct qcow2_image *img, uint64_t off)
{
  return off % img->header.geo.cluster_size == 0 && off < QCOW2_MAX_HOST_OFF;
}

/* Returns whether a HEADER change may be applied: tables only grow, within
 * QEMU's limits, and all places are aligned. */
static bool
header_ok (const struct qcow2_image *img,
           const struct qcow2_header_fields *h)
{
  uint64_t bytes;

  if (!mul_u64 (h->reftable_clusters, img->header.geo.cluster_size, &bytes) ||
      bytes > QCOW2_MAX_REFTABLE_BYTES || bytes / 8 < img->reftable.nr)
    return false;
  if (h->anchor_l1_entries > QCOW2_MAX_L1_BYTES / 8 ||
      h->anchor_l1_entries < img->anchor.l1.nr)
    return false;
  return h->reftable_off != 0 && aligned_or_zero (img, h->reftable_off) &&
    aligned_or_zero (img, h->snapshots_off) &&
    aligned_or_zero (img, h->anchor_l1_off) &&
    (h->nr_snapshots == 0) == (h->snapshots_off == 0) &&
    (h->anchor_l1_entries == 0) == (h->anchor_l1_off == 0) &&
    h->nr_snapshots <= QCOW2_MAX_SNAPSHOTS;
}

/* Makes in *OUT a copy of T for another place or size.  *OUT is empty if T has
 * that place and size already. */
static int
moved (const struct qcow2_flat *t, uint64_t host_off, uint64_t nr,
       struct qcow2_flat *out)
{
  memset (out, 0, sizeof *out);
  if (t->host_off == host_off && t->nr == nr)
    return 0;
  return qcow2_flat_copy (t, host_off, nr, out);
}

/* Replaces T by BY, unless that is empty. */
static void
replace (struct qcow2_flat *t, const struct qcow2_flat *by)
{
  if (!by->v)
    return;
  qcow2_flat_free (t);
  *t = *by;
}

/* Compares the fields that the header itself holds; the others are in the
 * snapshot table. */
static bool
same_in_file (const struct qcow2_header_fields *a,
              const struct qcow2_header_fields *b)
{
  return a->reftable_off == b->reftable_off &&
    a->reftable_clusters == b->reftable_clusters &&
    a->nr_snapshots == b->nr_snapshots &&
    a->snapshots_off == b->snapshots_off;
}

static void
set_fields (struct qcow2_image *img, const struct qcow2_header_fields *h)
{
  const struct qcow2_header_fields old = img->fields;
  const bool first = !img->header_dirty;

  if (!same_in_file (&img->fields, h))
    img->header_dirty = true;
  img->fields = *h;
  if (mutation (MUTATION_FIRST_TABLE) && img->replaying && !first) {
    img->fields.snapshots_off = old.snapshots_off;
    img->fields.nr_snapshots = old.nr_snapshots;
  }
}

static int
apply_header (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_header_fields *h = &c->header;
  struct qcow2_flat reftable, l1;
  int r;

  if (!header_ok (img, h))
    return -EINVAL;
  r = qcow2_anchor_resize (img, h->anchor_l1_entries);
  if (r < 0)
    return r;
  r = moved (&img->reftable, h->reftable_off, (uint64_t)
             h->reftable_clusters * img->header.geo.cluster_size / 8,
             &reftable);
  if (r < 0)
    return r;
  r = moved (&img->anchor.l1, h->anchor_l1_off, h->anchor_l1_entries, &l1);
  if (r < 0) {
    qcow2_flat_free (&reftable);
    return r;
  }
  replace (&img->reftable, &reftable);
  replace (&img->anchor.l1, &l1);
  set_fields (img, h);
  qcow2_alloc_set_bound_locked (img);
  return 0;
}

int
qcow2_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  assert (lock_held (&txn->img->lock));
  switch (c->type) {
  case QCOW2_CHANGE_L2:
    return apply_l2 (txn, c);
  case QCOW2_CHANGE_REFCOUNT:
    return apply_refcount (txn, c);
  case QCOW2_CHANGE_L2_TABLE:
    return apply_l2_table (txn, c);
  case QCOW2_CHANGE_REFBLOCK:
    return apply_refblock (txn, c);
  case QCOW2_CHANGE_ANCHOR_TABLE:
    return apply_anchor_table (txn, c);
  case QCOW2_CHANGE_HEADER:
    return apply_header (txn, c);
  case QCOW2_CHANGE_BITMAP:
    return host_off_ok (txn->img, c->host_off) ?
      qcow2_bitmap_apply_locked (txn, c) : -EINVAL;
  case QCOW2_CHANGE_ENTRY:
    return apply_entry (txn, c);
  case QCOW2_CHANGE_TABLE:
    return apply_table (txn, c);
  }
  return -EINVAL;
}

int
qcow2_change_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  int r = qcow2_apply_locked (txn, c);

  if (r == 0)
    qcow2_report_locked (txn->img, c);
  return r;
}

void
qcow2_set_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           uint64_t refcount, bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .count = 1,
    .refcount = refcount, .anchored = anchored,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);
  (void) r;
}

void
qcow2_pass_to_anchor_locked (struct qcow2_txn *txn,
                             const struct qcow2_run *run, uint64_t refcount)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = run->host_idx,
    .count = (uint32_t) run->count, .refcount = refcount, .anchored = true,
    .taken_over = true,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);
  (void) r;
}

void
qcow2_set_log (struct qcow2_image *img, const struct qcow2_log *log)
{
  img->log = *log;
}
