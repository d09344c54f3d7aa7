/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes each request and job on to the operations of the image's kind: with a
 * store, which are here, or without one (storeless.c).
 *
 * Any thread.  Nothing is locked here but the maintenance mutex, at the end.
 */
#include "fresh.h"
#include "pool.h"

#include <errno.h>

bool
dedup_writable (const struct dedup_pool *pool)
{
  return pool->base.writable;
}

struct qcow2_image *
dedup_image (struct dedup_pool *pool)
{
  return pool->base.img;
}

int
dedup_read (struct dedup_pool *pool, unsigned root, void *buf,
            uint64_t guest_off, size_t len)
{
  dedup_disks_note_request (&pool->disks);
  dedup_fresh_note_read (pool->fresh);
  return qcow2_read (pool->base.img, root, buf, guest_off, len);
}

bool
dedup_will_need (struct dedup_pool *pool, unsigned root, uint64_t guest_off,
                 uint64_t len, bool around)
{
  return qcow2_will_need (pool->base.img, root, guest_off, len, around);
}

int
dedup_failed (struct dedup_pool *pool)
{
  return dedup_gate_failed (&pool->store.gate);
}

/* Notes in the dirty bitmaps, which are the active disk's, that clusters are about
 * to change. */
static void
note_bitmaps (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
              uint64_t nr)
{
  if (root == QCOW2_ROOT_ACTIVE)
    qcow2_bitmaps_note (pool->base.img, guest_idx << pool->base.cluster_bits,
                        nr << pool->base.cluster_bits);
}

int
dedup_write (struct dedup_pool *pool, unsigned root, const void *buf,
             uint64_t guest_idx, size_t nr)
{
  int r;

  note_bitmaps (pool, root, guest_idx, nr);
  dedup_disks_note_request (&pool->disks);
  r = pool->ops->write (pool, root, buf, guest_idx, nr);
  dedup_fresh_note (pool->fresh, root, guest_idx, nr);
  return r;
}

int
dedup_unmap (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
             uint64_t nr, enum dedup_unmap how)
{
  note_bitmaps (pool, root, guest_idx, nr);
  dedup_disks_note_request (&pool->disks);
  return pool->ops->unmap (pool, root, guest_idx, nr, how);
}

int
dedup_flush (struct dedup_pool *pool)
{
  return pool->ops->flush (pool);
}

unsigned
dedup_due (struct dedup_pool *pool, unsigned *urgent)
{
  return pool->ops->due (pool, urgent);
}

int
dedup_run (struct dedup_pool *pool, enum dedup_job job)
{
  return pool->ops->run (pool, job);
}

void
dedup_stop_jobs (struct dedup_pool *pool)
{
  dedup_upkeep_stop (&pool->upkeep);
}

int
dedup_finish (struct dedup_pool *pool)
{
  if (!pool->base.writable ||
      (!pool->store.has_store && !dedup_is_storeless (pool)))
    return 0;
  return dedup_failed (pool) ? -EIO : pool->ops->finish (pool);
}

void
dedup_give_back_all (struct dedup_pool *pool)
{
  dedup_upkeep_give_back_all (&pool->upkeep);
}

int
dedup_existing_next (struct dedup_pool *pool, uint64_t *guest_idx, size_t *nr,
                     struct dedup_existing *res)
{
  return dedup_take_in_next (&pool->writer, guest_idx, nr, res);
}

int
dedup_existing_index (struct dedup_pool *pool, uint64_t guest_idx, size_t nr,
                      bool all, struct dedup_existing *res)
{
  return dedup_take_in (&pool->writer, guest_idx, nr, all, res);
}

int
dedup_existing_count (struct dedup_pool *pool, uint64_t *guest_idx,
                      uint64_t *nr)
{
  return dedup_take_in_count (&pool->writer, guest_idx, nr);
}

bool
dedup_can_index (const struct dedup_pool *pool)
{
  return dedup_can_take_in (&pool->writer);
}

bool
dedup_is_scattered (struct dedup_pool *pool, uint64_t guest_idx, uint64_t nr)
{
  return dedup_move_would_help (&pool->base, guest_idx, nr);
}

int
dedup_defragment (struct dedup_pool *pool, uint64_t guest_idx, size_t nr)
{
  return dedup_move (&pool->writer, guest_idx, nr);
}

int
dedup_rewrite (struct dedup_pool *pool, unsigned root, uint64_t guest_idx, size_t nr,
               dedup_avoids *avoids, const void *opaque)
{
  return dedup_pipeline_rewrite (&pool->writer, root, guest_idx, nr, avoids, opaque);
}

/* --- an image with a store ---------------------------------------------- */

static int
store_write (struct dedup_pool *pool, unsigned root, const void *buf,
             uint64_t guest_idx, size_t nr)
{
  return dedup_pipeline_write (&pool->writer, root, buf, guest_idx, nr);
}

static int
store_unmap (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
             uint64_t nr, enum dedup_unmap how)
{
  return dedup_pipeline_unmap (&pool->writer, root, guest_idx, nr, how);
}

static int
store_flush (struct dedup_pool *pool)
{
  return dedup_upkeep_flush (&pool->upkeep);
}

static unsigned
store_due (struct dedup_pool *pool, unsigned *urgent)
{
  unsigned due = dedup_upkeep_due (&pool->upkeep, urgent);

  if (!pool->store.has_store || !pool->base.writable)
    return due;
  LOCK_FOR_SCOPE (pool->base.lock);
  if (dedup_disks_due_locked (&pool->disks) && !pool->store.gate.failed)
    due |= DEDUP_JOB_DISKS;
  return due;
}

static int
store_run (struct dedup_pool *pool, enum dedup_job job)
{
  int r;

  if (job != DEDUP_JOB_DISKS)
    return dedup_upkeep_run (&pool->upkeep, job);
  r = dedup_disks_step (&pool->disks);
  return MIN_OF (r, 0);
}

/* Commits, checkpoints, and clears bit 48 unless there is work left. */
static int
store_finish (struct dedup_pool *pool)
{
  int r = dedup_save_bitmaps (pool);

  if (r < 0)
    return r;
  dedup_pack_end (&pool->writer);
  pthread_mutex_lock (&pool->upkeep.maintenance);
  r = dedup_config_settle (&pool->store);
  if (r == 0)
    r = dedup_index_reap (pool->store.index);
  if (r == 0)
    r = dedup_clean_at_close (&pool->upkeep);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  if (r == 0)
    r = qcow2_bitmaps_end (pool->base.img);
  return r == 1 ? -EBUSY : r;
}

const struct dedup_ops dedup_store_ops = {
  .write = store_write, .unmap = store_unmap, .flush = store_flush,
  .due = store_due, .run = store_run, .finish = store_finish,
};
