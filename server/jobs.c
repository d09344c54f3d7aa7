/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the jobs of an image: their list, states, and what users ask of them.
 *
 * A user's call sets what is asked, and the next turn of the job (job-turns.c)
 * follows it; a state that no turn is needed for changes at once.  All changes
 * of a state, and the calls that tell of them, are made under the lock, so they are
 * told in their order.
 *
 * A job's own functions are called under the lock too, if they are cheap, but not
 * step and end.  From its end on, what they said last is kept here.
 *
 * Threads: any.  The lock is a leaf: under it only PROGRESS and DESCRIBE of jobs are
 * called, and CHANGED and WAKE, which do not block.
 */
#include "clock.h"
#include "jobs-private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- States ---------------------------------------------------------------- */

const char *
srv_job_status_name (enum srv_job_status s)
{
  static const char *const names[] = {
    [SRV_JOB_CREATED] = "created", [SRV_JOB_RUNNING] = "running",
    [SRV_JOB_PAUSED] = "paused", [SRV_JOB_STANDBY] = "standby",
    [SRV_JOB_WAITING] = "waiting", [SRV_JOB_PENDING] = "pending",
    [SRV_JOB_ABORTING] = "aborting", [SRV_JOB_CONCLUDED] = "concluded",
    [SRV_JOB_NULL] = "null",
  };

  return names[s];
}

static bool
is_edge (enum srv_job_status from, enum srv_job_status to)
{
  switch (from) {
  case SRV_JOB_CREATED: return to == SRV_JOB_RUNNING;
  case SRV_JOB_RUNNING:
    return to == SRV_JOB_PAUSED || to == SRV_JOB_WAITING ||
      to == SRV_JOB_ABORTING;
  case SRV_JOB_PAUSED: return to == SRV_JOB_RUNNING;
  case SRV_JOB_WAITING: return to == SRV_JOB_PENDING;
  case SRV_JOB_PENDING: return to == SRV_JOB_CONCLUDED;
  case SRV_JOB_ABORTING: return to == SRV_JOB_CONCLUDED;
  case SRV_JOB_CONCLUDED: return to == SRV_JOB_NULL;
  case SRV_JOB_STANDBY: case SRV_JOB_NULL: break;
  }
  return false;
}

void
srv_job_set_status_locked (struct srv_jobs *j, struct srv_job *job,
                           enum srv_job_status status)
{
  assert (lock_held (&j->lock));
  assert (is_edge (job->status, status));
  job->status = status;
  if (j->changed)
    j->changed (j->opaque, job->id, job->ops->type, status);
}

static void
wake_locked (struct srv_jobs *j)
{
  assert (lock_held (&j->lock));
  if (j->wake)
    j->wake (j->opaque);
}

void
srv_jobs_poke (struct srv_jobs *j)
{
  LOCK_FOR_SCOPE (&j->lock);
  wake_locked (j);
}

void
srv_jobs_let_sleep (struct srv_jobs *j)
{
  LOCK_FOR_SCOPE (&j->lock);
  j->wake = NULL;
}

uint64_t
srv_jobs_now_ns (const struct srv_jobs *j)
{
  return j->now_ns ? j->now_ns () : clock_now_ns ();
}

/* --- The list -------------------------------------------------------------- */

static struct srv_job *
find_locked (struct srv_jobs *j, const char *id)
{
  struct srv_job *job;

  assert (lock_held (&j->lock));
  for (job = j->first; job != NULL; job = job->next)
    if (strcmp (job->id, id) == 0)
      return job;
  return NULL;
}

static void
append_locked (struct srv_jobs *j, struct srv_job *job)
{
  struct srv_job **last = &j->first;

  assert (lock_held (&j->lock));
  while (*last)
    last = &(*last)->next;
  *last = job;
  j->nr += !job->by_itself;
}

static void
remove_locked (struct srv_jobs *j, struct srv_job *job)
{
  struct srv_job **at = &j->first;

  assert (lock_held (&j->lock) && job->has_ended && !job->in_turn);
  while (*at != job)
    at = &(*at)->next;
  *at = job->next;
  j->nr -= !job->by_itself;
  for (unsigned i = 0; i < SRV_NR_LANES; i++)
    if (j->lanes[i].last == job)
      j->lanes[i].last = NULL;
  free (job);
}

/* --- Begin ----------------------------------------------------------------- */

