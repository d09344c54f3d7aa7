/* SPDX-License-Identifier: BSD-3-Clause */
/* Waits for a mutex that somebody else holds.
 *
 * This is not inline in lock.h: it is rare, and under sanitizers GCC takes the
 * atomic additions for writes to a null pointer, where it inlines them.
 */
#include "lock.h"

#ifndef DEDUP_LOCK_PROFILE
void
lock_contended (struct lock *l)
{
  __atomic_add_fetch (&l->waiting, 1, __ATOMIC_RELAXED);
  pthread_mutex_lock (&l->mutex);
  __atomic_sub_fetch (&l->waiting, 1, __ATOMIC_RELAXED);
}
#endif
