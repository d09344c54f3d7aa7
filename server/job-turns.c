/* SPDX-License-Identifier: BSD-3-Clause */
/* Gives turns to jobs: chooses the next one, runs a step of it, and decides how long
 * it has to rest.
 *
 * Three things make a job wait.  While clients use what its steps slow down, all
 * jobs of a lane rest for four times as long as the last step took, so that they have
 * a fifth of the time together; some kinds of jobs rest longer behind their steps.  A
 * rate limit of the job, or of all jobs, lets the next step begin when the bytes of the
 * last one are paid for.  And a step that failed is tried again after a delay, which
 * doubles each time.
 *
 * A turn is also what ends a job: it calls END after the last step, or instead of
 * a step if the job was cancelled, which needs no waiting.
 *
 * Threads: srv_job_turn runs on any thread, for one job of a lane at a time, and all
 * else on the thread of the loop.
 */
#include "jobs-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "checked.h"

#define REST_FACTOR 4           /* a rest is so many times as long as a step, unless
                                 * the kind of job says otherwise */
#define MAX_REST_NS (100 * NS_PER_MS)   /* of such a kind: a step that takes longer
                                 * has waited for the disk */
#define RETRY_FIRST_MS 500
#define RETRY_MAX_MS 10000      /* new space on a full disk is noticed by then */
#define NS_PER_MS UINT64_C (1000000)
#define MAX_WAIT_NS 1e18        /* of a limit: 30 years */

static enum srv_job_lane
lane_of (const struct srv_job *job)
{
  return job->ops->when == SRV_JOB_AFTER_UPKEEP ? SRV_LANE_UPKEEP
    : SRV_LANE_STEPS;
}

/* --- The choice ------------------------------------------------------------ */

/* Returns when the limits and the last failure of JOB allow the next step. */
static uint64_t
may_step_ns (const struct srv_jobs *j, const struct srv_job *job)
{
  uint64_t t = MAX_OF (j->not_before_ns, j->lanes[lane_of (job)].rest_ns);

  t = MAX_OF (t, job->not_before_ns);
  return MAX_OF (t, job->retry.not_before_ns);
}

static bool
is_ready (const struct srv_job *job)
{
  return job->ops->is_ready == NULL || job->ops->is_ready (job->opaque);
}

static bool
wants_turn (const struct srv_job *job)
{
  return job->status == SRV_JOB_RUNNING && !job->in_turn && !job->has_ended;
}

static bool
can_step_locked (struct srv_jobs *j, const struct srv_job *job,
                 enum srv_job_when when, uint64_t now)
{
  assert (lock_held (&j->lock));
  return job->ops->when == when && wants_turn (job) &&
    now >= may_step_ns (j, job) && is_ready (job);
}

/* Returns the job after LAST that can take a step, in a circle; NULL: none. */
static struct srv_job *
next_locked (struct srv_jobs *j, enum srv_job_lane lane,
             enum srv_job_when when, uint64_t now)
{
  struct srv_job *last = j->lanes[lane].last, *job;

  for (job = last ? last->next : NULL; job != NULL; job = job->next)
    if (can_step_locked (j, job, when, now))
      return job;
  for (job = j->first; job != NULL; job = job->next) {
    if (can_step_locked (j, job, when, now))
      return job;
    if (job == last)
      break;
  }
  return NULL;
}

static struct srv_job *
cancelled_locked (struct srv_jobs *j, enum srv_job_lane lane)
{
  struct srv_job *job;

  for (job = j->first; job != NULL; job = job->next)
    if (job->cancel_asked && wants_turn (job) && lane_of (job) == lane)
      return job;
  return NULL;
}

/* Returns whether a job of any time keeps those waiting that are for idle times: one
 * without a limit, whose last step did not fail. */
