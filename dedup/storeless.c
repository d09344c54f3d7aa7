/* SPDX-License-Identifier: BSD-3-Clause */
/* Serves an image without a store: clusters are written where they are, or to
 * new ones, and tables follow in QEMU's order (qcow2fmt/unlogged.c).  Nothing
 * is hashed, journalled or shared.
 *
 * A write has three steps, as in write.c.  It looks up where each cluster is to
 * be stored: in its own place, if no snapshot refers to it too, else in a new
 * one.  It writes the bytes.  And it changes the entries under one hold of the
 * lock, once every table that they need is in memory.  The range lock of the
 * server keeps the entries as they were looked up.
 *
 * Data in an external file has its place there by its guest offset, and no
 * refcounts.  Bytes past the end of the disk are not written there: a raw data
 * file has the size of the disk.
 *
 * Flushes run one at a time, under the maintenance mutex.  After one that
 * failed nothing is called durable any more (law 10).
 */
#include "aligned.h"
#include "pool.h"

#include <errno.h>

struct place {
  uint64_t old;                /* L2 entry */
  uint64_t host_idx;           /* if placed; in a data file 0 is a place, too */
  bool placed;
  bool reserved;               /* new, and not linked yet */
};

struct storeless_op {
  struct dedup_pool *pool;
  const struct dedup_base *b;  /* the pool's */
  uint64_t guest_idx;
  size_t nr;
  struct place *v;             /* nr of them */
  size_t nr_looked_up;         /* of them */
  struct qcow2_txn txn;
};

static bool
in_data_file (const struct dedup_base *b)
{
  return qcow2_geometry (b->img)->has_data_file;
}

static bool
data_file_is_raw (const struct dedup_base *b)
{
  return qcow2_geometry (b->img)->data_file_raw;
}

static uint64_t
entry_of (const struct storeless_op *op, const struct place *p)
{
  return p->host_idx << op->b->cluster_bits | QCOW2_L2_COPIED;
}

/* --- look up ------------------------------------------------------------ */

/* Finds out whether cluster I can be written in its own place (placed), or
 * needs a new cluster. */
static int
look_up_one (struct storeless_op *op, size_t i)
{
  struct place *p = &op->v[i];
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_entry_locked (&op->txn, QCOW2_ROOT_ACTIVE, op->guest_idx + i,
                              &p->old);
  if (r < 0)
    return r;
  p->placed = false;
  if (in_data_file (op->b)) {
    p->host_idx = op->guest_idx + i;
    p->placed = true;
    return 0;
  }
  if (!(p->old & QCOW2_L2_COPIED) || (p->old & QCOW2_L2_COMPRESSED) ||
      (p->old & QCOW2_OFFSET_MASK) % op->b->cluster_size != 0)
    return 0;
  p->host_idx = (p->old & QCOW2_OFFSET_MASK) >> op->b->cluster_bits;
  if (p->host_idx == 0)
    return 0;
  r = qcow2_get_refcount_locked (&op->txn, p->host_idx, &refcount, &anchored);
  if (r == 0 && qcow2_guarded_locked (op->b->img, p->host_idx, 1))
    return -EIO;               /* an entry that names a table */
  p->placed = r == 0 && refcount == 1;   /* else COPIED is wrong */
  return r;
}

/* A qcow2_step: looks up the rest of the clusters of the operation OPAQUE. */
static int
look_up_locked (struct qcow2_txn *txn, void *opaque)
{
  struct storeless_op *op = opaque;
  int r = 0;

  assert (lock_held (op->b->lock));
  while (op->nr_looked_up < op->nr && r == 0) {
    r = look_up_one (op, op->nr_looked_up);
    if (r == 0)
      op->nr_looked_up++;
  }
  return r;
}

/* --- new clusters ------------------------------------------------------- */

static int
reserve (const struct dedup_base *b, size_t nr, struct qcow2_run *run)
{
  LOCK_FOR_SCOPE (b->lock);
  int r = qcow2_reserve_locked (b->img, nr, run);

  if (r == 0 && qcow2_guarded_locked (b->img, run->host_idx, run->count))
    return -EIO;               /* never: the scan leaves tables out */
  return r;
}

static int
storeless_flush (struct dedup_pool *pool)
{
  int r;

  if (!pool->base.writable)
    return 0;
  pthread_mutex_lock (&pool->upkeep.maintenance);
  r = dedup_gate_failed (&pool->store.gate) ? -EIO
    : qcow2_unlogged_flush (pool->base.img);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  if (r < 0 && r != -ENOSPC && r != -ENOMEM)
    return dedup_fail (&pool->store.gate, r, "making writes durable failed");
  return r;
}

