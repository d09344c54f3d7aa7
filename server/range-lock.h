/* SPDX-License-Identifier: BSD-3-Clause */
/* Locks ranges of guest clusters, to keep requests apart that touch the same
 * ones: shared for reads, exclusive for all else.  Ranges that conflict are
 * served in order of arrival, so that none starves.  A thread holds one range
 * at a time.
 */
#ifndef DEDUP_RANGE_LOCK_H
#define DEDUP_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"

struct srv_range {            /* allocated by the caller */
  uint64_t first, last;       /* inclusive */
  bool exclusive;
  uint64_t blockers;          /* number of earlier ranges that it waits for */
  struct srv_range *prev, *next;
  pthread_cond_t cond;        /* while it waits */
};

struct srv_range_lock {
  pthread_mutex_t mutex;
  struct srv_range *head, *tail;   /* held and waiting, in order of arrival */
  uint64_t nr_exclusive;           /* of those in the list */
  bool shut;                       /* no range is locked any more */
};

void srv_range_lock_init (struct srv_range_lock *l);
void srv_range_lock_destroy (struct srv_range_lock *l);
/* Locks clusters FIRST to LAST, inclusive; waits for earlier ranges that
 * conflict.  R must stay where it is until it is released.  Returns 0, or
 * -ESHUTDOWN, with nothing locked, after srv_range_lock_shut. */
int srv_range_acquire (struct srv_range_lock *l, struct srv_range *r,
                       uint64_t first, uint64_t last, bool exclusive)
  MUST_CHECK;
void srv_range_release (struct srv_range_lock *l, struct srv_range *r);
/* Ends all waits and refuses all later ranges, for ever.  Ranges that are held
 * stay held until they are released. */
void srv_range_lock_shut (struct srv_range_lock *l);

#endif
