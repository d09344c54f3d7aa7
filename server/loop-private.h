/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the loop as its files see it (loop.c, loop-upkeep.c, loop-jobs.c). */
#ifndef DEDUP_LOOP_PRIVATE_H
#define DEDUP_LOOP_PRIVATE_H

#include <uv.h>

#include "loop.h"

#define NR_UPKEEP_JOBS 11       /* bits of enum dedup_job */
#define IDLE_NS (UINT64_C (3) * 1000 * 1000 * 1000)
#define HOUSEKEEPING_MS 200

struct task {                   /* one slot for the pool's own upkeep */
  struct srv_loop *loop;        /* constant */

  /* Loop thread only, but for the pool thread while it runs: */
  uv_work_t work;
  enum dedup_job job;
  int result;
  bool running;
};

struct turn {                   /* one slot for the turns of a lane */
  struct srv_loop *loop;        /* constant */
  enum srv_job_lane lane;       /* constant */

  /* Loop thread only, but for the pool thread while it runs: */
  uv_work_t work;
  struct srv_job *job;          /* NULL: none runs */
};

struct retry {
  uint64_t not_before_ms;       /* uv_now */
  unsigned delay_ms;            /* 0: the last run succeeded */
  bool logged;                  /* the failure has been logged */
};

struct srv_loop {
  /* Constant after start: */
  struct srv_loop_params p;
  void (*consider_on_loop) (struct srv_loop *l);   /* starts all that is due */
  uv_thread_t thread;

  /* Any thread: */
  uv_async_t wake;

  /* Atomic: */
  bool stopping;
  unsigned commit_interval_ms;

  /* Loop thread only: */
  uv_loop_t uv;
  uv_timer_t commit_timer, housekeeping;
  uv_timer_t next_turn;         /* when a job has rested */
  unsigned commit_timer_ms;     /* that the timer was started with */
  struct task commit, maintenance, merge;
  struct turn turns[SRV_NR_LANES];
  struct retry retry[NR_UPKEEP_JOBS];
  bool commit_wanted;           /* the commit timer has ticked */
  uint64_t gave_back_ns;        /* start of the last GIVE_BACK */
};

struct look {                   /* at what is due, once */
  unsigned due, urgent;         /* dedup_due */
  struct srv_moment moment;
};

static inline bool
srv_loop_stopping (const struct srv_loop *l)
{
  return __atomic_load_n (&l->stopping, __ATOMIC_ACQUIRE);
}

/* Returns whether no client has changed anything for IDLE_NS. */
static inline bool
srv_loop_is_idle (const struct srv_loop *l)
{
  const uint64_t last = l->p.last_change_ns (l->p.activity);
  const uint64_t now = uv_hrtime ();

  return now > last && now - last >= IDLE_NS;
}

/* --- loop-upkeep.c ------------------------------------------------------ */

void srv_loop_init_tasks (struct srv_loop *l);
bool srv_loop_tasks_run_on_loop (const struct srv_loop *l);
/* Returns true if the last run of an upkeep job in SET failed. */
bool srv_loop_any_failed (const struct srv_loop *l, unsigned set);
/* Returns whether the slot of SRV_LANE_UPKEEP has upkeep of the pool to do before a turn. */
bool srv_loop_upkeep_is_first_on_loop (struct srv_loop *l, const struct look *look);
/* Starts the upkeep of the pool that is due; and a turn of SRV_LANE_UPKEEP, if
 * nothing else is. */
void srv_loop_upkeep_on_loop (struct srv_loop *l, const struct look *look);

/* --- loop-jobs.c -------------------------------------------------------- */

void srv_loop_init_turns (struct srv_loop *l);
bool srv_loop_turns_run_on_loop (const struct srv_loop *l);
/* Starts a turn of LANE, if no turn of it runs and a job can take one.  Returns
 * whether it did. */
bool srv_loop_start_turn_on_loop (struct srv_loop *l, enum srv_job_lane lane,
                                  const struct srv_moment *m);
/* Sets the timer to when the next job has rested. */
void srv_loop_set_turn_timer_on_loop (struct srv_loop *l);

#endif