/* Looks for free clusters in all of the file, and frees what was dropped. */
static int
find_space (struct dedup_pool *pool)
{
  int r;

  do
    r = qcow2_scan_step (pool->base.img);
  while (r == 1);
  if (r == 0)
    r = storeless_flush (pool);
  if (r == 0)
    dedup_wait_for_freeing (&pool->upkeep.give);
  return r;
}

/* Reserves a run of new clusters for those from I on that need one. */
static int
reserve_run (struct storeless_op *op, size_t i)
{
  struct qcow2_run run;
  size_t n = 1, k;
  int r;

  while (i + n < op->nr && !op->v[i + n].placed)
    n++;
  r = reserve (op->b, n, &run);
  if (r == -ENOSPC && (r = find_space (op->pool)) == 0)
    r = reserve (op->b, n, &run);
  if (r < 0)
    return r;
  for (k = 0; k < run.count; k++) {
    op->v[i + k].host_idx = run.host_idx + k;
    op->v[i + k].placed = op->v[i + k].reserved = true;
  }
  return 0;
}

static int
reserve_all (struct storeless_op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    if (!op->v[i].placed)
      r = reserve_run (op, i);
  return r;
}

/* --- write -------------------------------------------------------------- */

/* Returns how many bytes of NR clusters from I on are written: in a data file,
 * those inside the disk. */
static size_t
bytes_of (const struct storeless_op *op, size_t i, size_t nr)
{
  uint64_t size = qcow2_geometry (op->b->img)->virtual_size;
  uint64_t off = (op->guest_idx + i) << op->b->cluster_bits;
  uint64_t len = (uint64_t) nr << op->b->cluster_bits;

  return in_data_file (op->b) ? MIN_OF (len, size - off) : len;
}

/* Returns whether there is a data file that was not opened
 * (QCOW2_FILES_IGNORE). */
static bool
lacks_data_file (const struct dedup_base *b)
{
  return in_data_file (b) && qcow2_data_io (b->img) == qcow2_io (b->img);
}

static int
write_all (const struct storeless_op *op, const uint8_t *buf)
{
  const unsigned bits = op->b->cluster_bits;
  size_t i, n;
  int r = lacks_data_file (op->b) ? -EIO : 0;

  for (i = 0; i < op->nr && r == 0; i += n) {
    for (n = 1; i + n < op->nr; n++)
      if (op->v[i + n].host_idx != op->v[i].host_idx + n)
        break;
    r = io_pwrite (qcow2_data_io (op->b->img), buf + (i << bits),
                   bytes_of (op, i, n), op->v[i].host_idx << bits);
  }
  return r;
}

/* --- link --------------------------------------------------------------- */

/* Returns whether the old entry of P refers to a cluster that is dropped. */
static bool
drops_old (const struct storeless_op *op, const struct place *p)
{
  return !in_data_file (op->b) &&
    ((p->old & QCOW2_L2_COMPRESSED) ||
     (p->old & QCOW2_OFFSET_MASK) >> op->b->cluster_bits != p->host_idx);
}

static int
prepare_one (struct storeless_op *op, size_t i, uint64_t entry)
{
  struct place *p = &op->v[i];
  int r;

  if (entry == p->old)
    return 0;
  r = qcow2_prepare_entry_locked (&op->txn, QCOW2_ROOT_ACTIVE,
                                  op->guest_idx + i);
  if (r == 0 && p->reserved)
    r = qcow2_prepare_host_locked (&op->txn, p->host_idx, 1);
  if (r == 0 && drops_old (op, p))
    r = qcow2_prepare_drop_locked (&op->txn, p->old, 1);
  return r;
}

static void
change (struct storeless_op *op, const struct qcow2_change *c)
{
  int r = qcow2_apply_locked (&op->txn, c);

  assert (r == 0);             /* the change was prepared */
  (void) r;
}

static int
link_one (struct storeless_op *op, size_t i, uint64_t entry, bool trimmed)
{
  struct place *p = &op->v[i];
  struct qcow2_change ref = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = p->host_idx, .count = 1,
    .refcount = 1,
  };
  struct qcow2_change link = {
    .type = QCOW2_CHANGE_L2, .root = QCOW2_ROOT_ACTIVE,
    .guest_idx = op->guest_idx + i, .count = 1, .entry = entry,
  };

  if (entry == p->old)
    return 0;
  if (p->reserved)
    change (op, &ref);
  p->reserved = false;
  change (op, &link);
  return drops_old (op, p) ? qcow2_drop_locked (&op->txn, p->old, 1, trimmed)
    : 0;
}

