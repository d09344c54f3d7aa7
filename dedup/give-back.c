/* SPDX-License-Identifier: BSD-3-Clause */
/* Space that nothing needs goes back to the host.
 *
 * Three kinds of free clusters still have their bytes in the file:
 *
 *   trimmed ones are emptied when they leave quarantine, before they are free;
 *   what was overwritten is kept for new data: writing there costs the host no
 *   new space.  What no writer needed for some seconds is emptied by the job
 *   GIVE_BACK, a slice at a time.  So a disk that is rewritten all the time uses
 *   its clusters again, and one that rests, or has freed much more than it
 *   writes, gives them back;
 *   what an earlier session left is looked at first (suspect.c), by the same job.
 *
 * At close, when the image is clean, all that is free goes back, also what was
 * set aside in memory; what that has no time for the next session finds.  Then
 * the file is cut off behind its last cluster in use.
 *
 * Law 6 holds for all of it: only what has left quarantine is ever free.  Who
 * empties clusters has taken them from the free ones, so that nobody writes
 * there meanwhile.  A writer that finds no cluster waits for them before it says
 * that there are none.
 *
 * The job needs neither the gate nor the maintenance mutex: no table changes.
 */
#include "disk.h"

#include <errno.h>
#include <time.h>

/* Given back at a time: the host keeps writers out of the file meanwhile. */
#define DISCARD_BYTES (UINT64_C (16) << 20)
/* One slice of the job. */
#define SLICE_BYTES (UINT64_C (256) << 20)
#define SLICE_RUNS 256
/* What a close may take. */
#define CLOSE_NS (UINT64_C (3) * 1000 * 1000 * 1000)

/* --- Clusters that are about to be free -------------------------------------- */

void
dedup_freeing_begin (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  d->give.freeing++;
}

void
dedup_freeing_end (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  assert (d->give.freeing > 0);
  d->give.freeing--;
  d->give.freed++;
  pthread_cond_broadcast (&d->give.changed);
}

/* Whoever was at it then is through, or many others are. */
#define ENOUGH_FREED 64

void
dedup_wait_for_freeing (struct dedup_disk *d)
{
  struct dedup_give_back *g = &d->give;
  LOCK_FOR_SCOPE (d->lock);
  const uint64_t before = g->freed;

  g->waiting++;
  g->left = 0;                  /* what is left is needed */
  while (g->freeing > 0 && g->freed - before < ENOUGH_FREED)
    lock_wait (d->lock, &g->changed);
  g->waiting--;
}

static bool
somebody_waits (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return d->give.waiting > 0;
}

/* -EINTR: somebody waits for clusters. */
static int
empty_run (struct dedup_disk *d, const struct qcow2_run *run)
{
  uint64_t off = run->host_idx << d->cluster_bits, n;
  uint64_t left = run->count << d->cluster_bits;
  int r = 0;

  for (; left > 0 && r == 0; off += n, left -= n) {
    n = MIN_OF (left, DISCARD_BYTES);
    r = somebody_waits (d) ? -EINTR : io_discard (d->io, off, n);
  }
  return r;
}

static bool
unable (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return d->give.unable;
}

static void
set_unable (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  d->give.unable = true;
}

void
dedup_give_back_trimmed (struct dedup_disk *d, struct qcow2_run *runs,
                         size_t nr)
{
  size_t i;

  /* At close there is a time for all of it, at the end. */
  if (unable (d) || __atomic_load_n (&d->stop, __ATOMIC_RELAXED))
    return;
  for (i = 0; i < nr; i++)
    if (runs[i].trimmed) {
      if (empty_run (d, &runs[i]) < 0)
        return;                 /* the space is used again here */
      runs[i].emptied = true;
    }
}

/* --- Quarantine ------------------------------------------------------------- */

/* What waits in quarantine takes space besides the data, so it is a quarter of
 * what is in use, within bounds: commits cost less where they are few, and a
 * small disk that is rewritten for ever must not take many times its size.
 * Three commits make a freed cluster usable, so writers come to be ahead; from
 * twice that on each of them makes a commit first. */
#define QUARANTINE_LEAST (UINT64_C (24) << 20)
#define QUARANTINE_MOST (UINT64_C (256) << 20)
#define QUARANTINE_SHARE 4

static uint64_t
quarantine_high_locked (struct dedup_disk *d)
{
  uint64_t bytes = qcow2_in_use_locked (d->img) << d->cluster_bits;

  bytes = MAX_OF (bytes / QUARANTINE_SHARE, QUARANTINE_LEAST);
  return MIN_OF (bytes, QUARANTINE_MOST);
}

uint64_t
dedup_quarantined_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return dedup_config_owed (d) ? 0 : qcow2_quarantined_locked (d->img);
}

static uint64_t
quarantined_bytes_locked (struct dedup_disk *d)
{
  return dedup_quarantined_locked (d) << d->cluster_bits;
}

bool
dedup_quarantine_due_locked (struct dedup_disk *d)
{
  return quarantined_bytes_locked (d) > quarantine_high_locked (d);
}