static bool
others_go_on_locked (struct srv_jobs *j)
{
  struct srv_job *job;

  for (job = j->first; job != NULL; job = job->next)
    if (job->ops->when == SRV_JOB_ANY_TIME && job->rate == 0 &&
        job->status == SRV_JOB_RUNNING && job->retry.why == 0)
      return true;
  return false;
}

static struct srv_job *
choose_locked (struct srv_jobs *j, enum srv_job_lane lane,
               const struct srv_moment *m, uint64_t now)
{
  struct srv_job *job = cancelled_locked (j, lane);

  assert (lock_held (&j->lock));
  if (job == NULL)
    job = next_locked (j, lane, lane == SRV_LANE_UPKEEP ? SRV_JOB_AFTER_UPKEEP
                       : SRV_JOB_ANY_TIME, now);
  if (job == NULL && lane == SRV_LANE_STEPS && m->idle &&
      !others_go_on_locked (j))
    job = next_locked (j, lane, SRV_JOB_WHEN_IDLE, now);
  return job;
}

struct srv_job *
srv_jobs_take_turn (struct srv_jobs *j, enum srv_job_lane lane,
                    const struct srv_moment *m)
{
  const uint64_t now = srv_jobs_now_ns (j);
  struct srv_job *job;
  LOCK_FOR_SCOPE (&j->lock);

  if (j->stopped)
    return NULL;
  job = choose_locked (j, lane, m, now);
  if (job)
    job->in_turn = true;
  return job;
}

uint64_t
srv_jobs_next_ns (struct srv_jobs *j, enum srv_job_lane lane)
{
  const uint64_t now = srv_jobs_now_ns (j);
  uint64_t first = UINT64_MAX, t;
  struct srv_job *job;
  LOCK_FOR_SCOPE (&j->lock);

  for (job = j->first; job != NULL; job = job->next)
    if (lane_of (job) == lane && wants_turn (job) &&
        (t = may_step_ns (j, job)) > now)
      first = MIN_OF (first, t);
  return first;
}

bool
srv_jobs_go_on (struct srv_jobs *j, const struct srv_moment *m)
{
  struct srv_job *job;
  LOCK_FOR_SCOPE (&j->lock);

  for (job = j->first; job != NULL; job = job->next)
    if (job->ops->changes && lane_of (job) == SRV_LANE_STEPS &&
        (job->in_turn ||
         (wants_turn (job) && job->retry.why == 0 &&
          (job->ops->when == SRV_JOB_ANY_TIME || m->idle) &&
          is_ready (job))))
      return true;
  return false;
}

/* --- A turn ---------------------------------------------------------------- */

static bool
is_temporary (const struct srv_job *job, int r)
{
  return job->ops->keeps_trying || srv_is_no_space (r) || r == -ENOMEM ||
    r == -EINTR;
}

/* Returns whether the job ends with the step whose result is R. */
static bool
is_last (const struct srv_job *job, int r)
{
  return r == 0 || r == -ECANCELED || (r < 0 && !is_temporary (job, r));
}

static void
run_step (struct srv_jobs *j, struct srv_job *job, bool cancelled)
{
  const uint64_t start = srv_jobs_now_ns (j);

  job->step_result = cancelled ? -ECANCELED : job->ops->step (job->opaque);
  job->took_ns = srv_jobs_now_ns (j) - start;
}

void
srv_job_turn (struct srv_jobs *j, struct srv_job *job)
{
  uint64_t before, after, total;
  bool cancelled, last;

  lock_acquire (&j->lock);
  assert (job->in_turn);
  cancelled = job->cancel_asked;
  srv_job_progress_locked (j, job, &before, &total);
  lock_release (&j->lock);

  run_step (j, job, cancelled);
  last = is_last (job, job->step_result);

  lock_acquire (&j->lock);
  srv_job_progress_locked (j, job, &after, &total);
  job->bytes = after > before ? after - before : 0;
  if (last)
    srv_job_note_end_locked (j, job, MIN_OF (job->step_result, 0));
  lock_release (&j->lock);

  if (job->step_result != -ECANCELED && job->step_result != -EINTR)
    srv_space_note (j->space, job->step_result);
  if (last)
    job->ops->end (job->opaque, MIN_OF (job->step_result, 0));
}

