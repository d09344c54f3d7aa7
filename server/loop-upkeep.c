/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides when the upkeep of the pool runs: what dedup_due names.
 *
 * A task starts
 *  - at once, if dedup_due calls it urgent;
 *  - COMMIT: at each tick of the commit timer;
 *  - MERGE_IDLE: when no request has changed anything for IDLE_NS, and no job that
 *    changes the image takes its turns;
 *  - CLEAN: likewise, and only if no other task is due, as that would make CLEAN
 *    due again;
 *  - GIVE_BACK: when no other task is due, at each look while no request changes
 *    anything, and else every IDLE_NS;
 *  - all others: as soon as they are due and their slot is free.
 * DISKS is a job (job-disks.c), whose turns come between: after the upkeep that
 * is due at once, and before CLEAN.  It is started when its first turn can come, so
 * that its time is that of its own work, not that of the scan after an open.
 *
 * A task that failed is not tried again for a while, and for longer after each
 * failure: a full disk must not keep a core busy, but new space on it must be
 * noticed.
 *
 * Threads: run_task_cb runs on a thread of libuv's pool, and everything else on the
 * loop thread.
 */
#include <assert.h>
#include <string.h>

#include "checked.h"
#include "log.h"
#include "loop-private.h"

#define RETRY_FIRST_MS 500
#define RETRY_MAX_MS 10000      /* new space on a full disk is noticed by then */

/* The order in which tasks are chosen if several are due: first those that a
 * writer may have to wait for. */
static const enum dedup_job maintenance_order[] = {
  DEDUP_JOB_JOURNAL, DEDUP_JOB_CHECKPOINT, DEDUP_JOB_FREEZE,
  DEDUP_JOB_FILTERS, DEDUP_JOB_SCAN,
};

static const char *
job_name (enum dedup_job job)
{
  switch (job) {
  case DEDUP_JOB_COMMIT: return "commit";
  case DEDUP_JOB_CHECKPOINT: return "checkpoint";
  case DEDUP_JOB_FREEZE: return "freeze";
  case DEDUP_JOB_JOURNAL: return "journal upkeep";
  case DEDUP_JOB_FILTERS: return "loading of index filters";
  case DEDUP_JOB_SCAN: return "scan for free clusters";
  case DEDUP_JOB_CLEAN: return "clean-up when idle";
  case DEDUP_JOB_GIVE_BACK: return "giving back space";
  case DEDUP_JOB_MERGE:
  case DEDUP_JOB_MERGE_IDLE: return "merging of the index";
  case DEDUP_JOB_DISKS: break;  /* job-disks.c */
  }
  return "job";
}

static struct retry *
retry_of (struct srv_loop *l, enum dedup_job job)
{
  int bit = __builtin_ctz (job);

  assert (bit < NR_UPKEEP_JOBS);
  return &l->retry[bit];
}

bool
srv_loop_any_failed (const struct srv_loop *l, unsigned set)
{
  for (; set != 0; set &= set - 1)
    if (l->retry[__builtin_ctz (set)].delay_ms != 0)
      return true;
  return false;
}

/* --- Run a task ------------------------------------------------------------ */

static void
run_task_cb (uv_work_t *work)
{
  struct task *t = work->data;

  t->result = dedup_run (t->loop->p.pool, t->job);
}

/* Logs a failure once, and sets when to try again.  Lack of space has a line of
 * its own (space.h). */
static void
note_failure_on_loop (struct srv_loop *l, struct retry *r, const char *what,
                      int result)
{
  bool no_space = srv_is_no_space (result);

  srv_space_note (l->p.space, result);
  if (!r->logged)
    log_line (l->p.log, no_space ? LOG_DEBUG : LOG_ERROR, "%s: %s failed: %s",
              l->p.path, what, strerror (-result));
  r->logged |= !no_space;
  r->delay_ms = r->delay_ms == 0 ? RETRY_FIRST_MS :
    MIN_OF (2 * r->delay_ms, RETRY_MAX_MS);
  r->not_before_ms = uv_now (&l->uv) + r->delay_ms;
}

static void
note_success_on_loop (struct srv_loop *l, struct retry *r, const char *what)
{
  if (r->delay_ms != 0)
    log_line (l->p.log, r->logged ? LOG_INFO : LOG_DEBUG, "%s: %s succeeded "
              "again", l->p.path, what);
  memset (r, 0, sizeof *r);
}

static void
note_result_on_loop (struct srv_loop *l, const struct task *t)
{
  struct retry *r = retry_of (l, t->job);

  if (t->result < 0)
    note_failure_on_loop (l, r, job_name (t->job), t->result);
  else
    note_success_on_loop (l, r, job_name (t->job));
}

static void
finish_task_on_loop (uv_work_t *work, int status)
{
  struct task *t = work->data;
  struct srv_loop *l = t->loop;

  t->running = false;
  uv_update_time (&l->uv);
  if (status == 0 && !srv_loop_stopping (l))
    note_result_on_loop (l, t);
  l->consider_on_loop (l);
}

