/* SPDX-License-Identifier: BSD-3-Clause */
/* Background work: what is due, and doing it; and what a writer does who
 * finds no room.
 *
 * Everything but COMMIT runs under the maintenance mutex, one job at a time.
 * A writer without room does the work itself, or waits on that mutex while
 * the loop does it: nothing depends on the loop being there.  A writer inside
 * the gate may wait for the mutex: its holder may pass the gate too, but the
 * gate is closed only by dedup_clean, which needs the mutex itself and gives up
 * while anybody is inside, and briefly while bit 48 is being set, which waits
 * for nothing but I/O.
 */
#include "direct.h"

#include <errno.h>

/* Records of an operation on one cluster: its link, the old one's drop (up to
 * three clusters when compressed), and its share of new tables. */
#define RECORDS_PER_CLUSTER 8
/* Dirty tables beyond this share of the journal make a checkpoint due. */
#define LONG_JOURNAL(c) ((c)->max_journal_areas / 2)

static bool
stopping (struct dedup_disk *d)
{
  return __atomic_load_n (&d->stop, __ATOMIC_RELAXED);
}

void
dedup_stop_jobs (struct dedup_disk *d)
{
  __atomic_store_n (&d->stop, true, __ATOMIC_RELAXED);
  if (d->index)
    dedup_index_stop (d->index);
}

/* --- room ------------------------------------------------------------------------- */

static bool
commit_due_locked (struct dedup_disk *d)
{
  return d->uncommitted_bytes > DEDUP_UNCOMMITTED_HIGH ||
    dedup_journal_filling_locked (d->journal);
}

bool
dedup_room_locked (struct dedup_disk *d, size_t nr, size_t nr_inserts)
{
  assert (lock_held (d->lock));
  if (commit_due_locked (d))
    dedup_ask_for_commit_locked (d);
  /* The last half area is for maintenance, which makes room. */
  if (dedup_journal_left_locked (d->journal) < dedup_area_blocks (d) / 2 ||
      !dedup_journal_room_locked (d->journal, nr * RECORDS_PER_CLUSTER +
                                  DEDUP_OPERATION_RECORDS, 0))
    return false;
  if (qcow2_dirty_bytes_locked (d->img) > d->dirty_max)
    return false;
  return nr_inserts == 0 || dedup_index_room_locked (d, nr_inserts);
}

/* Blocks between the checkpoint and the one being filled. */
static uint64_t
replay_blocks_locked (struct dedup_disk *d)
{
  return dedup_journal_seq_locked (d->journal) - d->checkpoint;
}

static bool
checkpoint_due_locked (struct dedup_disk *d)
{
  return qcow2_dirty_bytes_locked (d->img) > d->dirty_high ||
    replay_blocks_locked (d) > LONG_JOURNAL (d->config) * dedup_area_blocks (d);
}

/* --- scan -------------------------------------------------------------------------------- */

struct garbage {
  struct dedup_disk *d;
  uint64_t *v;
  size_t nr, max;
};

/* Remember; what does not fit in memory is left to the next session. */
static void
garbage_found (void *opaque, uint64_t host_idx)
{
  struct garbage *g = opaque;
  size_t max = g->max ? g->max * 2 : 1024;
  uint64_t *v;

  if (g->nr == g->max) {
    v = realloc (g->v, max * sizeof *v);
    if (v == NULL)
      return;
    g->v = v;
    g->max = max;
  }
  g->v[g->nr++] = host_idx;
}

