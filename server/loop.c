/* SPDX-License-Identifier: BSD-3-Clause */
/* The background of an export, on libuv.
 *
 * One loop thread only decides; the jobs themselves run on libuv's pool, so
 * that the loop never blocks.  Four slots: commits and merges of the index
 * have one each, for they may run beside anything; all other jobs share the
 * third, for the disk allows one of them at a time.  The fourth is for steps of
 * indexing what the image holds already (export.c says whether), which are
 * requests more than jobs; while clients change something they take a fifth of
 * the time.
 *
 * When a job runs:
 *  - one that the disk calls urgent: at once;
 *  - COMMIT: at each tick of the commit timer;
 *  - MERGE_IDLE: when no request has changed anything for IDLE_NS, and no step
 *    is waiting for its turn;
 *  - CLEAN: likewise, and no other job is due, since those would make it due
 *    again;
 *  - GIVE_BACK: at each look while no request changes anything, else each
 *    IDLE_NS, and when nothing else is to be done;
 *  - the rest: as soon as it is due and the slot is free.
 * A job that failed is left alone for a while, longer each time: a full disk
 * must not keep a core busy, and shall be noticed to have space again.
 *
 * Threads: everything but the entry points runs on the loop thread or, for
 * run_task_cb, on a pool thread.  Signals are blocked in both, because they
 * are the host program's.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "checked.h"
#include "log.h"
#include "loop.h"

#define HOUSEKEEPING_MS 200
#define IDLE_NS (UINT64_C (3) * 1000 * 1000 * 1000)
#define RETRY_FIRST_MS 500
#define RETRY_MAX_MS 10000     /* space on a full disk is noticed this late */

#define NR_JOBS 10             /* bits of enum dedup_job */

#define STEP_PAUSE 4           /* times as long as a step took */
#define BUSY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

struct task {
  struct srv_loop *loop;       /* constant */

  /* Loop thread only, but for the pool thread while it runs: */
  uv_work_t work;
  enum dedup_job job;
  int result;
  bool running;
};

struct retry {
  uint64_t not_before_ms;      /* uv_now */
  unsigned delay_ms;           /* 0: the last run succeeded */
  bool said;                   /* a line told of the failure */
};

struct steps {
  /* Constant after start: */
  int (*run) (void *opaque);   /* NULL: none */
  void *opaque;

  /* Loop thread only, but for the pool thread while it runs: */
  uv_work_t work;
  int result;
  uint64_t took_ns;
  bool running, done;
  struct retry retry;
};

struct srv_loop {
  /* Constant after start: */
  struct dedup_disk *disk;
  const char *path;
  const struct log_sink *log;
  unsigned commit_interval_ms;
  const uint64_t *last_change_ns;
  struct srv_space *space;
  uv_thread_t thread;

  /* Any thread: */
  uv_async_t wake;

  /* Atomic: */
  bool stopping;

  /* Loop thread only: */
  uv_loop_t uv;
  uv_timer_t commit_timer, housekeeping;
  struct task commit, maintenance, merge;
  struct steps steps;
  struct retry retry[NR_JOBS];
  bool commit_wanted;          /* the timer ticked */
  uint64_t gave_back_ns;       /* when GIVE_BACK began last */
};

/* In the order in which they are chosen where several are due: what a
 * writer may come to wait for is first. */
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
  case DEDUP_JOB_FILTERS: return "loading of filters";
  case DEDUP_JOB_SCAN: return "scan";
  case DEDUP_JOB_CLEAN: return "clean-up when idle";
  case DEDUP_JOB_GIVE_BACK: return "giving back space";
  case DEDUP_JOB_MERGE:
  case DEDUP_JOB_MERGE_IDLE: return "merging of the index";
  }
  return "job";
}

static struct retry *
retry_of (struct srv_loop *l, enum dedup_job job)
{
  int bit = __builtin_ctz (job);

  assert (bit < NR_JOBS);
  return &l->retry[bit];
}

