/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the range lock: who waits for whom, in which order, and, under load,
 * that nobody is let in beside somebody it conflicts with.
 *
 * The cells of the stress test are plain variables on purpose: under
 * ThreadSanitizer a lock that lets two in is also seen as a data race.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "range-lock.h"

#define EXCLUSIVE true
#define SHARED false

/* One request on a thread of its own. */
struct request {
  struct srv_range_lock *lock;
  struct srv_range range;
  uint64_t first, last;
  bool exclusive;
  pthread_t thread;
  int result;           /* valid when holds is true */
  bool holds;           /* atomic: the call has returned */
};

static void *
acquire_only (void *opaque)
{
  struct request *q = opaque;

  q->result = srv_range_acquire (q->lock, &q->range, q->first, q->last,
                                 q->exclusive);
  __atomic_store_n (&q->holds, true, __ATOMIC_SEQ_CST);
  return NULL;
}

static size_t
list_length (struct srv_range_lock *l)
{
  const struct srv_range *r;
  size_t n = 0;

  pthread_mutex_lock (&l->mutex);
  for (r = l->head; r; r = r->next)
    n++;
  pthread_mutex_unlock (&l->mutex);
  return n;
}

static void
nap (void)
{
  const struct timespec ms = { .tv_nsec = 1000000 };

  nanosleep (&ms, NULL);
}

/* Start a request and return once it stands in the list. */
static void
start (struct srv_range_lock *l, struct request *q,
       uint64_t first, uint64_t last, bool exclusive)
{
  size_t before = list_length (l);

  *q = (struct request) { .lock = l, .first = first, .last = last,
                          .exclusive = exclusive };
  assert_int_equal (pthread_create (&q->thread, NULL, acquire_only, q), 0);
  while (list_length (l) == before)
    nap ();
}

/* The list decides at once; blockers is exact under the mutex. */
static bool
waits (struct request *q)
{
  bool r;

  pthread_mutex_lock (&q->lock->mutex);
  r = q->range.blockers > 0;
  pthread_mutex_unlock (&q->lock->mutex);
  if (r)
    assert_false (__atomic_load_n (&q->holds, __ATOMIC_SEQ_CST));
  return r;
}

static void
finish (struct request *q)
{
  assert_int_equal (pthread_join (q->thread, NULL), 0);
  assert_true (q->holds);
  assert_int_equal (q->result, 0);
  srv_range_release (q->lock, &q->range);
}

static void
readers_share_a_range (void **state)
{
  struct srv_range_lock l;
  struct request a, b;

  srv_range_lock_init (&l);
  start (&l, &a, 0, 9, SHARED);
  start (&l, &b, 5, 5, SHARED);
  assert_false (waits (&a));
  assert_false (waits (&b));
  finish (&a);
  finish (&b);
  srv_range_lock_destroy (&l);
}

static void
a_writer_keeps_everybody_out_of_its_range (void **state)
{
  struct srv_range_lock l;
  struct request w, reader, writer, before, after;

  srv_range_lock_init (&l);
  start (&l, &w, 10, 19, EXCLUSIVE);
  start (&l, &reader, 0, 10, SHARED);
  start (&l, &writer, 19, 30, EXCLUSIVE);
  assert_true (waits (&reader));
  assert_true (waits (&writer));
  finish (&w);
  finish (&reader);
  finish (&writer);

  start (&l, &w, 10, 19, EXCLUSIVE);
  start (&l, &before, 0, 9, EXCLUSIVE);
  start (&l, &after, 20, UINT64_MAX, EXCLUSIVE);
  assert_false (waits (&before));
  assert_false (waits (&after));
  finish (&w);
  finish (&before);
  finish (&after);
  srv_range_lock_destroy (&l);
}

static void
a_late_reader_does_not_overtake_a_waiting_writer (void **state)
{
  struct srv_range_lock l;
  struct request first, writer, late;

  srv_range_lock_init (&l);
  start (&l, &first, 0, 0, SHARED);
  start (&l, &writer, 0, 5, EXCLUSIVE);
  start (&l, &late, 0, 0, SHARED);
  assert_true (waits (&writer));
  assert_true (waits (&late));
  finish (&first);
  assert_false (waits (&writer));
  assert_true (waits (&late));
  finish (&writer);
  finish (&late);
  srv_range_lock_destroy (&l);
}

static void
a_range_waits_for_all_of_its_blockers (void **state)
{
  struct srv_range_lock l;
  struct request left, right, both;

  srv_range_lock_init (&l);
  start (&l, &left, 0, 4, EXCLUSIVE);
  start (&l, &right, 5, 9, EXCLUSIVE);
  start (&l, &both, 0, 9, EXCLUSIVE);
  finish (&right);
  assert_true (waits (&both));
  finish (&left);
  finish (&both);
  srv_range_lock_destroy (&l);
}

