/* SPDX-License-Identifier: BSD-3-Clause */
/* The thread that decides when background work of an image runs, on libuv.
 *
 * The loop thread only decides; the work runs on libuv's thread pool, so that
 * the loop never blocks.  There are four slots.  Commits and merges of the
 * index have one each, because they may run beside any other upkeep.  All other
 * upkeep shares the third, because dedup allows only one of it at a time; turns of
 * the job "disks" use it, too.  These three are loop-upkeep.c's.  The fourth
 * runs the turns of all other jobs (loop-jobs.c), which are more like requests than
 * like upkeep.
 *
 * At each look, all slots that are free are considered.  Looks happen when work has
 * ended, when the pool or a job calls for one (srv_loop_wake), and at the ticks of
 * timers.
 *
 * Threads: the entry points run on any thread, and everything else on the loop
 * thread.  Signals are blocked in all of libuv's threads, because they belong to the
 * host program.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "loop-private.h"

/* --- A look ---------------------------------------------------------------- */

static void
close_handle (uv_handle_t *h, void *opaque)
{
  if (!uv_is_closing (h))
    uv_close (h, NULL);
}

/* A commit that steps of jobs have made urgent, and that succeeds, does not end the
 * time that is idle for them; upkeep that fails may be urgent for ever, and does. */
static bool
is_idle_for_jobs (const struct srv_loop *l, unsigned urgent)
{
  return !srv_loop_any_failed (l, urgent) && srv_loop_is_idle (l);
}

static void
start_jobs_on_loop (struct srv_loop *l, const struct look *look)
{
  unsigned due = look->due;

  if (srv_loop_upkeep_is_first_on_loop (l, look))
    due &= ~(unsigned) DEDUP_JOB_DISKS;
  l->p.start_jobs (l->p.opaque, due, &look->moment);
}

static void
consider_on_loop (struct srv_loop *l)
{
  struct look look = { 0 };

  if (srv_loop_stopping (l)) {
    /* The loop ends when it has neither handles nor work. */
    if (!srv_loop_tasks_run_on_loop (l) && !srv_loop_turns_run_on_loop (l))
      uv_walk (&l->uv, close_handle, NULL);
    return;
  }
  look.due = dedup_due (l->p.pool, &look.urgent);
  look.moment.idle = is_idle_for_jobs (l, look.urgent);
  if (l->p.start_jobs)
    start_jobs_on_loop (l, &look);
  srv_loop_upkeep_on_loop (l, &look);
  look.moment.idle &= look.urgent == 0;
  (void) srv_loop_start_turn_on_loop (l, SRV_LANE_STEPS, &look.moment);
  srv_loop_set_turn_timer_on_loop (l);
}

/* --- Timers ---------------------------------------------------------------- */

static void
housekeeping_cb (uv_timer_t *h)
{
  consider_on_loop (h->data);
}

static void
commit_timer_cb (uv_timer_t *h)
{
  struct srv_loop *l = h->data;

  l->commit_wanted = true;
  consider_on_loop (l);
}

/* Starts the commit timer again where its interval was changed. */
static int
set_commit_timer_on_loop (struct srv_loop *l)
{
  unsigned ms = __atomic_load_n (&l->commit_interval_ms, __ATOMIC_RELAXED);

  if (ms == l->commit_timer_ms)
    return 0;
  l->commit_timer_ms = ms;
  if (ms == 0)
    return uv_timer_stop (&l->commit_timer);
  return uv_timer_start (&l->commit_timer, commit_timer_cb, ms, ms);
}

static void
wake_cb (uv_async_t *h)
{
  struct srv_loop *l = h->data;

  if (!srv_loop_stopping (l))
    (void) set_commit_timer_on_loop (l);    /* fails only while it closes */
  consider_on_loop (l);
}

static int
init_timers (struct srv_loop *l)
{
  int r;

  if ((r = uv_timer_init (&l->uv, &l->commit_timer)) < 0 ||
      (r = uv_timer_init (&l->uv, &l->housekeeping)) < 0 ||
      (r = uv_timer_init (&l->uv, &l->next_turn)) < 0)
    return r;
  l->commit_timer.data = l->housekeeping.data = l->next_turn.data = l;
  r = uv_timer_start (&l->housekeeping, housekeeping_cb, 0, HOUSEKEEPING_MS);
  return r < 0 ? r : set_commit_timer_on_loop (l);
}

/* --- Start and stop -------------------------------------------------------- */

static void
loop_main (void *opaque)
{
  struct srv_loop *l = opaque;

  uv_run (&l->uv, UV_RUN_DEFAULT);
}

/* Starts the thread with all signals blocked.  The threads of the pool inherit
 * the mask from it. */
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
  l->p = *p;
  l->commit_interval_ms = p->commit_interval_ms;
  l->consider_on_loop = consider_on_loop;
  srv_loop_init_tasks (l);
  srv_loop_init_turns (l);
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
    *out = l;                   /* the thread may call srv_loop_wake at once */
    r = start_handles_and_thread (l);
    if (r == 0)
      return 0;
    *out = NULL;
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
srv_loop_set_commit_interval (struct srv_loop *l, unsigned ms)
{
  __atomic_store_n (&l->commit_interval_ms, ms, __ATOMIC_RELAXED);
  srv_loop_wake (l);
}

void
srv_loop_stop (struct srv_loop *l)
{
  if (l == NULL)
    return;
  __atomic_store_n (&l->stopping, true, __ATOMIC_RELEASE);
  dedup_stop_jobs (l->p.pool);
  srv_loop_wake (l);
  uv_thread_join (&l->thread);
  close_uv (l);
  free (l);
}
