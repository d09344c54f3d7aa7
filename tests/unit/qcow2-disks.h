/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests of lent tables: an image in memory with an active disk and several
 * others, all empty, and the operations of a pool on it, each one group of the
 * log.  Including qcow2-env.h comes with it. */
#ifndef TEST_QCOW2_DISKS_H
#define TEST_QCOW2_DISKS_H

#include "header-format.h"
#include "qcow2-env.h"

/* --- An image with disks ---------------------------------------------------- */

/* Reserves COUNT clusters in a row for tables and gives them refcount 1. */
static UNUSED uint64_t
take_clusters (struct qcow2_image *img, uint64_t count)
{
  uint64_t idx;

  lock_acquire (&img->lock);
  ok (qcow2_reserve_area_locked (img, count, &idx));
  lock_release (&img->lock);
  for (uint64_t i = 0; i < count; ++i)
    set_refcount (img, idx + i, 1, false);
  return idx;
}

/* Adds NR empty disks, as snapshots without our extra data, whose L1 tables are
 * as large as the active one. */
static UNUSED void
add_disks (struct io_store *io, unsigned nr)
{
  struct qcow2_image *img = open_image (io, true);
  const uint64_t size = img->header.geo.cluster_size;
  const uint64_t l1_clusters = div_round_up (img->l1.nr * 8, size);
  struct { struct qcow2_wire_snapshot w; be64 extra[2]; char id[8]; } *v;
  const uint64_t table_clusters = div_round_up (nr * sizeof *v, size);
  const uint64_t l1 = take_clusters (img, nr * l1_clusters);
  const uint64_t table = take_clusters (img, table_clusters);
  be32 nr_wire = be32_make (nr);
  be64 off_wire = be64_make (table * size);

  v = calloc (table_clusters, size);
  assert_non_null (v);
  for (unsigned i = 0; i < nr; ++i) {
    v[i].w.l1_off = be64_make ((l1 + i * l1_clusters) * size);
    v[i].w.l1_entries = be32_make ((uint32_t) img->l1.nr);
    v[i].w.id_len = v[i].w.name_len = be16_make (4);
    v[i].w.extra_len = be32_make (sizeof v[i].extra);
    v[i].extra[1] = be64_make (img->header.geo.virtual_size);
    snprintf (v[i].id, sizeof v[i].id, "%04u", i + 1);
    memcpy (v[i].id + 4, v[i].id, 4);
  }
  writeback (img);
  qcow2_close (img);
  ok (io_pwrite_zeroes (io, l1 * size, nr * l1_clusters * size));
  ok (io_pwrite (io, v, table_clusters * size, table * size));
  ok (io_pwrite (io, &nr_wire, sizeof nr_wire,
                 offsetof (struct qcow2_wire_header, nr_snapshots)));
  ok (io_pwrite (io, &off_wire, sizeof off_wire,
                 offsetof (struct qcow2_wire_header, snapshots_off)));
  free (v);
}

/* Makes the snapshots of an open image writable disks. */
static UNUSED void
begin_disks (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);

  for (size_t i = 0; i < img->snapshots.nr; ++i)
    if (!img->snapshots.v[i].is_anchor) {
      img->snapshots.v[i].is_disk = true;
      img->snapshots.v[i].disk_flags = QCOW2_DISK_WRITABLE;
    }
  qcow2_begin_disks_locked (img);
}

/* Makes an image with roots 0 to NR_DISKS, for MAX_CLUSTERS host clusters. */
static UNUSED void
disks_new (struct env *e, unsigned cluster_bits, uint64_t guest_clusters,
           unsigned nr_disks, uint64_t max_clusters)
{
  struct qcow2_create_params p = {
    .virtual_size = guest_clusters << cluster_bits,
    .cluster_bits = cluster_bits, .refcount_order = 5,
  };
  struct fault f = { 0 };

  memset (e, 0, sizeof *e);
  ok (io_memory_new (0, &e->io));
  if (qcow2_create (e->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  add_disks (e->io, nr_disks);
  adopt (e->io, max_clusters);
  env_open (e);
  begin_disks (e->img);
}

/* --- Looking ------------------------------------------------------------- */

/* Returns an entry of a root's L1 table. */
static UNUSED uint64_t
l1_of (struct qcow2_image *img, unsigned root, uint64_t l1_idx)
{
  struct qcow2_txn txn;
  uint64_t entry;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_l1_entry_locked (&txn, root, l1_idx, &entry)));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return entry;
}