static bool
is_letter (char c)
{
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_well_formed (const char *id)
{
  const size_t len = strlen (id);

  if (len > SRV_MAX_JOB_ID || !is_letter (id[0]))
    return false;
  for (size_t i = 1; i < len; i++)
    if (!is_letter (id[i]) && strchr ("0123456789-._", id[i]) == NULL)
      return false;
  return true;
}

/* Writes an id that is not in use, made of the type, and for further jobs a
 * number. */
static void
make_id_locked (struct srv_jobs *j, struct srv_job *job)
{
  const char *type = job->ops->type;
  char id[sizeof job->id];

  snprintf (id, sizeof id, "%s", type);
  for (unsigned n = 2; find_locked (j, id); n++)
    snprintf (id, sizeof id, "%s-%u", type, n);
  strcpy (job->id, id);
}

static int
check_start_locked (struct srv_jobs *j, const char *id, bool by_itself,
                    struct fault *f)
{
  assert (lock_held (&j->lock));
  if (id && !is_well_formed (id))
    return fault_usage (f, "Invalid job ID '%.128s'", id);
  if (id && find_locked (j, id))
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX,
                      "Job ID '%s' already in use", id);
  if (j->stopped)
    return fault_set (f, FAULT_BUSY, ESHUTDOWN, UINT64_MAX, "the image is about "
                      "to be closed");
  if (!by_itself && j->nr >= SRV_MAX_JOBS)
    return fault_set (f, FAULT_USAGE, EMLINK, UINT64_MAX, "there are %u jobs "
                      "already, counting those that have concluded and are not "
                      "dismissed", SRV_MAX_JOBS);
  return 0;
}

static void
begin_locked (struct srv_jobs *j, struct srv_job *job)
{
  append_locked (j, job);
  if (j->changed)
    j->changed (j->opaque, job->id, job->ops->type, SRV_JOB_CREATED);
  srv_job_set_status_locked (j, job, SRV_JOB_RUNNING);
  wake_locked (j);
}

int
srv_jobs_start (struct srv_jobs *j, const char *id,
                const struct srv_job_ops *ops, void *opaque,
                const struct srv_job_options *options, bool by_itself,
                struct fault *f)
{
  struct srv_job *job = calloc (1, sizeof *job);
  int r;

  if (job == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  *job = (struct srv_job) {
    .ops = ops, .opaque = opaque, .by_itself = by_itself,
    .rate = options ? options->rate : 0,
    .manual_dismiss = options && options->manual_dismiss,
    .started_ns = srv_jobs_now_ns (j), .status = SRV_JOB_CREATED,
  };
  LOCK_FOR_SCOPE (&j->lock);
  r = check_start_locked (j, id, by_itself, f);
  if (r < 0) {
    free (job);
    return r;
  }
  if (id)
    strcpy (job->id, id);
  else
    make_id_locked (j, job);
  begin_locked (j, job);
  return 0;
}

/* --- End ------------------------------------------------------------------- */

void
srv_job_progress_locked (struct srv_jobs *j, struct srv_job *job,
                         uint64_t *done, uint64_t *total)
{
  assert (lock_held (&j->lock));
  *done = job->done;
  *total = job->total;
  if (!job->has_ended && job->ops->progress)
    job->ops->progress (job->opaque, done, total);
}

static void
describe_locked (struct srv_job *job, char *buf, size_t len)
{
  if (job->has_ended)
    snprintf (buf, len, "%s", job->details);
  else if (job->ops->describe)
    job->ops->describe (job->opaque, buf, len);
}

void
srv_job_note_end_locked (struct srv_jobs *j, struct srv_job *job, int result)
{
  assert (lock_held (&j->lock) && !job->has_ended);
  srv_job_progress_locked (j, job, &job->done, &job->total);
  if (job->ops->describe)
    job->ops->describe (job->opaque, job->details, sizeof job->details);
  if (result == 0)              /* also where the total was an estimate */
    job->done = job->total;
  job->result = result;
  job->ended_ns = srv_jobs_now_ns (j);
  job->has_ended = true;
}

static void
log_failure (const struct srv_jobs *j, const struct srv_job *job)
{
  if (job->result == -ECANCELED)
    log_line (j->log, LOG_INFO, "%s: job %s was cancelled", j->path, job->id);
  else if (job->result < 0)
    log_line (j->log, LOG_ERROR, "%s: job %s failed: %s", j->path, job->id,
              strerror (-job->result));
}

void
srv_job_conclude_locked (struct srv_jobs *j, struct srv_job *job)
{
  assert (lock_held (&j->lock) && job->has_ended);
  log_failure (j, job);
  if (job->result == 0) {
    srv_job_set_status_locked (j, job, SRV_JOB_WAITING);
    srv_job_set_status_locked (j, job, SRV_JOB_PENDING);
  }
  else
    srv_job_set_status_locked (j, job, SRV_JOB_ABORTING);
  srv_job_set_status_locked (j, job, SRV_JOB_CONCLUDED);
  if (job->manual_dismiss)
    return;
  srv_job_set_status_locked (j, job, SRV_JOB_NULL);
  remove_locked (j, job);
}

/* --- What users ask -------------------------------------------------------- */

enum verb { VERB_CANCEL, VERB_PAUSE, VERB_RESUME, VERB_SET_SPEED, VERB_DISMISS };

static const char *const verb_names[] = {
  [VERB_CANCEL] = "cancel", [VERB_PAUSE] = "pause", [VERB_RESUME] = "resume",
  [VERB_SET_SPEED] = "set-speed", [VERB_DISMISS] = "dismiss",
};

static bool
state_allows (enum srv_job_status s, enum verb v)
{
  switch (s) {
  case SRV_JOB_CREATED: case SRV_JOB_RUNNING: case SRV_JOB_PAUSED:
  case SRV_JOB_STANDBY:
    return v != VERB_DISMISS;
  case SRV_JOB_WAITING: case SRV_JOB_PENDING: return v == VERB_CANCEL;
  case SRV_JOB_CONCLUDED: return v == VERB_DISMISS;
  case SRV_JOB_ABORTING: case SRV_JOB_NULL: break;
  }
  return false;
}

static bool
kind_allows (const struct srv_job_ops *ops, enum verb v)
{
  switch (v) {
  case VERB_CANCEL: return ops->can_cancel;
  case VERB_PAUSE: return ops->can_pause;
  case VERB_RESUME: case VERB_SET_SPEED: case VERB_DISMISS: break;
  }
  return true;
}

/* Finds the job ID, and checks that V may be asked of it. */
static int MUST_CHECK
find_for_locked (struct srv_jobs *j, const char *id, enum verb v,
                 struct srv_job **out, struct fault *f)
{
  struct srv_job *job = find_locked (j, id);