static void
a_request_passes_a_waiter_it_does_not_touch (void **state)
{
  struct srv_range_lock l;
  struct request holder, waiter, free_one;

  srv_range_lock_init (&l);
  start (&l, &holder, 0, 4, EXCLUSIVE);
  start (&l, &waiter, 4, 8, EXCLUSIVE);
  start (&l, &free_one, 9, 9, EXCLUSIVE);
  assert_false (waits (&free_one));
  finish (&free_one);
  finish (&holder);
  finish (&waiter);
  srv_range_lock_destroy (&l);
}

/* Those that hold a range go on, and all others end. */
static void
shut_ends_waits_and_refuses_later_ranges (void **state)
{
  struct srv_range_lock l;
  struct request holder, writer, reader;
  struct srv_range late;

  srv_range_lock_init (&l);
  start (&l, &holder, 0, 4, EXCLUSIVE);
  start (&l, &writer, 4, 8, EXCLUSIVE);
  start (&l, &reader, 8, 9, SHARED);
  assert_true (waits (&writer));
  assert_true (waits (&reader));
  srv_range_lock_shut (&l);
  assert_int_equal (pthread_join (writer.thread, NULL), 0);
  assert_int_equal (pthread_join (reader.thread, NULL), 0);
  assert_int_equal (writer.result, -ESHUTDOWN);
  assert_int_equal (reader.result, -ESHUTDOWN);
  assert_int_equal (srv_range_acquire (&l, &late, 0, 0, SHARED), -ESHUTDOWN);
  assert_int_equal (srv_range_acquire (&l, &late, 99, 99, SHARED), -ESHUTDOWN);
  assert_int_equal (list_length (&l), 1);
  finish (&holder);
  srv_range_lock_destroy (&l);
}

/* --- under load ------------------------------------------------------- */

#define NR_CELLS 16
#define NR_THREADS 8
#define NR_ROUNDS 3000

struct stress {
  struct srv_range_lock lock;
  uint64_t cells[NR_CELLS];          /* plain: the range lock protects them */
  uint64_t expected[NR_CELLS];       /* atomic */
  uint64_t nr_bad;                   /* atomic */
};

struct worker {
  struct stress *s;
  unsigned seed;
  pthread_t thread;
};

/* All cells of a range get the same new values, twice, so that anyone who
 * looks in between can tell. */
static void
write_cells (struct stress *s, uint64_t first, uint64_t last)
{
  uint64_t i;

  for (i = first; i <= last; i++) {
    __atomic_fetch_add (&s->expected[i], 2, __ATOMIC_RELAXED);
    s->cells[i]++;
  }
  if (last - first > NR_CELLS / 2)
    sched_yield ();
  for (i = first; i <= last; i++)
    s->cells[i]++;
}

static void
read_cells (struct stress *s, uint64_t first, uint64_t last)
{
  uint64_t i;

  for (i = first; i <= last; i++)
    if (s->cells[i] % 2 != 0)
      __atomic_fetch_add (&s->nr_bad, 1, __ATOMIC_RELAXED);
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  struct srv_range range;
  uint64_t first, last;
  bool exclusive;
  int i;

  for (i = 0; i < NR_ROUNDS; i++) {
    first = rand_r (&w->seed) % NR_CELLS;
    last = first + rand_r (&w->seed) % (NR_CELLS - first);
    exclusive = rand_r (&w->seed) % 2;
    assert_int_equal (srv_range_acquire (&w->s->lock, &range, first, last,
                                         exclusive), 0);
    if (exclusive)
      write_cells (w->s, first, last);
    else
      read_cells (w->s, first, last);
    srv_range_release (&w->s->lock, &range);
  }
  return NULL;
}

static void
under_load_writers_are_alone (void **state)
{
  struct stress s = { .nr_bad = 0 };
  struct worker workers[NR_THREADS];
  const char *seed = getenv ("TEST_SEED");
  unsigned base = seed ? strtoul (seed, NULL, 0) : (unsigned) time (NULL);
  int i;

  print_message ("TEST_SEED=%u\n", base);
  srv_range_lock_init (&s.lock);
  for (i = 0; i < NR_THREADS; i++) {
    workers[i] = (struct worker) { .s = &s, .seed = base + i };
    assert_int_equal (pthread_create (&workers[i].thread, NULL, work,
                                      &workers[i]), 0);
  }
  for (i = 0; i < NR_THREADS; i++)
    assert_int_equal (pthread_join (workers[i].thread, NULL), 0);
  assert_int_equal (s.nr_bad, 0);
  for (i = 0; i < NR_CELLS; i++)
    assert_int_equal (s.cells[i], s.expected[i]);
  srv_range_lock_destroy (&s.lock);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (readers_share_a_range),
    cmocka_unit_test (a_writer_keeps_everybody_out_of_its_range),
    cmocka_unit_test (a_late_reader_does_not_overtake_a_waiting_writer),
    cmocka_unit_test (a_range_waits_for_all_of_its_blockers),
    cmocka_unit_test (a_request_passes_a_waiter_it_does_not_touch),
    cmocka_unit_test (shut_ends_waits_and_refuses_later_ranges),
    cmocka_unit_test (under_load_writers_are_alone),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