/* Still garbage?  Then it is freed, for the next user. */
static int
collect_cluster (struct dedup_disk *d, struct qcow2_txn *txn,
                 uint64_t host_idx)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .count = 1,
  };
  struct qcow2_run run = { .host_idx = host_idx, .count = 1,
                           .trimmed = true };
  uint64_t refcount;
  bool anchored;
  int r;

  LOCK_FOR_SCOPE (d->lock);
  if (!dedup_room_locked (d, 1, 0))
    return -EBUSY;
  r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &anchored);
  if (r == 0)
    r = qcow2_prepare_host_locked (txn, host_idx, 1);
  if (r < 0 || !anchored || refcount != 1 ||
      qcow2_is_held_locked (d->img, host_idx))
    return r;
  dedup_change_locked (d, txn, &c);
  qcow2_quarantine_locked (d->img, &run,
                           dedup_journal_seq_locked (d->journal));
  dedup_journal_end_locked (d->journal);
  return 0;
}

static int
room_for_maintenance (struct dedup_disk *d)
{
  int r = dedup_journal_extend (d);

  if (r == 0)
    r = dedup_checkpoint (d);
  return r == 0 ? dedup_freeze (d) : r;
}

static int
collect_garbage (struct dedup_disk *d, const struct garbage *g)
{
  struct qcow2_txn txn;
  size_t i = 0;
  int r = 0;

  while (i < g->nr && r == 0 && !stopping (d)) {
    if (dedup_area_contains (d, g->v[i])) {
      i++;
      continue;
    }
    r = dedup_change_begin (d);
    if (r < 0)
      break;
    qcow2_txn_begin (d->img, &txn);
    while ((r = collect_cluster (d, &txn, g->v[i])) == -EAGAIN)
      if ((r = qcow2_txn_load (&txn)) < 0)
        break;
    qcow2_txn_end (&txn);
    dedup_change_end (d);
    if (r == -EBUSY)
      r = room_for_maintenance (d);
    else
      i++;
  }
  return r;
}

/* 1: more to scan. */
static int
scan (struct dedup_disk *d)
{
  struct garbage g = { .d = d };
  int r, more;

  more = qcow2_scan_step (d->img, garbage_found, &g);
  r = more < 0 ? more : collect_garbage (d, &g);
  free (g.v);
  return r < 0 ? r : more;
}

/* --- a writer without room ------------------------------------------------------------------- */

static bool
has_frozen (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return dedup_index_frozen_locked (d->index);
}

static bool
index_full (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return !dedup_index_room_locked (d, DEDUP_CHUNK_CLUSTERS);
}

static bool
too_dirty (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_dirty_bytes_locked (d->img) > d->dirty_max;
}

int
dedup_make_room (struct dedup_disk *d)
{
  int r;

  dedup_wake (d);
  pthread_mutex_lock (&d->maintenance);
  r = dedup_failed (d);
  if (r == 0)
    r = dedup_flush (d);
  if (r == 0)
    r = dedup_journal_extend (d);
  if (r == 0 && too_dirty (d))
    r = dedup_checkpoint (d);
  if (r == 0 && has_frozen (d) && index_full (d)) {
    r = dedup_freeze (d);
    if (r == -ENOSPC)
      r = dedup_drop_frozen (d);
  }
  pthread_mutex_unlock (&d->maintenance);
  return r;
}

int
dedup_find_space (struct dedup_disk *d)
{
  int r;

  pthread_mutex_lock (&d->maintenance);
  lock_acquire (d->lock);
  dedup_ahead_give_back_locked (d);
  lock_release (d->lock);
  r = dedup_failed (d);
  if (r == 0)
    while ((r = scan (d)) == 1 && !stopping (d))
      ;
  if (r >= 0)
    r = dedup_drain_quarantine (d);
  if (r >= 0)
    dedup_wait_for_freeing (d);
  pthread_mutex_unlock (&d->maintenance);
  return r;
}

/* --- due and run -------------------------------------------------------------------------------- */