struct link_step {
  struct storeless_op *op;
  const uint64_t *zero_entry;  /* non-NULL: the value of all entries */
  bool no_space;               /* the step itself returned -ENOSPC */
};

static int
link_clusters_locked (struct storeless_op *op, const uint64_t *zero_entry)
{
  size_t i;
  int r = op->pool->store.gate.failed;

  assert (lock_held (op->b->lock));
  for (i = 0; i < op->nr && r == 0; i++)
    r = prepare_one (op, i, zero_entry ? *zero_entry
                     : entry_of (op, &op->v[i]));
  for (i = 0; i < op->nr && r == 0; i++)
    r = link_one (op, i, zero_entry ? *zero_entry
                  : entry_of (op, &op->v[i]), zero_entry != NULL);
  return r;
}

/* A qcow2_step: runs the struct link_step OPAQUE. */
static int
link_locked (struct qcow2_txn *txn, void *opaque)
{
  struct link_step *l = opaque;
  int r = link_clusters_locked (l->op, l->zero_entry);

  l->no_space = r == -ENOSPC;
  return r;
}

/* Changes the entries of all clusters to their places, or to *ZERO_ENTRY if
 * that is not NULL.  Searches for space once if tables for that need some. */
static int
link_all (struct storeless_op *op, const uint64_t *zero_entry)
{
  struct link_step l = { .op = op, .zero_entry = zero_entry };
  int r = qcow2_txn_retry (&op->txn, link_locked, &l);

  if (l.no_space && (r = find_space (op->pool)) == 0)
    r = qcow2_txn_retry (&op->txn, link_locked, &l);
  if (r != -EINVAL)
    return r;
  dedup_contradiction (&op->pool->store.gate);
  return -EIO;
}

/* --- operations --------------------------------------------------------- */

static void
finish (struct storeless_op *op)
{
  struct qcow2_run run = { .count = 1 };
  size_t i;

  lock_acquire (op->b->lock);
  for (i = 0; i < op->nr; i++)
    if (op->v[i].reserved) {
      run.host_idx = op->v[i].host_idx;
      qcow2_unreserve_unbacked_locked (op->b->img, &run);
    }
  qcow2_txn_end_locked (&op->txn);
  lock_release (op->b->lock);
  free (op->v);
}

static int
begin (struct storeless_op *op)
{
  op->v = calloc (op->nr, sizeof *op->v);
  if (op->v == NULL)
    return -ENOMEM;
  qcow2_txn_begin (op->b->img, &op->txn);
  return qcow2_txn_retry (&op->txn, look_up_locked, op);
}

/* Begins a change of a client.  Before the first change of a session, clears
 * the header's marks of features that this program does not keep up.  Flushes
 * if too many tables are changed. */
static int
enter (struct dedup_pool *pool)
{
  int r = pool->base.writable ? 0 : -EROFS;

  if (r == 0)
    r = dedup_gate_failed (&pool->store.gate);
  if (r < 0)
    return r;
  pthread_mutex_lock (&pool->upkeep.maintenance);
  if (!pool->session_begun) {
    r = qcow2_begin_session (pool->base.img);
    pool->session_begun = r == 0;
  }
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  if (r == -ENOSPC)             /* the next change tries again */
    return r;
  if (r < 0)
    return dedup_fail (&pool->store.gate, r, "writing the header failed");
  return dedup_too_dirty (&pool->upkeep) ? storeless_flush (pool) : 0;
}

static int
storeless_write (struct dedup_pool *pool, unsigned root, const void *buf,
                 uint64_t guest_idx, size_t nr)
{
  struct storeless_op op = {
    .pool = pool, .b = &pool->base, .guest_idx = guest_idx, .nr = nr,
  };
  int r = enter (pool);

  if (r < 0)
    return r;
  r = begin (&op);
  if (r == 0)
    r = reserve_all (&op);
  if (r == 0)
    r = write_all (&op, buf);
  if (r == 0)
    r = link_all (&op, NULL);
  if (op.v)
    finish (&op);
  return r;
}

/* Writes zeroes over the data. */
static int
write_zeroes (struct dedup_pool *pool, uint64_t guest_idx, size_t nr)
{
  const unsigned bits = pool->base.cluster_bits;
  const size_t at_once = MAX_OF (DEDUP_CHUNK_BYTES >> bits, 1);
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (at_once << bits);
  size_t done, n;
  int r = zero ? 0 : -ENOMEM;

  for (done = 0; done < nr && r == 0; done += n) {
    n = MIN_OF (nr - done, at_once);
    r = storeless_write (pool, QCOW2_ROOT_ACTIVE, zero, guest_idx + done, n);
  }
  return r;
}

