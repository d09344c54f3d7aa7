/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines a mutex that knows its owner, and helpers for scopes.
 *
 * Every function whose name ends in _locked starts with
 * assert (lock_held (...)).
 *
 * With -Dlock_profile=true each place that takes a lock counts how often it
 * took it and had to wait, and how long it waited and held it; lock-profile.c
 * prints these counters (bench/contention).
 */
#ifndef DEDUP_LOCK_H
#define DEDUP_LOCK_H

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>

#ifdef DEDUP_LOCK_PROFILE
#include "lock-profile.h"
#endif

struct lock {
  pthread_mutex_t mutex;
  pthread_t owner;    /* valid while held; atomic, see lock_held */
  bool held;          /* atomic */
  unsigned waiting;   /* threads; atomic */
#ifdef DEDUP_LOCK_PROFILE
  struct lock_hold hold;      /* valid while held */
#endif
};

static inline void
lock_init (struct lock *l)
{
  pthread_mutex_init (&l->mutex, NULL);
  l->held = false;
  l->waiting = 0;
}

static inline void
lock_destroy (struct lock *l)
{
  pthread_mutex_destroy (&l->mutex);
}

static inline void
lock_set_owner (struct lock *l)
{
  __atomic_store_n (&l->owner, pthread_self (), __ATOMIC_RELAXED);
  __atomic_store_n (&l->held, true, __ATOMIC_RELAXED);
}

static inline void
lock_clear_owner (struct lock *l)
{
  __atomic_store_n (&l->held, false, __ATOMIC_RELAXED);
}

#ifndef DEDUP_LOCK_PROFILE
/* Waits for the mutex of L, and takes it. */
void lock_contended (struct lock *l);

static inline void
lock_acquire (struct lock *l)
{
  if (pthread_mutex_trylock (&l->mutex) != 0)
    lock_contended (l);
  lock_set_owner (l);
}

static inline void
lock_release (struct lock *l)
{
  lock_clear_owner (l);
  pthread_mutex_unlock (&l->mutex);
}
#else
#define lock_acquire(l) lock_acquire_at (l, LOCK_SITE)

static inline void
lock_acquire_at (struct lock *l, struct lock_site *site)
{
  lock_profile_mutex (&l->mutex, site);
  lock_set_owner (l);
  lock_profile_begin (&l->hold, site);
}

static inline void
lock_release (struct lock *l)
{
  lock_profile_end (&l->hold);
  lock_clear_owner (l);
  pthread_mutex_unlock (&l->mutex);
}
#endif

/* Returns whether threads wait for L.  One that takes it again and again should
 * rest then, as a mutex often stays with its owner. */
static inline bool
lock_wanted (struct lock *l)
{
  return __atomic_load_n (&l->waiting, __ATOMIC_RELAXED) > 0;
}

/* Returns whether the calling thread holds L. */
static inline bool
lock_held (struct lock *l)
{
  return __atomic_load_n (&l->held, __ATOMIC_RELAXED) &&
    pthread_equal (__atomic_load_n (&l->owner, __ATOMIC_RELAXED),
                   pthread_self ());
}

/* Waits on COND; L is released meanwhile. */
#ifndef DEDUP_LOCK_PROFILE
static inline void
lock_wait (struct lock *l, pthread_cond_t *cond)
{
  assert (lock_held (l));
  lock_clear_owner (l);
  pthread_cond_wait (cond, &l->mutex);
  lock_set_owner (l);
}
#else
#define lock_wait(l, cond) lock_wait_at (l, cond, LOCK_SITE)

/* Waits likewise.  The time from the return on counts as a new hold, of this
 * place. */
static inline void
lock_wait_at (struct lock *l, pthread_cond_t *cond, struct lock_site *site)
{
  assert (lock_held (l));
  lock_profile_end (&l->hold);
  lock_clear_owner (l);
  pthread_cond_wait (cond, &l->mutex);
  lock_set_owner (l);
  lock_profile_begin (&l->hold, site);
}
#endif

/* Marks work that no thread may do while it holds a lock: IO, HASH or
 * COMPARE. */
#ifdef DEDUP_LOCK_PROFILE
#define WORK_WITHOUT_LOCK(what) lock_profile_work (LOCK_PROFILE_ ## what)
#else
#define WORK_WITHOUT_LOCK(what) ((void) 0)
#endif

static inline void
lock_scope_end (struct lock **l)
{
  if (*l)
    lock_release (*l);
}

/* Takes L, and releases it at the end of the enclosing block. */
#define LOCK_FOR_SCOPE(l)                                               \
  __attribute__ ((__cleanup__ (lock_scope_end), __unused__))            \
  struct lock *lock_scope_ = (lock_acquire (l), (l))

#endif
