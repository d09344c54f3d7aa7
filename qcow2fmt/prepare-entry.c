/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes an L2 table present, and such that it may be changed: a new one, or a
 * copy of one that another root has as well.
 *
 * In an image with disks debt.c does that.  In others there is one root that
 * changes, the active disk.  A table whose L1 entry has COPIED belongs to it
 * alone and is changed in place (in memory).  One without COPIED belongs to a
 * snapshot as well: it is copied, and loses one reference.  The clusters that
 * it names have a reference for each path already, so their refcounts stay.
 *
 * A replay makes the copy again from the old table, and may do so as long as
 * the last checkpoint is older than the copy.  The old table is not changed
 * while a snapshot has it.  If it had no other owner (an image whose COPIED
 * flag was wrong), its refcount becomes 0 but its cluster is kept from reuse
 * until the next open.  If its other owner is guest data (guard.c), the same
 * happens when that is dropped.
 *
 * It has no threads; the image's lock protects it.
 */
#include <errno.h>

#include "checked.h"
#include "image.h"

/* Makes the table of L1 entry TI in cluster C, which is reserved and prepared:
 * a copy of the one at SOURCE_OFF, or an empty one if that is 0. */
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
  int r = qcow2_table_reserve_take_locked (txn, &run);

  if (r < 0)
    return r;
  r = qcow2_prepare_meta_locked (txn, run.host_idx);
  if (r == 0)
    r = attach (txn, ti, run.host_idx, source_off);
  if (r < 0)
    qcow2_table_reserve_put_locked (img, &run);
  return r;
}

/* Returns whether the reference to the table in SOURCE that the disk drops must
 * pass to the anchor.  It must if it is one of two and the other one is not a
 * snapshot's: then that is the disk's, to a table or to data, and would have to
 * get COPIED.  drop.c does the same. */
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
    return -EIO;               /* corrupt: in use, but has refcount 0 */
  /* Its refcount is too low, and those of the clusters that it names may be,
   * too: a write might free data of the table's other owner. */
  if (refcount == 1 && qcow2_guard_is_shared_locked (img, source))
    return -EINVAL;
  pass = passes_to_anchor (img, source, refcount, anchored);
  if (img->unlogged.on)
    r = qcow2_unlogged_reserve_locked (img);
  else if (pass)
    r = qcow2_prepare_host_locked (txn, source, 1);
  if (r == 0)
    r = new_table (txn, ti, source_off);
  if (r < 0)
    return r;
  qcow2_guard_leave_locked (img, source);
  if (img->unlogged.on) {
    qcow2_unlogged_drop_locked (img, &(struct qcow2_run) { source, 1, false });
    return 0;
  }
  if (pass)
    qcow2_pass_to_anchor_locked (txn, &(struct qcow2_run) { source, 1, false },
                                 refcount);
  else
    qcow2_set_refcount_locked (txn, source, refcount - 1,
                               anchored && refcount > 1);
  if (refcount == 1)
    qcow2_alloc_keep_locked (img, source, 1);
  return 0;
}

/* Prepares an entry of the active disk in an image without disks. */
static int
prepare_active (struct qcow2_txn *txn, uint64_t ti, unsigned in_table)
{
  struct qcow2_image *img = txn->img;
  uint64_t off;
  int r;

  if (ti >= img->l1.nr)
    return -EINVAL;
  off = img->l1.v[ti] & QCOW2_OFFSET_MASK;
  if (off == 0)
    return new_table (txn, ti, 0);
  if (img->l1.v[ti] & QCOW2_L2_COPIED) {
    (void) qcow2_cache_get_locked (txn, off, in_table *
                                   img->header.geo.l2_entry_size, &r);
    return r;
  }
  r = qcow2_cache_get_whole_locked (txn, off);
  return r < 0 ? r : copy_table (txn, ti, off);
}

/* Returns how many L1 entries a root has. */
static uint64_t
nr_l1_entries (const struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);

  return s ? s->l1_entries : img->l1.nr;
}

int
qcow2_prepare_entry_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t guest_idx)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t ti = guest_idx / g->l2_entries;
  unsigned in_table = guest_idx % g->l2_entries;

  assert (lock_held (&img->lock));
  if (!qcow2_root_writable_locked (img, root) ||
      guest_idx >= div_round_up (qcow2_root_size_locked (img, root),
                                 g->cluster_size) ||
      ti >= nr_l1_entries (img, root))
    return -EINVAL;
  return qcow2_lends_tables (img) ?
    qcow2_own_table_locked (txn, root, ti, in_table) :
    prepare_active (txn, ti, in_table);
}
