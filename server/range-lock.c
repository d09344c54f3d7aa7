/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps overlapping requests apart, first come first served.
 *
 * One list holds all ranges, held and waiting, in order of arrival.  A range
 * waits for every earlier one that it conflicts with, whether that one is
 * held or waits itself; so nobody is overtaken by a conflicting request, and
 * nobody starves.  Each range counts its blockers once, on arrival: a later
 * arrival never blocks it, so the count only falls, one by one, as earlier
 * ranges are released.
 *
 * The list is as long as there are request threads, so walking them is
 * cheaper than a tree; where there are only readers nobody walks at all, as
 * each of them is in another core's cache.  Invariants, under the mutex:
 * r->blockers is the number of ranges before r that conflict with it; a range is
 * held if and only if it is 0; nr_exclusive is the number of exclusive ones.
 * A range has a cond while it waits; signals are sent under the mutex, so the
 * last is over when the waiter goes on.
 */
#include "range-lock.h"

#include <assert.h>
#include <stddef.h>

static bool
conflict (const struct srv_range *a, const struct srv_range *b)
{
  return (a->exclusive || b->exclusive) &&
    a->first <= b->last && b->first <= a->last;
}

/* Until nothing before R conflicts with it. */
static void
wait_for_turn (struct srv_range_lock *l, struct srv_range *r)
{
  pthread_cond_init (&r->cond, NULL);
  while (r->blockers > 0)
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

void
srv_range_lock_init (struct srv_range_lock *l)
{
  pthread_mutex_init (&l->mutex, NULL);
  l->head = l->tail = NULL;
  l->nr_exclusive = 0;
}

void
srv_range_lock_destroy (struct srv_range_lock *l)
{
  assert (l->head == NULL);
  pthread_mutex_destroy (&l->mutex);
}

void
srv_range_acquire (struct srv_range_lock *l, struct srv_range *r,
                   uint64_t first, uint64_t last, bool exclusive)
{
  assert (first <= last);
  r->first = first;
  r->last = last;
  r->exclusive = exclusive;

  pthread_mutex_lock (&l->mutex);
  append (l, r);
  r->blockers = count_blockers (l, r);
  if (r->blockers > 0)
    wait_for_turn (l, r);
  pthread_mutex_unlock (&l->mutex);
}

void
srv_range_release (struct srv_range_lock *l, struct srv_range *r)
{
  pthread_mutex_lock (&l->mutex);
  assert (r->blockers == 0);
  unblock_later (l, r);
  unlink_range (l, r);
  pthread_mutex_unlock (&l->mutex);
}
