/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs the turns of jobs on the threads of the pool, one of each lane at a time.
 *
 * Steps are so short that the housekeeping timer would make the rests between them
 * much too long; so there is a timer for the next turn.
 *
 * Threads: run_turn_cb runs on a thread of libuv's pool, and everything else on the
 * loop thread.
 */
#include <assert.h>

#include "checked.h"
#include "loop-private.h"

#define NS_PER_MS UINT64_C (1000000)
#define BUSY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

static bool
clients_are_busy (const struct srv_loop *l)
{
  uint64_t last = l->p.last_change_ns (l->p.activity);

  return last != 0 && uv_hrtime () - last < BUSY_NS;
}

static void
run_turn_cb (uv_work_t *work)
{
  struct turn *t = work->data;

  srv_job_turn (t->loop->p.jobs, t->job);
}

static void
finish_turn_on_loop (uv_work_t *work, int status)
{
  struct turn *t = work->data;
  struct srv_loop *l = t->loop;
  const struct srv_moment m = { .busy = clients_are_busy (l) };

  assert (status == 0);         /* work is never cancelled */
  (void) status;
  uv_update_time (&l->uv);
  srv_jobs_finish_turn (l->p.jobs, t->lane, t->job, &m);
  t->job = NULL;
  l->consider_on_loop (l);
}

bool
srv_loop_start_turn_on_loop (struct srv_loop *l, enum srv_job_lane lane,
                             const struct srv_moment *m)
{
  struct turn *t = &l->turns[lane];
  int r;

  if (l->p.jobs == NULL || t->job != NULL)
    return false;
  t->job = srv_jobs_take_turn (l->p.jobs, lane, m);
  if (t->job == NULL)
    return false;
  r = uv_queue_work (&l->uv, &t->work, run_turn_cb, finish_turn_on_loop);
  assert (r == 0);              /* fails only without a callback */
  (void) r;
  return true;
}

static void
next_turn_cb (uv_timer_t *h)
{
  struct srv_loop *l = h->data;

  l->consider_on_loop (l);
}

void
srv_loop_set_turn_timer_on_loop (struct srv_loop *l)
{
  uint64_t first = UINT64_MAX, now = uv_hrtime (), ms;

  if (l->p.jobs == NULL)
    return;
  for (unsigned i = 0; i < SRV_NR_LANES; i++)
    if (l->turns[i].job == NULL)
      first = MIN_OF (first, srv_jobs_next_ns (l->p.jobs, i));
  if (first == UINT64_MAX)
    return;
  ms = first > now ? div_round_up (first - now, NS_PER_MS) : 1;
  if (ms < HOUSEKEEPING_MS)
    (void) uv_timer_start (&l->next_turn, next_turn_cb, ms, 0);
}

bool
srv_loop_turns_run_on_loop (const struct srv_loop *l)
{
  for (unsigned i = 0; i < SRV_NR_LANES; i++)
    if (l->turns[i].job != NULL)
      return true;
  return false;
}

void
srv_loop_init_turns (struct srv_loop *l)
{
  for (unsigned i = 0; i < SRV_NR_LANES; i++) {
    l->turns[i].loop = l;
    l->turns[i].lane = i;
    l->turns[i].work.data = &l->turns[i];
  }
}