  if (job == NULL)
    return fault_set (f, FAULT_USAGE, ENOENT, UINT64_MAX, "Job not found");
  if (!state_allows (job->status, v))
    return fault_set (f, FAULT_USAGE, EBUSY, UINT64_MAX, "Job '%s' in state '%s' "
                      "cannot accept command verb '%s'", id,
                      srv_job_status_name (job->status), verb_names[v]);
  if (!kind_allows (job->ops, v))
    return fault_set (f, FAULT_USAGE, EBUSY, UINT64_MAX, "Job '%s' of type '%s' "
                      "cannot accept command verb '%s'", id, job->ops->type,
                      verb_names[v]);
  *out = job;
  return 0;
}

int
srv_jobs_pause (struct srv_jobs *j, const char *id, struct fault *f)
{
  struct srv_job *job;
  int r;
  LOCK_FOR_SCOPE (&j->lock);

  r = find_for_locked (j, id, VERB_PAUSE, &job, f);
  if (r < 0)
    return r;
  if (job->pause_asked)
    return fault_set (f, FAULT_USAGE, EBUSY, UINT64_MAX,
                      "Job is already paused");
  if (job->cancel_asked)        /* it ends instead */
    return 0;
  job->pause_asked = true;
  if (!job->in_turn)            /* else at its end */
    srv_job_set_status_locked (j, job, SRV_JOB_PAUSED);
  return 0;
}

/* Takes back the wish to pause. */
static void
go_on_locked (struct srv_jobs *j, struct srv_job *job)
{
  job->pause_asked = false;
  if (job->status == SRV_JOB_PAUSED)
    srv_job_set_status_locked (j, job, SRV_JOB_RUNNING);
  wake_locked (j);
}

int
srv_jobs_resume (struct srv_jobs *j, const char *id, struct fault *f)
{
  struct srv_job *job;
  int r;
  LOCK_FOR_SCOPE (&j->lock);

  job = find_locked (j, id);
  if (job && !job->pause_asked) /* in any state, as QEMU */
    return fault_set (f, FAULT_USAGE, EBUSY, UINT64_MAX, "Can't resume a job that "
                      "was not paused");
  r = find_for_locked (j, id, VERB_RESUME, &job, f);
  if (r < 0)
    return r;
  go_on_locked (j, job);
  return 0;
}

int
srv_jobs_cancel (struct srv_jobs *j, const char *id, struct fault *f)
{
  struct srv_job *job;
  int r;
  LOCK_FOR_SCOPE (&j->lock);

  r = find_for_locked (j, id, VERB_CANCEL, &job, f);
  if (r < 0)
    return r;
  job->cancel_asked = true;
  go_on_locked (j, job);
  return 0;
}

int
srv_jobs_dismiss (struct srv_jobs *j, const char *id, struct fault *f)
{
  struct srv_job *job;
  int r;
  LOCK_FOR_SCOPE (&j->lock);

  r = find_for_locked (j, id, VERB_DISMISS, &job, f);
  if (r < 0)
    return r;
  srv_job_set_status_locked (j, job, SRV_JOB_NULL);
  remove_locked (j, job);
  return 0;
}

int
srv_jobs_set_rate (struct srv_jobs *j, const char *id, uint64_t rate,
                   struct fault *f)
{
  struct srv_job *job;
  int r;
  LOCK_FOR_SCOPE (&j->lock);

