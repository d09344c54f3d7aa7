/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps overlapping requests apart, first come, first served.
 *
 * One list has all ranges, held and waiting, in order of arrival.  A range
 * waits for every earlier one that it conflicts with, whether that one is held
 * or waits itself, so that no range is overtaken by a conflicting one and none
 * starves.  A range counts its blockers once, on arrival.  Later ranges never
 * block it, so the count only falls, by one for each earlier range that is
 * released.
 *
 * The list has at most one range for each request thread, so that walking it is
 * cheaper than a tree.  It is not walked while all ranges are shared, because
 * each of them is in another core's cache.
 *
 * Invariants, under the mutex: r->blockers is the number of ranges before r
 * that conflict with it; r is held only if that is 0; nr_exclusive is
 * the number of exclusive ranges.  A range has a condition variable while it
 * waits.  It is signalled under the mutex, so the signal has returned when the
 * waiter wakes up and destroys the variable.
 *
 * When the lock is shut, each range that waits leaves the list, as if it were
 * released.
 */
#include "range-lock.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>

static bool
conflict (const struct srv_range *a, const struct srv_range *b)
{
  return (a->exclusive || b->exclusive) &&
    a->first <= b->last && b->first <= a->last;
}

/* Waits until no range before R conflicts with it, or the lock is shut. */
static void
wait_for_turn (struct srv_range_lock *l, struct srv_range *r)
{
  pthread_cond_init (&r->cond, NULL);
  while (r->blockers > 0 && !l->shut)
    pthread_cond_wait (&r->cond, &l->mutex);
  pthread_cond_destroy (&r->cond);
}

static void
append (struct srv_range_lock *l, struct srv_range *r)
{
  r->prev = l->tail;
  r->next = NULL;
  if (l->tail)
    l->tail->next = r;
  else
    l->head = r;
  l->tail = r;
  l->nr_exclusive += r->exclusive;
}

static void
unlink_range (struct srv_range_lock *l, struct srv_range *r)
{
  if (r->prev)
    r->prev->next = r->next;
  else
    l->head = r->next;
  if (r->next)
    r->next->prev = r->prev;
  else
    l->tail = r->prev;
  l->nr_exclusive -= r->exclusive;
}

static uint64_t
count_blockers (const struct srv_range_lock *l, const struct srv_range *r)
{
  const struct srv_range *p;
  uint64_t n = 0;

  if (l->nr_exclusive == 0)
    return 0;
  for (p = r->prev; p; p = p->prev)
    n += conflict (p, r);
  return n;
}

static void
unblock_later (const struct srv_range_lock *l, const struct srv_range *r)
{
  struct srv_range *p;

  if (l->nr_exclusive == 0)
    return;
  for (p = r->next; p; p = p->next) {
    if (!conflict (r, p))
      continue;
    assert (p->blockers > 0);
    if (--p->blockers == 0)
      pthread_cond_signal (&p->cond);
  }
}

static void
leave (struct srv_range_lock *l, struct srv_range *r)
{
  unblock_later (l, r);
  unlink_range (l, r);
}

void
srv_range_lock_init (struct srv_range_lock *l)
{
  pthread_mutex_init (&l->mutex, NULL);
  l->head = l->tail = NULL;
  l->nr_exclusive = 0;
  l->shut = false;
}

void
srv_range_lock_destroy (struct srv_range_lock *l)
{
  assert (l->head == NULL);
  pthread_mutex_destroy (&l->mutex);
}

int
srv_range_acquire (struct srv_range_lock *l, struct srv_range *r,
                   uint64_t first, uint64_t last, bool exclusive)
{
  bool shut;

  assert (first <= last);
  r->first = first;
  r->last = last;
  r->exclusive = exclusive;

  pthread_mutex_lock (&l->mutex);
  append (l, r);
  r->blockers = count_blockers (l, r);
  if (r->blockers > 0)
    wait_for_turn (l, r);
  shut = l->shut;
  if (shut)
    leave (l, r);
  pthread_mutex_unlock (&l->mutex);
  return shut ? -ESHUTDOWN : 0;
}

void
srv_range_release (struct srv_range_lock *l, struct srv_range *r)
{
  pthread_mutex_lock (&l->mutex);
  assert (r->blockers == 0);
  leave (l, r);
  pthread_mutex_unlock (&l->mutex);
}

void
srv_range_lock_shut (struct srv_range_lock *l)
{
  struct srv_range *r;

  pthread_mutex_lock (&l->mutex);
  l->shut = true;
  for (r = l->head; r; r = r->next)
    if (r->blockers > 0)
      pthread_cond_signal (&r->cond);
  pthread_mutex_unlock (&l->mutex);
}