static bool
stopping (const struct srv_loop *l)
{
  return __atomic_load_n (&l->stopping, __ATOMIC_ACQUIRE);
}

static bool
idle_long_enough (const struct srv_loop *l)
{
  uint64_t last = __atomic_load_n (l->last_change_ns, __ATOMIC_RELAXED);
  uint64_t now = uv_hrtime ();

  return now > last && now - last >= IDLE_NS;
}

/* --- Tasks --------------------------------------------------------------- */

static void consider_jobs_on_loop (struct srv_loop *l);

static void
run_task_cb (uv_work_t *work)
{
  struct task *t = work->data;

  t->result = dedup_run (t->loop->disk, t->job);
}

/* Lack of space has its own line (space.h). */
static void
note_failure_on_loop (struct srv_loop *l, struct retry *r, const char *what,
                      int result)
{
  bool no_space = srv_is_no_space (result);

  srv_space_note (l->space, result);
  if (!r->said)
    log_line (l->log, no_space ? LOG_DEBUG : LOG_ERROR, "%s: %s failed: %s",
              l->path, what, strerror (-result));
  r->said |= !no_space;
  r->delay_ms = r->delay_ms == 0 ? RETRY_FIRST_MS :
    MIN_OF (2 * r->delay_ms, RETRY_MAX_MS);
  r->not_before_ms = uv_now (&l->uv) + r->delay_ms;
}

static void
note_success_on_loop (struct srv_loop *l, struct retry *r, const char *what)
{
  if (r->delay_ms != 0)
    log_line (l->log, r->said ? LOG_INFO : LOG_DEBUG, "%s: %s goes on",
              l->path, what);
  memset (r, 0, sizeof *r);
}

static void
finish_task_on_loop (uv_work_t *work, int status)
{
  struct task *t = work->data;
  struct srv_loop *l = t->loop;

  t->running = false;
  uv_update_time (&l->uv);
  if (status == 0 && !stopping (l)) {
    struct retry *r = retry_of (l, t->job);

    if (t->result < 0)
      note_failure_on_loop (l, r, job_name (t->job), t->result);
    else
      note_success_on_loop (l, r, job_name (t->job));
  }
  consider_jobs_on_loop (l);
}

static void
start_task_on_loop (struct srv_loop *l, struct task *t, enum dedup_job job)
{
  int r;

  assert (!t->running);
  t->job = job;
  t->running = true;
  r = uv_queue_work (&l->uv, &t->work, run_task_cb, finish_task_on_loop);
  assert (r == 0);             /* fails only without a callback */
  (void) r;
}

/* --- Steps --------------------------------------------------------------- */

static bool
clients_are_busy (const struct srv_loop *l)
{
  uint64_t last = __atomic_load_n (l->last_change_ns, __ATOMIC_RELAXED);

  return last != 0 && uv_hrtime () - last < BUSY_NS;
}

static void
run_step_cb (uv_work_t *work)
{
  struct steps *s = &((struct srv_loop *) work->data)->steps;
  uint64_t start = uv_hrtime ();

  s->result = s->run (s->opaque);
  s->took_ns = uv_hrtime () - start;
}

static void
finish_step_on_loop (uv_work_t *work, int status)
{
  struct srv_loop *l = work->data;
  struct steps *s = &l->steps;

  s->running = false;
  uv_update_time (&l->uv);
  if (status != 0 || stopping (l))
    s->done = true;
  else if (s->result < 0)
    note_failure_on_loop (l, &s->retry, "indexing", s->result);
  else {
    note_success_on_loop (l, &s->retry, "indexing");
    s->done = s->result == 0;
    if (clients_are_busy (l))
      s->retry.not_before_ms = uv_now (&l->uv) +
        s->took_ns * STEP_PAUSE / 1000000;
  }
  consider_jobs_on_loop (l);
}

static void
consider_step_on_loop (struct srv_loop *l)
{
  struct steps *s = &l->steps;
  int r;

  if (s->run == NULL || s->running || s->done ||
      uv_now (&l->uv) < s->retry.not_before_ms)
    return;
  s->running = true;
  r = uv_queue_work (&l->uv, &s->work, run_step_cb, finish_step_on_loop);
  assert (r == 0);
  (void) r;
}

