/* SPDX-License-Identifier: BSD-3-Clause */
/* Says which jobs are due, and runs one of them or one step of it.
 *
 * COMMIT, MERGE and GIVE_BACK take the locks that they need themselves; all
 * other jobs run under the maintenance mutex, one at a time.
 */
#include "upkeep-private.h"

#include <errno.h>

void
dedup_upkeep_stop (struct dedup_upkeep *u)
{
  __atomic_store_n (&u->stop, true, __ATOMIC_RELAXED);
  if (u->s->index)
    dedup_index_stop (u->s->index);
}

unsigned
dedup_upkeep_due (struct dedup_upkeep *u, unsigned *urgent)
{
  unsigned due = 0, now = 0, index_due;

  if (urgent)
    *urgent = 0;
  if (!u->s->has_store || !u->b->writable)
    return 0;
  LOCK_FOR_SCOPE (u->b->lock);
  if (u->s->gate.failed)
    return 0;
  if (dedup_journal_pending_locked (u->s->journal) > 0 ||
      dedup_quarantined_locked (u->s) > 0)
    due |= DEDUP_JOB_COMMIT;
  if (dedup_commit_due_locked (u) || dedup_quarantine_due_locked (u->s) ||
      dedup_reserve_due_locked (&u->reserve) ||
      dedup_prewrite_due_locked (&u->prewrite))
    now |= DEDUP_JOB_COMMIT;
  if (dedup_checkpoint_due_locked (u) || dedup_config_owed (u->s) ||
      dedup_quarantine_shut_locked (u->s))
    now |= DEDUP_JOB_CHECKPOINT;
  if (dedup_index_frozen_locked (u->s->index))
    now |= DEDUP_JOB_FREEZE;
  if (dedup_journal_low_locked (u->s) || dedup_pack_due_locked (u->s))
    now |= DEDUP_JOB_JOURNAL;
  index_due = dedup_index_due (u->s->index);
  if (index_due & DEDUP_INDEX_LOAD)
    now |= DEDUP_JOB_FILTERS;
  if (index_due & DEDUP_INDEX_MERGE)
    now |= DEDUP_JOB_MERGE;
  if (index_due & DEDUP_INDEX_MERGE_IDLE)
    due |= DEDUP_JOB_MERGE_IDLE;
  if (dedup_scan_due_locked (u))
    now |= DEDUP_JOB_SCAN;
  if (u->s->gate.recovery_bit && !u->s->work_left)
    due |= DEDUP_JOB_CLEAN;
  if (dedup_give_back_due_locked (&u->give))
    due |= DEDUP_JOB_GIVE_BACK;
  if (dedup_give_back_busy_locked (&u->give))
    now |= DEDUP_JOB_GIVE_BACK;
  if (urgent)
    *urgent = now;
  return due | now;
}

static int
commit_job (struct dedup_upkeep *u)
{
  bool idle;
  int r;

  lock_acquire (u->b->lock);
  u->s->gate.commit_asked = false;
  idle = dedup_journal_pending_locked (u->s->journal) == 0 &&
    dedup_quarantined_locked (u->s) > 0;
  lock_release (u->b->lock);
  r = idle ? dedup_commit_empty (u->s) : dedup_upkeep_flush (u);
  /* The first block says that the records are durable, this one says so of the
   * first: law 6. */
  if (r == 0 && idle)
    r = dedup_commit_empty (u->s);
  if (r == 0)
    r = dedup_release_quarantine (u);
  if (r == 0)
    dedup_reserve_fill (u);
  if (r == 0)
    dedup_prewrite_fill (&u->prewrite);
  return r;
}

static int
run_maintenance (struct dedup_upkeep *u, enum dedup_job job)
{
  int r;

  switch (job) {
  case DEDUP_JOB_CHECKPOINT: return dedup_checkpoint (u->s);
  case DEDUP_JOB_FREEZE: return dedup_freeze (u);
  case DEDUP_JOB_JOURNAL: return dedup_journal_extend (u);
  case DEDUP_JOB_FILTERS: return dedup_index_load_next (u->s->index);
  case DEDUP_JOB_SCAN:
    r = dedup_scan (u);
    return MIN_OF (r, 0);
  case DEDUP_JOB_CLEAN:
    r = dedup_clean (u);
    return MIN_OF (r, 0);
  default: return -EINVAL;
  }
}

int
dedup_upkeep_run (struct dedup_upkeep *u, enum dedup_job job)
{
  int r;

  if (job == DEDUP_JOB_COMMIT)
    return commit_job (u);
  if (job == DEDUP_JOB_MERGE || job == DEDUP_JOB_MERGE_IDLE)
    return dedup_merge_step (u, job == DEDUP_JOB_MERGE_IDLE);
  if (job == DEDUP_JOB_GIVE_BACK)
    return dedup_give_back (u);
  dedup_maintenance_begin (u);
  r = dedup_gate_failed (&u->s->gate);
  if (r == 0)
    r = run_maintenance (u, job);
  dedup_maintenance_end (u);
  return r == -EBUSY ? 0 : r;   /* still due */
}
