/* SPDX-License-Identifier: BSD-3-Clause */
/* Saves persistent bitmaps at close (qcow2fmt/dirty-bitmaps.c).  With a store
 * each cluster that a bitmap gets is a change with a group of records; without
 * one the changes are written by the last flush.
 *
 * At close only, when no request is under way.
 */
#include "pool.h"

#include <errno.h>

struct attachment {
  struct dedup_pool *pool;
  uint64_t entry_off;            /* host offset of the bitmap table's entry */
  uint64_t host_idx;             /* the cluster that it is to point to */
};

/* A qcow2_step: makes the change that the struct attachment OPAQUE describes,
 * as one group of records where there is a store.  -EBUSY: no room for a
 * group. */
static int
attach_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct attachment *a = opaque;
  struct dedup_pool *pool = a->pool;
  int r;

  assert (lock_held (pool->base.lock));
  if (dedup_is_storeless (pool))
    return qcow2_bitmap_attach_locked (txn, a->entry_off, a->host_idx);
  if (!dedup_room_locked (&pool->upkeep, 1, 0))
    return -EBUSY;
  r = qcow2_bitmap_attach_locked (txn, a->entry_off, a->host_idx);
  dedup_journal_end_locked (pool->store.journal);
  return r;
}

/* A qcow2_attach_cb; OPAQUE is the pool. */
static int
attach_cb (void *opaque, uint64_t entry_off, uint64_t host_idx)
{
  struct attachment a = { opaque, entry_off, host_idx };
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (a.pool->base.img, &txn);
  do
    r = qcow2_txn_retry (&txn, attach_locked, &a);
  while (r == -EBUSY && (r = dedup_make_room (&a.pool->upkeep)) == 0);
  qcow2_txn_end (&txn);
  return r;
}

int
dedup_save_bitmaps (struct dedup_pool *pool)
{
  int r;

  if (dedup_is_storeless (pool))
    return qcow2_bitmaps_save (pool->base.img, attach_cb, pool);
  if (!qcow2_bitmaps_to_save (pool->base.img))
    return 0;
  r = dedup_enter (&pool->store.gate);
  if (r < 0)
    return r;
  r = qcow2_bitmaps_save (pool->base.img, attach_cb, pool);
  dedup_leave (&pool->store.gate);
  return r;
}