/* Discards the range in the data file, which then reads as zeroes itself. */
static int
clear_data_file (const struct storeless_op *op)
{
  uint64_t off = op->guest_idx << op->b->cluster_bits;

  return lacks_data_file (op->b) ? -EIO
    : io_discard (qcow2_data_io (op->b->img), off, bytes_of (op, 0, op->nr));
}

static int
unmap_piece (struct storeless_op *op, uint64_t entry)
{
  struct dedup_pool *pool = op->pool;
  size_t i;
  int r = 0;

  if (in_data_file (&pool->base))
    r = clear_data_file (op);
  if (r == -EOPNOTSUPP && !data_file_is_raw (&pool->base))
    r = 0;
  if (r == -EOPNOTSUPP)
    return write_zeroes (pool, op->guest_idx, op->nr);
  if (r < 0 || data_file_is_raw (&pool->base))
    return r;
  r = begin (op);
  for (i = 0; i < op->nr && op->v; i++)
    op->v[i].host_idx = 0;     /* every old entry is dropped */
  if (r == 0)
    r = link_all (op, &entry);
  if (op->v)
    finish (op);
  return r;
}

static int
storeless_unmap (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
                 uint64_t nr, enum dedup_unmap how)
{
  const bool zero_flag = qcow2_geometry (pool->base.img)->version >= 3;
  const bool marked = how == DEDUP_ZERO || pool->base.has_backing;
  uint64_t done;
  int r = enter (pool);

  for (done = 0; done < nr && r == 0; done += DEDUP_CHUNK_CLUSTERS) {
    struct storeless_op op = {
      .pool = pool, .b = &pool->base, .guest_idx = guest_idx + done,
      .nr = MIN_OF (nr - done, DEDUP_CHUNK_CLUSTERS),
    };
    /* Version 2 has no zero clusters. */
    if (pool->base.has_backing && !zero_flag)
      r = write_zeroes (pool, op.guest_idx, op.nr);
    else
      r = unmap_piece (&op, marked && zero_flag ? QCOW2_L2_ZERO : 0);
  }
  return r;
}

/* --- flush and jobs ----------------------------------------------------- */

static bool
pending (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_unlogged_pending_locked (b->img);
}

/* Flushes once for the changes, and once for the refcounts of what they freed,
 * which frees nothing more. */
static int
storeless_finish (struct dedup_pool *pool)
{
  int r = dedup_save_bitmaps (pool), i;

  for (i = 0; i < 2 && r == 0; i++)
    if (i == 0 || pending (&pool->base))
      r = storeless_flush (pool);
  return r == 0 ? qcow2_bitmaps_end (pool->base.img) : r;
}

static unsigned
storeless_due (struct dedup_pool *pool, unsigned *urgent)
{
  unsigned due = 0, now = 0;

  LOCK_FOR_SCOPE (pool->base.lock);
  if (pool->store.gate.failed || !pool->base.writable)
    return 0;
  if (qcow2_unlogged_pending_locked (pool->base.img))
    due |= DEDUP_JOB_COMMIT;
  if (qcow2_dirty_bytes_locked (pool->base.img) > pool->upkeep.dirty_high)
    now |= DEDUP_JOB_COMMIT;
  if (!qcow2_scan_done_locked (pool->base.img))
    now |= DEDUP_JOB_SCAN;
  if (dedup_give_back_due_locked (&pool->upkeep.give))
    due |= DEDUP_JOB_GIVE_BACK;
  if (dedup_give_back_busy_locked (&pool->upkeep.give))
    now |= DEDUP_JOB_GIVE_BACK;
  if (urgent)
    *urgent = now;
  return due | now;
}

static int
storeless_run (struct dedup_pool *pool, enum dedup_job job)
{
  int r = dedup_gate_failed (&pool->store.gate);

  if (r < 0)
    return r;
  if (job == DEDUP_JOB_SCAN) {
    r = qcow2_scan_step (pool->base.img);
    return MIN_OF (r, 0);
  }
  if (job == DEDUP_JOB_GIVE_BACK)
    return dedup_give_back (&pool->upkeep);
  return job == DEDUP_JOB_COMMIT ? storeless_flush (pool) : -EINVAL;
}

const struct dedup_ops dedup_storeless_ops = {
  .storeless = true,
  .write = storeless_write, .unmap = storeless_unmap,
  .flush = storeless_flush, .due = storeless_due, .run = storeless_run,
  .finish = storeless_finish,
};