static void
start_task_on_loop (struct srv_loop *l, struct task *t, enum dedup_job job)
{
  int r;

  assert (!t->running);
  t->job = job;
  t->running = true;
  r = uv_queue_work (&l->uv, &t->work, run_task_cb, finish_task_on_loop);
  assert (r == 0);              /* fails only without a callback */
  (void) r;
}

/* --- Decisions ------------------------------------------------------------- */

static bool
may_start (struct srv_loop *l, unsigned set, enum dedup_job job)
{
  if (!(set & job))
    return false;
  return uv_now (&l->uv) >= retry_of (l, job)->not_before_ms;
}

/* Returns the first task of maintenance_order in SET that may start, or 0. */
static enum dedup_job
first_of (struct srv_loop *l, unsigned set)
{
  size_t i;

  for (i = 0; i < sizeof maintenance_order / sizeof maintenance_order[0]; ++i)
    if (may_start (l, set, maintenance_order[i]))
      return maintenance_order[i];
  return 0;
}

/* Returns whether it is too early for what supposes that changes have ended. */
static bool
changes_go_on (struct srv_loop *l, const struct look *look)
{
  return !srv_loop_is_idle (l) ||
    (l->p.jobs != NULL && srv_jobs_go_on (l->p.jobs, &look->moment));
}

static bool
may_clean (struct srv_loop *l, const struct look *look)
{
  return may_start (l, look->due, DEDUP_JOB_CLEAN) && !l->merge.running &&
    !may_start (l, look->due, DEDUP_JOB_MERGE) &&
    !may_start (l, look->due, DEDUP_JOB_MERGE_IDLE) && !changes_go_on (l, look);
}

static bool
may_give_back (struct srv_loop *l, const struct look *look)
{
  return may_start (l, look->due, DEDUP_JOB_GIVE_BACK) &&
    (look->urgent & DEDUP_JOB_GIVE_BACK || srv_loop_is_idle (l) ||
     uv_hrtime () - l->gave_back_ns >= IDLE_NS);
}

/* Returns the maintenance that is to run when no turn of a job is. */
static enum dedup_job
choose_late (struct srv_loop *l, const struct look *look)
{
  if (may_clean (l, look))
    return DEDUP_JOB_CLEAN;
  if (!may_give_back (l, look))
    return 0;
  l->gave_back_ns = uv_hrtime ();
  return DEDUP_JOB_GIVE_BACK;
}

static void
consider_maintenance_on_loop (struct srv_loop *l, const struct look *look)
{
  enum dedup_job job;

  if (l->maintenance.running || l->turns[SRV_LANE_UPKEEP].job != NULL)
    return;
  job = first_of (l, look->due & look->urgent);
  if (job == 0)
    job = first_of (l, look->due);
  if (job == 0 &&
      srv_loop_start_turn_on_loop (l, SRV_LANE_UPKEEP, &look->moment))
    return;
  if (job == 0)
    job = choose_late (l, look);
  if (job != 0)
    start_task_on_loop (l, &l->maintenance, job);
}

static void
consider_commit_on_loop (struct srv_loop *l, const struct look *look)
{
  if (l->commit.running)
    return;
  if (!l->commit_wanted && !(look->urgent & DEDUP_JOB_COMMIT))
    return;
  if (!(look->due & DEDUP_JOB_COMMIT))
    l->commit_wanted = false;
  else if (may_start (l, look->due, DEDUP_JOB_COMMIT)) {
    l->commit_wanted = false;
    start_task_on_loop (l, &l->commit, DEDUP_JOB_COMMIT);
  }
}

static void
consider_merge_on_loop (struct srv_loop *l, const struct look *look)
{
  if (l->merge.running)
    return;
  if (may_start (l, look->due, DEDUP_JOB_MERGE))
    start_task_on_loop (l, &l->merge, DEDUP_JOB_MERGE);
  else if (may_start (l, look->due, DEDUP_JOB_MERGE_IDLE) &&
           !changes_go_on (l, look))
    start_task_on_loop (l, &l->merge, DEDUP_JOB_MERGE_IDLE);
}

bool
srv_loop_upkeep_is_first_on_loop (struct srv_loop *l, const struct look *look)
{
  return l->maintenance.running || first_of (l, look->due) != 0;
}

void
srv_loop_upkeep_on_loop (struct srv_loop *l, const struct look *look)
{
  consider_commit_on_loop (l, look);
  consider_maintenance_on_loop (l, look);
  consider_merge_on_loop (l, look);
}

/* --- Begin and end --------------------------------------------------------- */

bool
srv_loop_tasks_run_on_loop (const struct srv_loop *l)
{
  return l->commit.running || l->maintenance.running || l->merge.running;
}

static void
init_task (struct srv_loop *l, struct task *t)
{
  t->loop = l;
  t->work.data = t;
}

void
srv_loop_init_tasks (struct srv_loop *l)
{
  init_task (l, &l->commit);
  init_task (l, &l->maintenance);
  init_task (l, &l->merge);
}
