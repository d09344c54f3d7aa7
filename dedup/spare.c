/* SPDX-License-Identifier: BSD-3-Clause */
/* Spare clusters: free ones that have real space on the host, kept for
 * overwriting data when the host is full.
 *
 * Nothing is written over in place, so an overwrite needs a cluster before it
 * gives one back.  When the host has no space left, new data is refused, but
 * what replaces data takes its clusters here.  What it frees comes back here
 * with the space it has, once law 6 allows.  So as many clusters can be
 * overwritten as there are spare ones, and without end where nobody else
 * refers to what they replace.
 *
 * They are as many as the largest operation takes, 2 MiB at most, and no more
 * than the disk has.  The commit job gets them, after the scan for free
 * clusters, when something was changed; their refcount blocks and anchor
 * tables are made then, too.  They are reserved in memory only: a crash, like
 * a close, leaves free clusters.
 *
 * Protected by the image lock.  Space is asked for without it.
 */
#include "disk.h"

#include <errno.h>

/* Runs of free clusters without space that one fill may meet. */
#define FILL_TRIES 256

static unsigned
target (const struct dedup_disk *d)
{
  uint64_t nr = DEDUP_CHUNK_BYTES >> d->cluster_bits;

  nr = MIN_OF (nr, DEDUP_CHUNK_CLUSTERS);
  return (unsigned) MIN_OF (nr, qcow2_geometry (d->img)->nr_clusters);
}

bool
dedup_spare_take_locked (struct dedup_disk *d, uint64_t *host_idx)
{
  assert (lock_held (d->lock));
  if (d->spare.nr == 0)
    return false;
  *host_idx = d->spare.v[--d->spare.nr];
  return true;
}

bool
dedup_spare_put_locked (struct dedup_disk *d, uint64_t host_idx)
{
  assert (lock_held (d->lock));
  if (d->spare.nr >= target (d))
    return false;
  d->spare.v[d->spare.nr++] = host_idx;
  return true;
}

void
dedup_spare_keep_locked (struct dedup_disk *d, const struct qcow2_run *run)
{
  uint64_t k;

  /* A session that never asked for any has no use for them. */
  if (!d->spare.wanted || run->trimmed)
    return;
  for (k = 0; k < run->count && d->spare.nr < target (d); k++)
    if (qcow2_reserve_one_locked (d->img, run->host_idx + k))
      d->spare.v[d->spare.nr++] = run->host_idx + k;
}

void
dedup_spare_give_back_locked (struct dedup_disk *d)
{
  struct qcow2_run run = { .count = 1 };

  assert (lock_held (d->lock));
  while (d->spare.nr > 0) {
    run.host_idx = d->spare.v[--d->spare.nr];
    qcow2_unreserve_locked (d->img, &run);
  }
}

bool
dedup_spare_due_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return !d->spare.wanted && d->recovery_bit && qcow2_scan_done_locked (d->img);
}

/* --- filling -------------------------------------------------------------- */

/* Make the tables that count RUN, so that using it needs no more space. */
static int
prepare_run_locked (struct dedup_disk *d, struct qcow2_txn *txn,
                    const struct qcow2_run *run)
{
  int r;

  for (;;) {
    if (!dedup_room_locked (d, 8, 0))     /* for some 60 tables */
      return -EBUSY;
    r = qcow2_prepare_host_locked (txn, run->host_idx, run->count);
    dedup_journal_end_locked (d->journal);
    if (r != -EAGAIN)
      return r;
    lock_release (d->lock);
    r = qcow2_txn_load (txn);
    lock_acquire (d->lock);
    if (r < 0)
      return r;
  }
}

/* Get up to WANTED clusters in one run; how many, or -errno. */
static int
add_run_locked (struct dedup_disk *d, struct qcow2_txn *txn, uint64_t wanted)
{
  struct qcow2_run run;
  uint64_t k;
  int r;

  r = qcow2_reserve_locked (d->img, wanted, &run);
  if (r < 0)
    return r;
  r = qcow2_back_locked (d->img, &run);
  if (r == 0)
    r = prepare_run_locked (d, txn, &run);
  if (r < 0) {
    qcow2_unreserve_unbacked_locked (d->img, &run);
    return r;
  }
  for (k = run.count; k-- > 0; ) {
    struct qcow2_run one = { .host_idx = run.host_idx + k, .count = 1 };

    if (!dedup_spare_put_locked (d, one.host_idx))
      qcow2_unreserve_locked (d->img, &one);
  }
  return (int) run.count;
}

static void
fill_locked (struct dedup_disk *d, struct qcow2_txn *txn)
{
  uint64_t wanted = target (d);
  unsigned failed = 0;
  int r;

  while (failed < FILL_TRIES && d->spare.nr < target (d)) {
    r = add_run_locked (d, txn, MIN_OF (wanted, target (d) - d->spare.nr));
    if (r < 0 && r != -ENOSPC)
      return;                   /* another time */
    if (r == -ENOSPC) {         /* some free clusters have space still */
      qcow2_skip_locked (d->img, failed++);
      wanted = 1;
    }
    else
      wanted *= 2;
  }
}

void
dedup_spare_fill (struct dedup_disk *d)
{
  struct qcow2_txn txn;
  bool fill;

  lock_acquire (d->lock);
  fill = d->spare.nr < target (d) && d->recovery_bit &&
    qcow2_scan_done_locked (d->img);
  d->spare.wanted = d->spare.wanted || fill;
  lock_release (d->lock);
  if (!fill || dedup_change_begin (d) < 0)
    return;
  qcow2_txn_begin (d->img, &txn);
  lock_acquire (d->lock);
  if (!d->spare.filling) {
    d->spare.filling = true;
    fill_locked (d, &txn);
    d->spare.filling = false;
  }
  qcow2_txn_end_locked (&txn);
  lock_release (d->lock);
  dedup_change_end (d);
}
