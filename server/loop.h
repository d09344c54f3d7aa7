/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs the background work of an image: a thread with timers starts the upkeep of
 * the pool that is due, and the turns of jobs (jobs.h). */
#ifndef DEDUP_LOOP_H
#define DEDUP_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "dedup.h"
#include "jobs.h"
#include "space.h"

struct srv_loop;

struct srv_loop_params {
  struct dedup_pool *pool;
  const char *path;                 /* for messages */
  const struct log_sink *log;
  unsigned commit_interval_ms;      /* 0: no commit timer */
  /* Returns when a client last changed something (CLOCK_MONOTONIC), or 0. */
  uint64_t (*last_change_ns) (const void *opaque);
  const void *activity;             /* its argument */
  struct srv_space *space;          /* is told the results of upkeep */
  struct srv_jobs *jobs;            /* NULL: none */
  /* Starts the jobs that start by themselves and have something to do now; DUE is
   * from dedup_due, without DISKS while upkeep comes first.  NULL: there are none.  On the
   * loop's thread; must not block. */
  void (*start_jobs) (void *opaque, unsigned due, const struct srv_moment *m);
  void *opaque;
};

/* Starts the thread.  On error nothing was started. */
int srv_loop_start (const struct srv_loop_params *p, struct srv_loop **out)
  MUST_CHECK;

/* Makes the loop look soon for work that is due.  Any thread may call it, also
 * with locks held. */
void srv_loop_wake (struct srv_loop *l);
/* Changes the time between two ticks of the commit timer; 0: there are none.  Any
 * thread. */
void srv_loop_set_commit_interval (struct srv_loop *l, unsigned ms);

/* Asks running work to return, waits for it, and frees the loop.  L may be
 * NULL. */
void srv_loop_stop (struct srv_loop *l);

#endif