/* Under way, or about to be: not waiting for space on the disk, say. */
static bool
steps_go_on (const struct srv_loop *l)
{
  return l->steps.run && !l->steps.done && l->steps.retry.delay_ms == 0;
}

/* --- Decisions ----------------------------------------------------------- */

static bool
may_start (struct srv_loop *l, unsigned set, enum dedup_job job)
{
  if (!(set & job))
    return false;
  return uv_now (&l->uv) >= retry_of (l, job)->not_before_ms;
}

/* The first of the ordered jobs in SET that may start, or 0. */
static enum dedup_job
first_of (struct srv_loop *l, unsigned set)
{
  size_t i;

  for (i = 0; i < sizeof maintenance_order / sizeof maintenance_order[0]; ++i)
    if (may_start (l, set, maintenance_order[i]))
      return maintenance_order[i];
  return 0;
}

static enum dedup_job
choose_maintenance (struct srv_loop *l, unsigned due, unsigned urgent)
{
  enum dedup_job job = first_of (l, due & urgent);

  if (job == 0)
    job = first_of (l, due);
  if (job == 0 && may_start (l, due, DEDUP_JOB_CLEAN) &&
      !l->merge.running &&
      !may_start (l, due, DEDUP_JOB_MERGE) &&
      !may_start (l, due, DEDUP_JOB_MERGE_IDLE) &&
      idle_long_enough (l) && !steps_go_on (l))
    job = DEDUP_JOB_CLEAN;
  if (job == 0 && may_start (l, due, DEDUP_JOB_GIVE_BACK) &&
      (urgent & DEDUP_JOB_GIVE_BACK || idle_long_enough (l) ||
       uv_hrtime () - l->gave_back_ns >= IDLE_NS)) {
    l->gave_back_ns = uv_hrtime ();
    job = DEDUP_JOB_GIVE_BACK;
  }
  return job;
}

static void
consider_commit_on_loop (struct srv_loop *l, unsigned due, unsigned urgent)
{
  if (l->commit.running)
    return;
  if (!l->commit_wanted && !(urgent & DEDUP_JOB_COMMIT))
    return;
  if (!(due & DEDUP_JOB_COMMIT))
    l->commit_wanted = false;
  else if (may_start (l, due, DEDUP_JOB_COMMIT)) {
    l->commit_wanted = false;
    start_task_on_loop (l, &l->commit, DEDUP_JOB_COMMIT);
  }
}

static void
consider_maintenance_on_loop (struct srv_loop *l, unsigned due,
                              unsigned urgent)
{
  enum dedup_job job;

  if (l->maintenance.running)
    return;
  job = choose_maintenance (l, due, urgent);
  if (job != 0)
    start_task_on_loop (l, &l->maintenance, job);
}

static void
consider_merge_on_loop (struct srv_loop *l, unsigned due)
{
  if (l->merge.running)
    return;
  if (may_start (l, due, DEDUP_JOB_MERGE))
    start_task_on_loop (l, &l->merge, DEDUP_JOB_MERGE);
  else if (may_start (l, due, DEDUP_JOB_MERGE_IDLE) && idle_long_enough (l) &&
           !steps_go_on (l))
    start_task_on_loop (l, &l->merge, DEDUP_JOB_MERGE_IDLE);
}

static void
close_handle (uv_handle_t *h, void *opaque)
{
  if (!uv_is_closing (h))
    uv_close (h, NULL);
}

static void
consider_jobs_on_loop (struct srv_loop *l)
{
  unsigned due, urgent = 0;

  if (stopping (l)) {
    /* Without handles and work the loop ends. */
    if (!l->commit.running && !l->maintenance.running &&
        !l->merge.running && !l->steps.running)
      uv_walk (&l->uv, close_handle, NULL);
    return;
  }
  due = dedup_due (l->disk, &urgent);
  consider_commit_on_loop (l, due, urgent);
  consider_maintenance_on_loop (l, due, urgent);
  consider_merge_on_loop (l, due);
  consider_step_on_loop (l);
}

