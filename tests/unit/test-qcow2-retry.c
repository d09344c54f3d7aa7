/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2_txn_retry and its kin: a step is repeated until it misses nothing, always
 * with the lock, and stops at the first error of its own or of loading.
 *
 * An image in memory with clusters of 512 bytes, each of whose L2 tables maps
 * 64 of them, opened anew for each test so that no table is in memory.
 */
#include "qcow2-env.h"

#define PER_TABLE 64

struct world {
  struct env e;
  int read_error;              /* of each read */
};

static int
read_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;

  return call == IO_PREAD ? w->read_error : 0;
}

static void
world_new (struct world *w)
{
  memset (w, 0, sizeof *w);
  env_new (&w->e, 9, 4, 4 * PER_TABLE);
  for (unsigned i = 0; i < 4; ++i)
    write_new (w->e.img, i * PER_TABLE);
  writeback (w->e.img);
  qcow2_close (w->e.img);
  ok (io_faulty_new (w->e.io, read_cb, w, &w->e.io));
  env_open (&w->e);
}

struct sum {                   /* a step: of the entries of all tables */
  unsigned calls, found;
  int result;                  /* of a step that found all */
  bool unlocked;
};

static int
sum_locked (struct qcow2_txn *txn, void *opaque)
{
  struct sum *s = opaque;
  uint64_t entry;
  int r;

  s->calls++;
  s->found = 0;
  s->unlocked = s->unlocked || !lock_held (&txn->img->lock);
  for (unsigned i = 0; i < 4; ++i) {
    r = qcow2_get_entry_locked (txn, 0, i * PER_TABLE, &entry);
    if (r < 0)
      return r;
    s->found += entry != 0;
  }
  return s->result;
}

/* Each of four tables costs one more call, and stays pinned meanwhile. */
static void
test_a_step_is_repeated_until_it_misses_nothing (void **state)
{
  struct sum s = { 0 };
  struct qcow2_txn txn;
  struct world w;

  world_new (&w);
  qcow2_txn_begin (w.e.img, &txn);
  ok (qcow2_txn_retry (&txn, sum_locked, &s));
  assert_false (lock_held (&w.e.img->lock));
  assert_int_equal (s.calls, 5);
  assert_int_equal (s.found, 4);
  assert_false (s.unlocked);
  assert_int_equal (txn.nr_pins, 4);
  ok (qcow2_txn_retry (&txn, sum_locked, &s));
  assert_int_equal (s.calls, 6);
  qcow2_txn_end (&txn);
  env_free (&w.e);
}

static void
test_retry_locked_returns_with_the_lock (void **state)
{
  struct sum s = { .result = 7 };
  struct qcow2_txn txn;
  struct world w;

  world_new (&w);
  qcow2_txn_begin (w.e.img, &txn);
  lock_acquire (&w.e.img->lock);
  assert_int_equal (qcow2_txn_retry_locked (&txn, sum_locked, &s), 7);
  assert_true (lock_held (&w.e.img->lock));
  assert_int_equal (s.calls, 5);
  assert_false (s.unlocked);
  qcow2_txn_end_locked (&txn);
  lock_release (&w.e.img->lock);
  env_free (&w.e);
}

/* Whatever a step returns but -EAGAIN is the result, and the last call. */
static void
test_an_error_of_the_step_ends_it (void **state)
{
  struct sum s = { .result = -EBUSY };
  struct world w;

  world_new (&w);
  assert_int_equal (qcow2_txn_run (w.e.img, sum_locked, &s), -EBUSY);
  assert_false (lock_held (&w.e.img->lock));
  assert_int_equal (s.calls, 5);
  env_free (&w.e);
}

/* A step may ask for another call without missing a table: it waits for
 * something else, for which it released the lock. */
static int
third_time_locked (struct qcow2_txn *txn, void *opaque)
{
  int *calls = opaque;

  return ++*calls < 3 ? -EAGAIN : 0;
}

static void
test_a_step_that_misses_nothing_may_be_called_again (void **state)
{
  int calls = 0;
  struct world w;

  world_new (&w);
  ok (qcow2_txn_run (w.e.img, third_time_locked, &calls));
  assert_int_equal (calls, 3);
  env_free (&w.e);
}

/* The step is not called again, nothing stays pinned, and the next try works. */
static void
test_an_error_of_loading_ends_it (void **state)
{
  struct sum s = { 0 };
  struct world w;

  world_new (&w);
  w.read_error = -EIO;
  assert_int_equal (qcow2_txn_run (w.e.img, sum_locked, &s), -EIO);
  assert_false (lock_held (&w.e.img->lock));
  assert_int_equal (s.calls, 1);
  assert_int_equal (w.e.img->cache.nr_slices, 0);
  w.read_error = 0;
  ok (qcow2_txn_run (w.e.img, sum_locked, &s));
  assert_int_equal (s.found, 4);
  for (size_t i = 0; i < w.e.img->cache.nr_slices; ++i)
    assert_int_equal (w.e.img->cache.clock[i]->pins, 0);
  env_free (&w.e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_step_is_repeated_until_it_misses_nothing),
    cmocka_unit_test (test_retry_locked_returns_with_the_lock),
    cmocka_unit_test (test_an_error_of_the_step_ends_it),
    cmocka_unit_test (test_a_step_that_misses_nothing_may_be_called_again),
    cmocka_unit_test (test_an_error_of_loading_ends_it),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
