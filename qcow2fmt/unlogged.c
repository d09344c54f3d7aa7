/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes changes without a log, for images that cannot hold a store.
 *
 * Nothing but the order of writes makes them safe, the same as QEMU's:
 *
 *   data                         before the entry that points to it
 *   refcounts that grew          before the tables that need them
 *   blocks before the refcount table, L2 tables before the L1 table
 *   refcounts that shrank        after the tables that no longer need them
 *
 * The first is one sync before the writeback, and the second and third are its
 * phases (writeback.c).  The last is done here: a reference that is dropped
 * stays counted, and is noted.  Once a writeback of the tables without it is
 * durable, its refcount is decremented, and a cluster with refcount 0 may be
 * used again, because nothing in the file refers to it.  The smaller refcount
 * reaches the file with the next writeback.  So a crash leaves refcounts that
 * are too high, never too low: leaks, which qemu-img check -r leaks repairs.
 *
 * Unlike with a log, writes that were not flushed may come back in parts after
 * a crash.
 *
 * The image's lock protects it; one flush runs at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define RELEASE_SLICE 2048     /* runs taken or released per hold of the lock */

void
qcow2_unlogged_begin (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);

  assert (img->writable && !img->log.append_locked);
  img->unlogged.on = true;
  if (img->snapshots.anchor >= 0)
    img->snapshots.v[img->snapshots.anchor].is_anchor = false;
  img->snapshots.anchor = -1;
  qcow2_anchor_free (img);
  img->fields.anchor_l1_off = img->fields.anchor_l1_entries = 0;
  qcow2_alloc_set_bound_locked (img);
}

void
qcow2_unlogged_free (struct qcow2_image *img)
{
  free (img->unlogged.drops);
  memset (&img->unlogged, 0, sizeof img->unlogged);
}

int
qcow2_unlogged_reserve_locked (struct qcow2_image *img)
{
  struct qcow2_unlogged *d = &img->unlogged;
  struct qcow2_run *bigger;
  size_t max;

  assert (lock_held (&img->lock));
  if (d->max - d->nr >= QCOW2_UNLOGGED_DROPS)
    return 0;
  max = d->max * 2 + QCOW2_UNLOGGED_DROPS;
  bigger = realloc (d->drops, max * sizeof *bigger);
  if (!bigger)
    return -ENOMEM;
  d->drops = bigger;
  d->max = max;
  return 0;
}

void
qcow2_unlogged_drop_locked (struct qcow2_image *img,
                          const struct qcow2_run *run)
{
  struct qcow2_unlogged *d = &img->unlogged;

  assert (lock_held (&img->lock));
  assert (d->nr < d->max);     /* reserved */
  d->drops[d->nr++] = *run;
}

bool
qcow2_unlogged_pending_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->unlogged.nr > 0 || qcow2_dirty_bytes_locked (img) > 0;
}

/* --- Counting down --------------------------------------------------- */

/* Decrements the refcount of a cluster, and puts it into quarantine if it was
 * the last reference. */
static int
count_down_locked (struct qcow2_txn *txn, uint64_t host_idx, bool trimmed)
{
  struct qcow2_run run = { .host_idx = host_idx, .count = 1,
                           .trimmed = trimmed };
  uint64_t refcount;
  bool anchored;
  int r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &anchored);

  if (r < 0)
    return r;
  /* Only in a damaged image: the reference was never counted. */
  if (refcount == 0 ||
      (refcount == 1 && qcow2_guard_stays_locked (txn->img, host_idx)))
    return 0;
  qcow2_set_refcount_locked (txn, host_idx, refcount - 1, false);
  if (refcount == 1)
    qcow2_quarantine_locked (txn->img, &run, 0);
  return 0;
}

/* Decrements the refcount of the first cluster of a run, and removes it from
 * the run. */