  r = find_for_locked (j, id, VERB_SET_SPEED, &job, f);
  if (r < 0)
    return r;
  job->rate = rate;
  job->not_before_ns = 0;
  wake_locked (j);
  return 0;
}

void
srv_jobs_set_all_rate (struct srv_jobs *j, uint64_t rate)
{
  LOCK_FOR_SCOPE (&j->lock);

  j->rate = rate;
  j->not_before_ns = 0;
  wake_locked (j);
}

bool
srv_jobs_has (struct srv_jobs *j, const struct srv_job_ops *ops)
{
  struct srv_job *job;
  LOCK_FOR_SCOPE (&j->lock);

  for (job = j->first; job != NULL; job = job->next)
    if (job->ops == ops && job->status != SRV_JOB_CONCLUDED)
      return true;
  return false;
}

/* --- A list for users ------------------------------------------------------ */

struct entry {                  /* a copy that stays as it is without the lock */
  struct srv_job_info info;
  char id[SRV_MAX_JOB_ID + 1], details[SRV_MAX_JOB_TEXT];
};

static void
fill_entry_locked (struct srv_jobs *j, struct srv_job *job, struct entry *e)
{
  const uint64_t end = job->has_ended ? job->ended_ns : srv_jobs_now_ns (j);

  strcpy (e->id, job->id);
  e->details[0] = '\0';
  describe_locked (job, e->details, sizeof e->details);
  e->info = (struct srv_job_info) {
    .id = e->id, .type = job->ops->type, .status = job->status,
    .can_pause = job->ops->can_pause, .can_cancel = job->ops->can_cancel,
    .resumes = job->ops->resumes, .rate = job->rate,
    .seconds = (double) (end - job->started_ns) / 1e9,
    .error = job->has_ended && job->result < 0 ? strerror (-job->result) : NULL,
    .waits_for = job->retry.why ? strerror (-job->retry.why) : NULL,
    .details = e->details,
  };
  srv_job_progress_locked (j, job, &e->info.done, &e->info.total);
}

/* Copies the list.  *V is the caller's. */
static int
copy_list (struct srv_jobs *j, struct entry **v, size_t *nr)
{
  struct srv_job *job;
  LOCK_FOR_SCOPE (&j->lock);

  *nr = 0;
  for (job = j->first; job != NULL; job = job->next)
    ++*nr;
  *v = calloc (*nr + 1, sizeof **v);
  if (*v == NULL)
    return -ENOMEM;
  *nr = 0;
  for (job = j->first; job != NULL; job = job->next)
    fill_entry_locked (j, job, &(*v)[(*nr)++]);
  return 0;
}

int
srv_jobs_list (struct srv_jobs *j,
               int (*cb) (void *opaque, const struct srv_job_info *info),
               void *opaque)
{
  CLEANUP_FREE struct entry *v = NULL;
  size_t nr;
  int r = copy_list (j, &v, &nr);

  for (size_t i = 0; i < nr && r == 0; i++)
    r = cb (opaque, &v[i].info);
  return r;
}

/* --- Begin and end of all -------------------------------------------------- */

void
srv_jobs_init (struct srv_jobs *j)
{
  lock_init (&j->lock);
}

void
srv_jobs_stop (struct srv_jobs *j)
{
  struct srv_job *job;

  lock_acquire (&j->lock);
  j->stopped = true;
  lock_release (&j->lock);
  /* No job begins or takes a turn from here on, so the list stays. */
  for (job = j->first; job != NULL; job = job->next)
    if (!job->has_ended) {
      assert (!job->in_turn);
      job->has_ended = true;
      job->ops->end (job->opaque, -ESHUTDOWN);
    }
}

void
srv_jobs_destroy (struct srv_jobs *j)
{
  struct srv_job *job, *next;

  for (job = j->first; job != NULL; job = next) {
    next = job->next;
    assert (job->has_ended);
    free (job);
  }
  lock_destroy (&j->lock);
}