int
dedup_wait_for_quarantine (struct dedup_disk *d)
{
  uint64_t bytes, high;
  int r;

  lock_acquire (d->lock);
  bytes = quarantined_bytes_locked (d);
  high = quarantine_high_locked (d);
  if (bytes > high)
    dedup_ask_for_commit_locked (d);
  lock_release (d->lock);
  if (bytes <= 2 * high)
    return 0;
  r = dedup_commit_empty (d);
  return r == 0 ? dedup_release_quarantine (d) : r;
}

/* --- The job ---------------------------------------------------------------- */

bool
dedup_give_back_due_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return !d->give.unable &&
    (qcow2_stale_locked (d->img) > 0 || qcow2_suspects_due_locked (d->img));
}

bool
dedup_give_back_busy_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return dedup_give_back_due_locked (d) && d->give.left > 0;
}

/* Empty up to CLUSTERS stale ones, a slice at the most. */
static int
empty_slice (struct dedup_disk *d, uint64_t clusters)
{
  CLEANUP_FREE struct qcow2_run *runs = calloc (SLICE_RUNS, sizeof *runs);
  size_t nr, i;
  int r = 0;

  if (runs == NULL)
    return -ENOMEM;
  dedup_freeing_begin (d);
  clusters = MIN_OF (clusters, MAX_OF (SLICE_BYTES >> d->cluster_bits, 1));
  lock_acquire (d->lock);
  nr = qcow2_take_stale_locked (d->img, &d->give.from, clusters, runs,
                                SLICE_RUNS);
  lock_release (d->lock);
  for (i = 0; i < nr; i++) {
    if (r == 0)
      r = empty_run (d, &runs[i]);
    runs[i].emptied = r == 0;
  }
  lock_acquire (d->lock);
  qcow2_put_emptied_locked (d->img, runs, nr);
  lock_release (d->lock);
  dedup_freeing_end (d);
  if (r == -EOPNOTSUPP)
    set_unable (d);
  return r == -EOPNOTSUPP || r == -EINTR ? 0 : r;
}

/* How many clusters no writer has needed since this was called last; less what
 * the job has given back since. */
static uint64_t
unneeded (struct dedup_disk *d)
{
  struct dedup_give_back *g = &d->give;
  uint64_t low;
  LOCK_FOR_SCOPE (d->lock);

  low = qcow2_stale_low_locked (d->img);
  g->left = g->left > 0 ? MIN_OF (g->left, low) : low;
  return g->left;
}

static void
count_given (struct dedup_disk *d, uint64_t before)
{
  LOCK_FOR_SCOPE (d->lock);
  uint64_t now = qcow2_stale_locked (d->img);
  uint64_t given = before > now ? before - now : 0;

  d->give.left -= MIN_OF (d->give.left, given);
}

static uint64_t
stale (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_stale_locked (d->img);
}

/* Only for a test that breaks law 6: what is in quarantine is emptied. */
static int
give_back_too_early (struct dedup_disk *d)
{
  struct qcow2_run runs[SLICE_RUNS];
  size_t nr, i;
  int r = 0;

  lock_acquire (d->lock);
  nr = qcow2_quarantine_take_locked (d->img, UINT64_MAX, runs, SLICE_RUNS);
  lock_release (d->lock);
  for (i = 0; i < nr && r == 0; i++)
    r = empty_run (d, &runs[i]);
  lock_acquire (d->lock);
  for (i = 0; i < nr; i++)
    qcow2_quarantine_locked (d->img, &runs[i],
                             dedup_journal_seq_locked (d->journal));
  lock_release (d->lock);
  return r;
}

int
dedup_give_back (struct dedup_disk *d)
{
  uint64_t nr, before;
  int r = dedup_failed (d);

  if (r == 0 && mutation (MUTATION_LAW_6_GIVE_BACK))
    r = give_back_too_early (d);
  if (r == 0)
    r = qcow2_suspect_step (d->img);
  if (r != 0)
    return MIN_OF (r, 0);
  nr = unneeded (d);
  if (nr == 0)
    return 0;
  before = stale (d);
  r = empty_slice (d, nr);
  count_given (d, before);
  return r;
}

/* --- Close ------------------------------------------------------------------ */

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* What follows the last cluster in use is cut off, unless the file had been
 * longer than its clusters all along. */
static void
cut_tail (struct dedup_disk *d)
{
  uint64_t end, tail;
  int64_t size = io_size (d->io);

  lock_acquire (d->lock);
  end = qcow2_frontier_locked (d->img);
  tail = qcow2_free_tail_locked (d->img);
  lock_release (d->lock);
  if (size < 0 || tail == 0 || (uint64_t) size > end << d->cluster_bits ||
      (uint64_t) size <= (end - tail) << d->cluster_bits)
    return;
  if (io_truncate (d->io, (end - tail) << d->cluster_bits) < 0)
    log_line (d->log, LOG_DEBUG, "%s: could not be made shorter", d->path);
}

void
dedup_give_back_all (struct dedup_disk *d)
{
  uint64_t start = now_ns ();
  int r = 0;

  if (!d->writable || dedup_failed (d))
    return;
  lock_acquire (d->lock);
  dedup_spare_give_back_locked (d);
  dedup_ahead_give_back_locked (d);
  qcow2_pool_give_back_locked (d->img);
  lock_release (d->lock);
  while (r == 0 && !unable (d) && stale (d) > 0 &&
         now_ns () - start < CLOSE_NS)
    r = empty_slice (d, UINT64_MAX);
  cut_tail (d);
}
