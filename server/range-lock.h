/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps requests that touch the same guest clusters apart: shared for reads,
 * exclusive for the rest, first come first served where they overlap, so that
 * nobody starves.  A caller holds one range at a time.
 */
#ifndef DEDUP_RANGE_LOCK_H
#define DEDUP_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct srv_range {            /* caller allocated, one per request */
  uint64_t first, last;       /* inclusive */
  bool exclusive;
  uint64_t blockers;          /* earlier ranges that it waits for */
  struct srv_range *prev, *next;
  pthread_cond_t cond;        /* while it waits */
};

struct srv_range_lock {
  pthread_mutex_t mutex;
  struct srv_range *head, *tail;   /* held and waiting, in order of arrival */
  uint64_t nr_exclusive;           /* of them */
};

void srv_range_lock_init (struct srv_range_lock *l);
void srv_range_lock_destroy (struct srv_range_lock *l);
void srv_range_acquire (struct srv_range_lock *l, struct srv_range *r,
                        uint64_t first, uint64_t last, bool exclusive);
void srv_range_release (struct srv_range_lock *l, struct srv_range *r);

#endif
