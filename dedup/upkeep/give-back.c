/* SPDX-License-Identifier: BSD-3-Clause */
/* Gives the space of stale clusters, free ones that still have data in the
 * file, back to the host: by the job GIVE_BACK during a session, and at close.
 *
 * Clusters that were overwritten are kept for new data at first, as a write to
 * them costs the host no new space.  The job empties, a slice at a time, those
 * that no writer needed for some seconds.  So a disk that is rewritten all the
 * time uses its clusters again, and one that rests, or has freed much more
 * than it writes, gives them back.  Clusters that an earlier session left are
 * verified first (qcow2_verify_step), and with them candidates for garbage,
 * which the job SCAN frees then.  Trimmed clusters are no work for the job: they
 * are emptied when they leave quarantine (quarantine.c).
 *
 * At close, when the image is clean, all free clusters are emptied, also those
 * that were set aside in memory, and the file is cut off behind its last
 * cluster in use.  The next session finds those for which there was no time.
 *
 * Only clusters that have left quarantine are free (law 6).  They are taken
 * from the free ones while they are emptied (freeing.c).
 *
 * Any thread.  The job does not need the gate, as no table changes, and the
 * maintenance mutex only to verify.
 */
#include "clock.h"
#include "upkeep-private.h"

#include <errno.h>
#include <time.h>

/* Limits of one slice of the job. */
#define SLICE_BYTES (UINT64_C (256) << 20)
#define SLICE_RUNS 256

/* Time that a close may take to empty clusters. */
#define CLOSE_NS (UINT64_C (3) * 1000 * 1000 * 1000)

/* --- The job ------------------------------------------------------------- */

bool
dedup_give_back_due_locked (struct dedup_give_back *gb)
{
  assert (lock_held (gb->b->lock));
  /* It is known only after all is verified that the host is unable. */
  return !gb->unable &&
    (qcow2_stale_locked (gb->b->img) > 0 ||
     qcow2_verify_due_locked (gb->b->img));
}

bool
dedup_give_back_busy_locked (struct dedup_give_back *gb)
{
  assert (lock_held (gb->b->lock));
  return dedup_give_back_due_locked (gb) && gb->left > 0;
}

/* Empties up to CLUSTERS stale clusters, a slice at the most. */
static int
empty_slice (struct dedup_give_back *gb, uint64_t clusters)
{
  CLEANUP_FREE struct qcow2_run *runs = calloc (SLICE_RUNS, sizeof *runs);
  size_t nr, i;
  int r = 0;

  if (runs == NULL)
    return -ENOMEM;
  dedup_freeing_begin (gb);
  clusters = MIN_OF (clusters, MAX_OF (SLICE_BYTES >> gb->b->cluster_bits, 1));
  lock_acquire (gb->b->lock);
  nr = qcow2_take_stale_locked (gb->b->img, &gb->from, clusters, runs,
                                SLICE_RUNS);
  lock_release (gb->b->lock);
  for (i = 0; i < nr; i++) {
    if (r == 0)
      r = dedup_empty_run (gb, &runs[i]);
    runs[i].emptied = r == 0;
  }
  lock_acquire (gb->b->lock);
  qcow2_put_emptied_locked (gb->b->img, runs, nr);
  lock_release (gb->b->lock);
  dedup_freeing_end (gb);
  if (r == -EOPNOTSUPP)
    dedup_note_cannot_empty (gb);
  return r == -EOPNOTSUPP || r == -EINTR ? 0 : r;
}

/* Returns how many clusters the job may empty: those that no writer has needed
 * since the last call, less those that the job has emptied since. */
static uint64_t
unneeded (struct dedup_give_back *gb)
{
  uint64_t low;
  LOCK_FOR_SCOPE (gb->b->lock);

  low = qcow2_stale_low_locked (gb->b->img);
  gb->left = gb->left > 0 ? MIN_OF (gb->left, low) : low;
  return gb->left;
}

/* Counts the clusters that were emptied since BEFORE were stale. */
static void
count_emptied (struct dedup_give_back *gb, uint64_t before)
{
  LOCK_FOR_SCOPE (gb->b->lock);
  uint64_t now = qcow2_stale_locked (gb->b->img);
  uint64_t emptied = before > now ? before - now : 0;

  gb->left -= MIN_OF (gb->left, emptied);
}

static uint64_t
stale (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_stale_locked (b->img);
}

/* Empties clusters that are still in quarantine; only for a test that breaks
 * law 6. */
static int
give_back_too_early (struct dedup_upkeep *u)
{
  struct qcow2_run runs[SLICE_RUNS];
  size_t nr, i;
  int r = 0;

  lock_acquire (u->b->lock);
  nr = qcow2_quarantine_take_locked (u->b->img, UINT64_MAX, runs, SLICE_RUNS);
  lock_release (u->b->lock);
  for (i = 0; i < nr && r == 0; i++)
    r = dedup_empty_run (&u->give, &runs[i]);
  lock_acquire (u->b->lock);
  for (i = 0; i < nr; i++)
    qcow2_quarantine_locked (u->b->img, &runs[i],
                             dedup_journal_seq_locked (u->s->journal));
  lock_release (u->b->lock);
  return r;
}

/* Does a step of verifying.  The maintenance mutex keeps writers that lack space
 * from doing one at the same time. */
static int
verify (struct dedup_upkeep *u)
{
  int r;

  pthread_mutex_lock (&u->maintenance);
  r = qcow2_verify_step (u->b->img);
  pthread_mutex_unlock (&u->maintenance);
  return r;
}

int
dedup_give_back (struct dedup_upkeep *u)
{
  uint64_t nr, before;
  int r = dedup_gate_failed (&u->s->gate);

  if (r == 0 && mutation (MUTATION_LAW_6_GIVE_BACK))
    r = give_back_too_early (u);
  if (r == 0)
    r = verify (u);
  if (r != 0)
    return MIN_OF (r, 0);
  nr = unneeded (&u->give);
  if (nr == 0)
    return 0;
  before = stale (u->b);
  r = empty_slice (&u->give, nr);
  count_emptied (&u->give, before);
  return r;
}

/* --- Close --------------------------------------------------------------- */

/* Cuts off what follows the last cluster in use, unless the file has been
 * longer than its clusters all along. */
static void
cut_tail (const struct dedup_base *b)
{
  uint64_t end, tail;
  int64_t size = io_size (b->io);

  lock_acquire (b->lock);
  end = qcow2_frontier_locked (b->img);
  tail = qcow2_free_tail_locked (b->img);
  lock_release (b->lock);
  if (size < 0 || tail == 0 || (uint64_t) size > end << b->cluster_bits ||
      (uint64_t) size <= (end - tail) << b->cluster_bits)
    return;
  if (io_truncate (b->io, (end - tail) << b->cluster_bits) < 0)
    log_line (b->log, LOG_DEBUG, "%s: the file could not be made shorter",
              b->path);
}

void
dedup_upkeep_give_back_all (struct dedup_upkeep *u)
{
  uint64_t start = clock_now_ns ();
  int r = 0;

  if (!u->b->writable || dedup_gate_failed (&u->s->gate))
    return;
  lock_acquire (u->b->lock);
  dedup_reserve_give_back_locked (&u->reserve);
  dedup_prewrite_give_back_locked (&u->prewrite);
  qcow2_table_reserve_give_back_locked (u->b->img);
  lock_release (u->b->lock);
  while (r == 0 && !dedup_cannot_empty (&u->give) && stale (u->b) > 0 &&
         clock_now_ns () - start < CLOSE_NS)
    r = empty_slice (&u->give, UINT64_MAX);
  cut_tail (u->b);
}
