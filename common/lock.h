/* SPDX-License-Identifier: BSD-3-Clause */
/* A mutex that knows its owner, and scoped helpers.
 *
 * Every function whose name ends in _locked starts with
 * assert (lock_held (...)).
 */
#ifndef DEDUP_LOCK_H
#define DEDUP_LOCK_H

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>

struct lock {
  pthread_mutex_t mutex;
  pthread_t owner;    /* valid while held; atomic, see lock_held */
  bool held;          /* atomic */
};

static inline void
lock_init (struct lock *l)
{
  pthread_mutex_init (&l->mutex, NULL);
  l->held = false;
}

static inline void
lock_destroy (struct lock *l)
{
  pthread_mutex_destroy (&l->mutex);
}

static inline void
lock_acquire (struct lock *l)
{
  pthread_mutex_lock (&l->mutex);
  __atomic_store_n (&l->owner, pthread_self (), __ATOMIC_RELAXED);
  __atomic_store_n (&l->held, true, __ATOMIC_RELAXED);
}

static inline void
lock_release (struct lock *l)
{
  __atomic_store_n (&l->held, false, __ATOMIC_RELAXED);
  pthread_mutex_unlock (&l->mutex);
}

/* Does the calling thread hold L? */
static inline bool
lock_held (struct lock *l)
{
  return __atomic_load_n (&l->held, __ATOMIC_RELAXED) &&
    pthread_equal (__atomic_load_n (&l->owner, __ATOMIC_RELAXED),
                   pthread_self ());
}

/* Wait on COND, giving up L meanwhile. */
static inline void
lock_wait (struct lock *l, pthread_cond_t *cond)
{
  assert (lock_held (l));
  __atomic_store_n (&l->held, false, __ATOMIC_RELAXED);
  pthread_cond_wait (cond, &l->mutex);
  __atomic_store_n (&l->owner, pthread_self (), __ATOMIC_RELAXED);
  __atomic_store_n (&l->held, true, __ATOMIC_RELAXED);
}

static inline void
lock_scope_end (struct lock **l)
{
  if (*l)
    lock_release (*l);
}

/* Hold L until the end of the enclosing block. */
#define LOCK_FOR_SCOPE(l)                                               \
  __attribute__ ((__cleanup__ (lock_scope_end), __unused__))            \
  struct lock *lock_scope_ = (lock_acquire (l), (l))

#endif
