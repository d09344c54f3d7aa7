/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares counters for each place in the source that takes a lock; only in
 * builds with -Dlock_profile=true.  See lock.h.
 */
#ifndef DEDUP_LOCK_PROFILE_H
#define DEDUP_LOCK_PROFILE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* One place in the source.  All fields but FILE and LINE are protected by a
 * mutex of lock-profile.c. */
struct lock_site {
  const char *file;
  int line;
  struct lock_site *next;       /* in the list of all places, if LISTED */
  bool listed;
  uint64_t nr, nr_waited;
  uint64_t wait_ns, wait_max_ns;
  uint64_t hold_ns;             /* by the clock */
  uint64_t hold_cpu_max_ns;     /* by the holder's CPU time: on a busy machine
                                 * the clock counts the work of others, too */
  uint64_t nr_long;             /* holds of more CPU than the limit below */
};

#define LOCK_PROFILE_LONG_NS 1000000

#define LOCK_SITE                                                       \
  ({ static struct lock_site lock_site_ = { __FILE__, __LINE__ };       \
     &lock_site_; })

struct lock_hold {
  struct lock_site *site;
  uint64_t ns, cpu_ns;
};

/* Locks M, and counts the wait for SITE. */
void lock_profile_mutex (pthread_mutex_t *m, struct lock_site *site);
/* Begin and end a hold of a lock. */
void lock_profile_begin (struct lock_hold *h, struct lock_site *site);
void lock_profile_end (struct lock_hold *h);

/* Counts work that no thread may do while it holds a lock: I/O, hashing,
 * comparing. */
enum lock_profile_work { LOCK_PROFILE_IO, LOCK_PROFILE_HASH,
                         LOCK_PROFILE_COMPARE, LOCK_PROFILE_NR };
void lock_profile_work (enum lock_profile_work what);

#endif