/* --- Afterwards ------------------------------------------------------------ */

/* Logs a failure once, and sets when to try again.  Lack of space has a line of
 * its own (space.h). */
static void
note_failure_locked (struct srv_jobs *j, struct srv_job *job, uint64_t now)
{
  const bool no_space = srv_is_no_space (job->step_result);

  if (!job->retry.logged)
    log_line (j->log, no_space ? LOG_DEBUG : LOG_ERROR, "%s: job %s: a step "
              "failed: %s", j->path, job->id, strerror (-job->step_result));
  job->retry.logged |= !no_space;
  job->retry.why = job->step_result;
  job->retry.delay_ms = job->retry.delay_ms == 0 ? RETRY_FIRST_MS :
    MIN_OF (2 * job->retry.delay_ms, RETRY_MAX_MS);
  job->retry.not_before_ns = now + job->retry.delay_ms * NS_PER_MS;
}

static void
note_success_locked (struct srv_jobs *j, struct srv_job *job)
{
  if (job->retry.why != 0)
    log_line (j->log, job->retry.logged ? LOG_INFO : LOG_DEBUG, "%s: job %s: "
              "steps succeed again", j->path, job->id);
  memset (&job->retry, 0, sizeof job->retry);
}

/* Returns when the bytes of a step are paid for that began at START. */
static uint64_t
paid_ns (uint64_t rate, uint64_t not_before_ns, uint64_t start, uint64_t bytes)
{
  if (rate == 0)
    return 0;
  return MAX_OF (not_before_ns, start) +
    (uint64_t) MIN_OF ((double) bytes * 1e9 / (double) rate, MAX_WAIT_NS);
}

static void
note_limits_locked (struct srv_jobs *j, struct srv_job *job, uint64_t now)
{
  const uint64_t start = now - MIN_OF (now, job->took_ns);

  job->not_before_ns = paid_ns (job->rate, job->not_before_ns, start,
                                job->bytes);
  j->not_before_ns = paid_ns (j->rate, j->not_before_ns, start, job->bytes);
}

/* Returns whether the step of JOB slowed clients down. */
static bool
was_in_the_way (const struct srv_job *job, const struct srv_moment *m)
{
  if (job->has_ended || job->ops->slows_clients == NULL)
    return m->busy;
  return job->ops->slows_clients (job->opaque);
}

static uint64_t
rest_ns (const struct srv_job *job)
{
  const unsigned factor = job->ops->rest_factor;

  return factor == 0 ? REST_FACTOR * job->took_ns
    : MIN_OF (factor * job->took_ns, MAX_REST_NS);
}

static void
note_step_locked (struct srv_jobs *j, struct srv_job *job, uint64_t now)
{
  if (job->step_result == -EINTR)       /* the loop is about to stop */
    job->retry.not_before_ns = now + RETRY_FIRST_MS * NS_PER_MS;
  else if (job->step_result < 0)
    note_failure_locked (j, job, now);
  else
    note_success_locked (j, job);
  if (job->pause_asked)
    srv_job_set_status_locked (j, job, SRV_JOB_PAUSED);
}

void
srv_jobs_finish_turn (struct srv_jobs *j, enum srv_job_lane lane,
                      struct srv_job *job, const struct srv_moment *m)
{
  const uint64_t now = srv_jobs_now_ns (j);
  LOCK_FOR_SCOPE (&j->lock);

  assert (job->in_turn && lane_of (job) == lane);
  job->in_turn = false;
  j->lanes[lane].last = job;
  note_limits_locked (j, job, now);
  if (was_in_the_way (job, m))
    j->lanes[lane].rest_ns = now + rest_ns (job);
  if (job->has_ended)
    srv_job_conclude_locked (j, job);
  else
    note_step_locked (j, job, now);
}