unsigned
dedup_due (struct dedup_disk *d, unsigned *urgent)
{
  unsigned due = 0, now = 0, index_due;

  if (urgent)
    *urgent = 0;
  if (d->direct)
    return dedup_direct_due (d, urgent);
  if (!d->has_store || !d->writable)
    return 0;
  LOCK_FOR_SCOPE (d->lock);
  if (d->failed)
    return 0;
  if (dedup_journal_pending_locked (d->journal) > 0 ||
      dedup_quarantined_locked (d) > 0)
    due |= DEDUP_JOB_COMMIT;
  if (commit_due_locked (d) ||
      dedup_quarantine_due_locked (d) || dedup_spare_due_locked (d) ||
      dedup_ahead_due_locked (d))
    now |= DEDUP_JOB_COMMIT;
  if (checkpoint_due_locked (d) || dedup_config_owed (d))
    now |= DEDUP_JOB_CHECKPOINT;
  if (dedup_index_frozen_locked (d->index))
    now |= DEDUP_JOB_FREEZE;
  if (dedup_journal_low_locked (d))
    now |= DEDUP_JOB_JOURNAL;
  index_due = dedup_index_due (d->index);
  if (index_due & DEDUP_INDEX_LOAD)
    now |= DEDUP_JOB_FILTERS;
  if (index_due & DEDUP_INDEX_MERGE)
    now |= DEDUP_JOB_MERGE;
  if (index_due & DEDUP_INDEX_MERGE_IDLE)
    due |= DEDUP_JOB_MERGE_IDLE;
  if (!qcow2_scan_done_locked (d->img))
    now |= DEDUP_JOB_SCAN;
  if (d->recovery_bit)
    due |= DEDUP_JOB_CLEAN;
  if (dedup_give_back_due_locked (d))
    due |= DEDUP_JOB_GIVE_BACK;
  if (dedup_give_back_busy_locked (d))
    now |= DEDUP_JOB_GIVE_BACK;
  if (urgent)
    *urgent = now;
  return due | now;
}

static int
commit_job (struct dedup_disk *d)
{
  bool idle;
  int r;

  lock_acquire (d->lock);
  d->commit_asked = false;
  idle = dedup_journal_pending_locked (d->journal) == 0 &&
    dedup_quarantined_locked (d) > 0;
  lock_release (d->lock);
  r = idle ? dedup_commit_empty (d) : dedup_flush (d);
  if (r == 0 && idle)           /* to say so, and to say that: see law 6 */
    r = dedup_commit_empty (d);
  if (r == 0)
    r = dedup_release_quarantine (d);
  if (r == 0)
    dedup_spare_fill (d);
  if (r == 0)
    dedup_ahead_fill (d);
  return r;
}

static int
run_maintenance (struct dedup_disk *d, enum dedup_job job)
{
  int r;

  switch (job) {
  case DEDUP_JOB_CHECKPOINT: return dedup_checkpoint (d);
  case DEDUP_JOB_FREEZE: return dedup_freeze (d);
  case DEDUP_JOB_JOURNAL: return dedup_journal_extend (d);
  case DEDUP_JOB_FILTERS: return dedup_index_load_next (d->index);
  case DEDUP_JOB_SCAN:
    r = scan (d);
    return MIN_OF (r, 0);
  case DEDUP_JOB_CLEAN:
    r = dedup_clean (d);
    return MIN_OF (r, 0);
  default: return -EINVAL;
  }
}

int
dedup_run (struct dedup_disk *d, enum dedup_job job)
{
  int r;

  if (d->direct)
    return dedup_direct_run (d, job);
  if (job == DEDUP_JOB_COMMIT)
    return commit_job (d);
  if (job == DEDUP_JOB_MERGE || job == DEDUP_JOB_MERGE_IDLE)
    return dedup_merge_step (d, job == DEDUP_JOB_MERGE_IDLE);
  if (job == DEDUP_JOB_GIVE_BACK)
    return dedup_give_back (d);
  pthread_mutex_lock (&d->maintenance);
  r = dedup_failed (d);
  if (r == 0)
    r = run_maintenance (d, job);
  pthread_mutex_unlock (&d->maintenance);
  return r;
}