static int
count_down_first_locked (struct qcow2_txn *txn, void *opaque)
{
  struct qcow2_run *run = opaque;
  int r = count_down_locked (txn, run->host_idx, run->trimmed);

  if (r < 0)
    return r;
  run->host_idx++;
  run->count--;
  return 0;
}

/* Decrements the refcounts of a run, and releases the lock after each cluster.
 * After a failure RUN has the clusters that are left. */
static int
count_down (struct qcow2_image *img, struct qcow2_run *run)
{
  struct qcow2_txn txn;
  int r = 0;

  qcow2_txn_begin (img, &txn);
  while (run->count > 0 && r == 0)
    r = qcow2_txn_retry (&txn, count_down_first_locked, run);
  qcow2_txn_end (&txn);
  return r;
}

/* Releases all clusters in quarantine for reuse, and gives the space of trimmed
 * ones back to the host first.  A failed discard only ends the giving back. */
static int
release (struct qcow2_image *img)
{
  unsigned bits = img->header.geo.cluster_bits;
  CLEANUP_FREE struct qcow2_run *runs = calloc (RELEASE_SLICE, sizeof *runs);
  size_t nr, i;
  int given = 0;

  if (!runs)
    return -ENOMEM;
  do {
    lock_acquire (&img->lock);
    nr = qcow2_quarantine_take_locked (img, UINT64_MAX, runs, RELEASE_SLICE);
    lock_release (&img->lock);
    nr = qcow2_coalesce (runs, nr);
    for (i = 0; i < nr && given == 0; i++)
      if (runs[i].trimmed)
        given = io_discard (img->io, runs[i].host_idx << bits,
                            runs[i].count << bits);
    lock_acquire (&img->lock);
    qcow2_release_locked (img, runs, nr);
    lock_release (&img->lock);
  } while (nr > 0);
  return 0;
}

/* Decrements the refcounts of the first NR drops, which are durable in the
 * file's tables.  After a failure the remaining ones stay noted. */
static int
count_down_all (struct qcow2_image *img, size_t nr)
{
  struct qcow2_unlogged *d = &img->unlogged;
  struct qcow2_run run;
  bool more;
  size_t i;
  int r = 0;

  for (i = 0; i < nr; i++) {
    lock_acquire (&img->lock);
    run = d->drops[i];
    lock_release (&img->lock);
    r = count_down (img, &run);
    if (r < 0)
      break;
  }
  lock_acquire (&img->lock);
  if (r < 0)
    d->drops[i] = run;
  d->nr -= i;
  if (i > 0)
    memmove (d->drops, d->drops + i, d->nr * sizeof *d->drops);
  more = qcow2_quarantined_locked (img) > 0;   /* also of failed flushes */
  lock_release (&img->lock);
  return r == 0 && more ? release (img) : r;
}

/* --- Flush ------------------------------------------------------------ */

static int
write_tables (struct qcow2_image *img, struct qcow2_writeback *wb)
{
  int r = qcow2_writeback_write (wb);

  return r == 0 ? qcow2_final_sync (img->io) : r;
}

int
qcow2_unlogged_flush (struct qcow2_image *img)
{
  struct qcow2_writeback *wb = NULL;
  size_t nr_drops;
  int r = 0;

  lock_acquire (&img->lock);
  nr_drops = img->unlogged.nr;
  if (qcow2_dirty_bytes_locked (img) > 0)
    r = qcow2_writeback_begin_locked (img, &wb);
  lock_release (&img->lock);
  if (r == 0)
    r = qcow2_final_sync (qcow2_data_io (img));   /* the tables point to it */
  if (r == 0 && img->data)
    r = qcow2_final_sync (img->io);
  if (wb) {
    if (r == 0)
      r = write_tables (img, wb);
    lock_acquire (&img->lock);
    qcow2_writeback_end_locked (wb, r == 0);
    lock_release (&img->lock);
  }
  return r == 0 ? count_down_all (img, nr_drops) : r;
}
