/* SPDX-License-Identifier: BSD-3-Clause */
/* The background of an export: one thread with timers, which starts the jobs
 * that the disk says are due. */
#ifndef DEDUP_LOOP_H
#define DEDUP_LOOP_H

#include <stdint.h>

#include "cleanup.h"
#include "dedup.h"
#include "space.h"

struct srv_loop;

struct srv_loop_params {
  struct dedup_disk *disk;
  const char *path;                 /* for messages */
  const struct log_sink *log;
  unsigned commit_interval_ms;      /* 0: no timer */
  const uint64_t *last_change_ns;   /* atomic, CLOCK_MONOTONIC */
  struct srv_space *space;          /* learns how jobs end */
  /* Long work in short steps, beside everything else; NULL: none.  1: there
   * is more, 0: done, -errno: to be tried again later. */
  int (*step) (void *opaque);
  void *step_opaque;
};

/* Start the thread.  -errno: nothing was started. */
int srv_loop_start (const struct srv_loop_params *p, struct srv_loop **out)
  MUST_CHECK;

/* Something may be due: look soon.  Any thread, also with locks held. */
void srv_loop_wake (struct srv_loop *l);

/* Interrupt what runs, wait for it, free.  NULL is fine. */
void srv_loop_stop (struct srv_loop *l);

#endif
