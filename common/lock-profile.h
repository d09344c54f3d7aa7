/* SPDX-License-Identifier: BSD-3-Clause */
/* Counters for each place in the source that takes a lock; only in builds with
 * -Dlock_profile=true.  See lock.h.
 */
#ifndef DEDUP_LOCK_PROFILE_H
#define DEDUP_LOCK_PROFILE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* All but the place and the next one: protected by a mutex of its own. */
struct lock_site {
  const char *file;
  int line;
  struct lock_site *next;       /* on the list of all, once LISTED */
  bool listed;
  uint64_t nr, nr_waited;
  uint64_t wait_ns, wait_max_ns;
  uint64_t hold_ns;             /* by the clock */
  uint64_t hold_cpu_max_ns;     /* by the holder's CPU time: on a busy machine
                                 * the clock counts others' work */
  uint64_t nr_long;             /* of more than LOCK_PROFILE_LONG_NS of it */
};

#define LOCK_PROFILE_LONG_NS 1000000

#define LOCK_SITE                                                       \
  ({ static struct lock_site lock_site_ = { __FILE__, __LINE__ };       \
     &lock_site_; })

struct lock_hold {
  struct lock_site *site;
  uint64_t ns, cpu_ns;
};

/* Lock M for SITE. */
void lock_profile_mutex (pthread_mutex_t *m, struct lock_site *site);
/* A hold of a lock begins, ends. */
void lock_profile_begin (struct lock_hold *h, struct lock_site *site);
void lock_profile_end (struct lock_hold *h);

/* Work that nobody must do while he holds a lock: I/O, hashing, comparing. */
enum lock_profile_work { LOCK_PROFILE_IO, LOCK_PROFILE_HASH,
                         LOCK_PROFILE_COMPARE, LOCK_PROFILE_NR };
void lock_profile_work (enum lock_profile_work what);

#endif
