/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads L1 and L2 entries, of the active disk, of snapshots and of disks.
 *
 * The active L1 table is whole in memory.  The L1 table of a snapshot or disk
 * is read through the table cache, because it is needed rarely and may be
 * large.  A table that is not in memory is -EAGAIN, as everywhere in a
 * transaction.
 *
 * It has no threads; the image's lock protects it.  Whether an entry makes
 * sense is left to map.c, and changing it to change.c.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

uint64_t
qcow2_l1_place_locked (const struct qcow2_image *img, unsigned root,
                       uint64_t ti)
{
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);

  assert (root == QCOW2_ROOT_ACTIVE || s);
  /* l1_off is below 2^56, the rest below 2^25 (qcow2-limits.h). */
  return (s ? s->l1_off : img->l1.host_off) + ti * sizeof (be64);
}

static int
slot_l1_entry (struct qcow2_txn *txn, unsigned root, uint64_t ti,
               uint64_t *entry)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);
  const struct qcow2_geometry *g = &img->header.geo;
  const struct qcow2_slice *t;
  uint64_t place;
  int r;

  if (!s || s->is_anchor)
    return -EINVAL;            /* the anchor's tables change in memory */
  *entry = 0;
  if (ti >= s->l1_entries)
    return 0;
  place = qcow2_l1_place_locked (img, root, ti);
  t = qcow2_cache_get_locked (txn, round_down_pow2 (place, g->cluster_size),
                              place % g->cluster_size, &r);
  if (t)
    *entry = be64_load (*(const be64 *)
                        (t->data + place % qcow2_slice_size (g)));
  return r;
}

int
qcow2_l1_entry_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                       uint64_t *entry)
{
  struct qcow2_image *img = txn->img;

  if (root != QCOW2_ROOT_ACTIVE)
    return slot_l1_entry (txn, root, ti, entry);
  *entry = ti < img->l1.nr ? img->l1.v[ti] : 0;
  return 0;
}

int
qcow2_owned_table_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                          uint64_t *table_off)
{
  struct qcow2_image *img = txn->img;
  uint64_t entry = 0, idx, v;
  bool anchored;
  int r = qcow2_l1_entry_locked (txn, root, ti, &entry);

  *table_off = entry & QCOW2_OFFSET_MASK;
  if (r < 0 || *table_off == 0)
    return r;
  idx = *table_off >> img->header.geo.cluster_bits;
  r = qcow2_get_refcount_locked (txn, idx, &v, &anchored);
  return r < 0 ? r : qcow2_is_exclusive_locked (img, idx, v) ? 0 : -EINVAL;
}

uint64_t
qcow2_entry_place_locked (struct qcow2_txn *txn, unsigned root,
                          uint64_t guest_idx)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t e = 0;
  int r = qcow2_l1_entry_locked (txn, root, guest_idx / g->l2_entries, &e);

  assert (r == 0 && (e & QCOW2_OFFSET_MASK) != 0);    /* prepared */
  (void) r;
  return (e & QCOW2_OFFSET_MASK) +
    guest_idx % g->l2_entries * g->l2_entry_size;
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
  r = qcow2_l1_entry_locked (txn, root, ti, &l1e);
  if (r < 0)
    return r;
  *entry = *bitmap = 0;
  if ((l1e & QCOW2_OFFSET_MASK) == 0)
    return 0;
  t = qcow2_cache_get_locked (txn, l1e & QCOW2_OFFSET_MASK,
                              i * g->l2_entry_size, &r);
  if (t) {
    *entry = qcow2_l2_load (g, t->data, in_slice, bitmap);
    *nr = qcow2_l2_run (g, t->data, in_slice, max, *entry);
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