static void
wake_cb (uv_async_t *h)
{
  consider_jobs_on_loop (h->data);
}

static void
housekeeping_cb (uv_timer_t *h)
{
  consider_jobs_on_loop (h->data);
}

static void
commit_timer_cb (uv_timer_t *h)
{
  struct srv_loop *l = h->data;

  l->commit_wanted = true;
  consider_jobs_on_loop (l);
}

/* --- Start and stop ------------------------------------------------------ */

static void
loop_main (void *opaque)
{
  struct srv_loop *l = opaque;

  uv_run (&l->uv, UV_RUN_DEFAULT);
}

static void
init_task (struct srv_loop *l, struct task *t)
{
  t->loop = l;
  t->work.data = t;
}

static int
init_timers (struct srv_loop *l)
{
  int r;

  if ((r = uv_timer_init (&l->uv, &l->commit_timer)) < 0 ||
      (r = uv_timer_init (&l->uv, &l->housekeeping)) < 0)
    return r;
  l->commit_timer.data = l->housekeeping.data = l;
  r = uv_timer_start (&l->housekeeping, housekeeping_cb, 0, HOUSEKEEPING_MS);
  if (r < 0 || l->commit_interval_ms == 0)
    return r;
  return uv_timer_start (&l->commit_timer, commit_timer_cb,
                         l->commit_interval_ms, l->commit_interval_ms);
}

/* The loop thread and, through it, the pool's threads inherit the mask. */
static int
start_thread (struct srv_loop *l)
{
  sigset_t all, old;
  int r;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = uv_thread_create (&l->thread, loop_main, l);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return r;
}

static int
start_handles_and_thread (struct srv_loop *l)
{
  int r = uv_async_init (&l->uv, &l->wake, wake_cb);

  if (r < 0)
    return r;
  l->wake.data = l;
  if ((r = init_timers (l)) < 0)
    return r;
  return start_thread (l);
}

static struct srv_loop *
new_loop (const struct srv_loop_params *p)
{
  struct srv_loop *l = calloc (1, sizeof *l);

  if (l == NULL)
    return NULL;
  l->disk = p->disk;
  l->path = p->path;
  l->log = p->log;
  l->commit_interval_ms = p->commit_interval_ms;
  l->last_change_ns = p->last_change_ns;
  l->space = p->space;
  init_task (l, &l->commit);
  init_task (l, &l->maintenance);
  init_task (l, &l->merge);
  l->steps.run = p->step;
  l->steps.opaque = p->step_opaque;
  l->steps.work.data = l;
  return l;
}

static void
close_uv (struct srv_loop *l)
{
  int r;

  uv_walk (&l->uv, close_handle, NULL);
  uv_run (&l->uv, UV_RUN_DEFAULT);
  r = uv_loop_close (&l->uv);
  assert (r == 0);
  (void) r;
}

int
srv_loop_start (const struct srv_loop_params *p, struct srv_loop **out)
{
  struct srv_loop *l = new_loop (p);
  int r;

  if (l == NULL)
    return -ENOMEM;
  /* libuv's error codes are -errno on this system. */
  r = uv_loop_init (&l->uv);
  if (r == 0) {
    r = start_handles_and_thread (l);
    if (r == 0) {
      *out = l;
      return 0;
    }
    close_uv (l);
  }
  free (l);
  return r;
}

void
srv_loop_wake (struct srv_loop *l)
{
  uv_async_send (&l->wake);
}

void
srv_loop_stop (struct srv_loop *l)
{
  if (l == NULL)
    return;
  __atomic_store_n (&l->stopping, true, __ATOMIC_RELEASE);
  dedup_stop_jobs (l->disk);
  srv_loop_wake (l);
  uv_thread_join (&l->thread);
  close_uv (l);
  free (l);
}