/* --- Operations ------------------------------------------------------------- */

/* A write of one L2 entry.  The references of ENTRY go from clusters FIRST to
 * FIRST + COUNT - 1. */
struct put {
  unsigned root;
  uint64_t guest_idx;
  uint64_t entry;              /* 0: unmap */
  uint64_t first, count;
  bool anchored;               /* what new clusters become */
};

static UNUSED void
change_entry (struct qcow2_txn *txn, uint64_t place, uint64_t entry, bool is_l1)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_ENTRY, .place = place,
                            .count = 1, .entry = entry, .is_l1 = is_l1 };

  ok (qcow2_change_locked (txn, &c));
}

static UNUSED int
put_step (struct qcow2_txn *txn, void *opaque)
{
  const struct put *p = opaque;
  uint64_t old, refcount;
  bool anchored;
  int r;

  if ((r = qcow2_prepare_entry_locked (txn, p->root, p->guest_idx)) < 0 ||
      (r = qcow2_get_entry_locked (txn, p->root, p->guest_idx, &old)) < 0 ||
      (r = qcow2_prepare_host_locked (txn, p->first, p->count)) < 0 ||
      (r = qcow2_prepare_drop_locked (txn, old, 1)) < 0)
    return r;
  for (uint64_t i = p->first; i < p->first + p->count; ++i) {
    ok (qcow2_get_refcount_locked (txn, i, &refcount, &anchored));
    if (refcount == 0)
      change_refcount (txn, i, 1 + p->anchored, p->anchored);
    else
      change_refcount (txn, i, refcount + 1, anchored);
  }
  change_entry (txn, qcow2_entry_place_locked (txn, p->root, p->guest_idx),
                p->entry, false);
  ok (qcow2_drop_locked (txn, old, 1, true));
  return 0;
}

static UNUSED int
put (struct qcow2_image *img, struct put p)
{
  return qcow2_txn_run (img, put_step, &p);
}

struct lend {
  unsigned from, to;
  uint64_t l1_entries;
};

static UNUSED int
lend_step (struct qcow2_txn *txn, void *opaque)
{
  const struct lend *l = opaque;
  const unsigned bits = txn->img->header.geo.cluster_bits;
  uint64_t entry, v;
  bool anchored;
  int r;

  for (int change = 0; change <= 1; ++change)
    for (uint64_t i = 0; i < l->l1_entries; ++i) {
      if ((r = qcow2_l1_entry_locked (txn, l->to, i, &v)) < 0 ||
          (r = qcow2_l1_entry_locked (txn, l->from, i, &entry)) < 0)
        return r;
      assert_int_equal (v, 0);
      entry &= QCOW2_OFFSET_MASK;
      if (entry == 0)
        continue;
      r = qcow2_get_refcount_locked (txn, entry >> bits, &v, &anchored);
      if (r < 0)
        return r;
      if (!change)
        continue;
      change_refcount (txn, entry >> bits, v + QCOW2_ONE_LENT, false);
      change_entry (txn, qcow2_l1_place_locked (txn->img, l->to, i), entry,
                    true);
      change_entry (txn, qcow2_l1_place_locked (txn->img, l->from, i), entry,
                    true);
    }
  return 0;
}

/* Makes the empty disk TO a clone of FROM. */
static UNUSED void
lend (struct qcow2_image *img, unsigned from, unsigned to)
{
  struct lend l = { from, to, img->l1.nr };

  ok (qcow2_txn_run (img, lend_step, &l));
}

struct table_step {
  int (*step_locked) (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx);
  unsigned root;
  uint64_t l1_idx;
};

static UNUSED int
table_step (struct qcow2_txn *txn, void *opaque)
{
  const struct table_step *s = opaque;

  return s->step_locked (txn, s->root, s->l1_idx);
}

static UNUSED int
pay (struct qcow2_image *img, unsigned root, uint64_t l1_idx)
{
  struct table_step s = { qcow2_pay_table_locked, root, l1_idx };

  return qcow2_txn_run (img, table_step, &s);
}

static UNUSED int
drop_path (struct qcow2_image *img, unsigned root, uint64_t l1_idx)
{
  struct table_step s = { qcow2_drop_path_locked, root, l1_idx };

  return qcow2_txn_run (img, table_step, &s);
}

#endif
