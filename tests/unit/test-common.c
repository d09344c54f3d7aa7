/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the bottom room: wire integers, checked arithmetic, faults, log lines,
 * and the mutex that knows its owner. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "checked.h"
#include "cleanup.h"
#include "fault.h"
#include "lock.h"
#include "log.h"
#include "wire.h"

static void
wire_integers_are_big_endian (void **state)
{
  const uint8_t bytes[8] = { 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef };
  be16 a = be16_make (0x0123);
  be32 b = be32_make (0x01234567);
  be64 c = be64_make (UINT64_C (0x0123456789abcdef));

  assert_memory_equal (a.b, bytes, 2);
  assert_memory_equal (b.b, bytes, 4);
  assert_memory_equal (c.b, bytes, 8);
}

static void
wire_integers_load_what_was_made (void **state)
{
  const uint64_t values[] = { 0, 1, 0x80, 0xff, 0x8000, 0xffff, 0x80000000,
                              UINT32_MAX, UINT64_C (1) << 63, UINT64_MAX,
                              UINT64_C (0xfedcba9876543210) };
  size_t i;

  for (i = 0; i < sizeof values / sizeof values[0]; i++) {
    assert_int_equal (be16_load (be16_make ((uint16_t) values[i])),
                      (uint16_t) values[i]);
    assert_int_equal (be32_load (be32_make ((uint32_t) values[i])),
                      (uint32_t) values[i]);
    assert_true (be64_load (be64_make (values[i])) == values[i]);
  }
}

struct at_odd_offset {
  uint8_t pad;
  be16 a;
  be32 b;
  be64 c;
};
WIRE_FIELD_AT (struct at_odd_offset, a, 1);
WIRE_FIELD_AT (struct at_odd_offset, b, 3);
WIRE_FIELD_AT (struct at_odd_offset, c, 7);

static void
wire_integers_need_no_alignment (void **state)
{
  struct at_odd_offset s = { .c = be64_make (42) };

  assert_int_equal (sizeof s, 15);
  assert_true (be64_load (s.c) == 42);
}

static void
sums_that_do_not_fit_are_refused (void **state)
{
  uint64_t r;

  assert_true (add_u64 (UINT64_MAX - 1, 1, &r));
  assert_true (r == UINT64_MAX);
  assert_false (add_u64 (UINT64_MAX, 1, &r));
  assert_false (add_u64 (UINT64_C (1) << 63, UINT64_C (1) << 63, &r));
}

static void
products_that_do_not_fit_are_refused (void **state)
{
  uint64_t r;

  assert_true (mul_u64 (UINT32_MAX, UINT32_MAX, &r));
  assert_true (r == UINT64_C (0xfffffffe00000001));
  assert_true (mul_u64 (0, UINT64_MAX, &r));
  assert_true (r == 0);
  assert_false (mul_u64 (UINT64_C (1) << 32, UINT64_C (1) << 32, &r));
}

static void
rounding_is_right_at_the_edges (void **state)
{
  assert_int_equal (div_round_up (0, 512), 0);
  assert_int_equal (div_round_up (1, 512), 1);
  assert_int_equal (div_round_up (512, 512), 1);
  assert_int_equal (div_round_up (513, 512), 2);
  assert_true (div_round_up (UINT64_MAX, 2) == UINT64_C (1) << 63);
  assert_int_equal (round_up_pow2 (0, 4096), 0);
  assert_int_equal (round_up_pow2 (1, 4096), 4096);
  assert_int_equal (round_up_pow2 (4096, 4096), 4096);
  assert_int_equal (round_down_pow2 (4095, 4096), 0);
  assert_int_equal (round_down_pow2 (8191, 4096), 4096);
}

static void
powers_of_two_are_known (void **state)
{
  assert_false (is_pow2 (0));
  assert_true (is_pow2 (1));
  assert_true (is_pow2 (UINT64_C (1) << 63));
  assert_false (is_pow2 (3));
  assert_false (is_pow2 (UINT64_MAX));
}

static void
fault_says_what_where_and_which_errno (void **state)
{
  struct fault f = { 0 };

  assert_int_equal (fault_corrupt (&f, 512, "entry %d is bad", 7), -EINVAL);
  assert_int_equal (f.kind, FAULT_CORRUPT);
  assert_int_equal (f.err, EINVAL);
  assert_int_equal (f.off, 512);
  assert_string_equal (f.msg, "entry 7 is bad");
}

static void
first_fault_stands (void **state)
{
  struct fault f = { 0 };

  assert_int_equal (fault_io (&f, EIO, 1, "the cause"), -EIO);
  assert_int_equal (fault_usage (&f, "what followed"), -EINVAL);
  assert_int_equal (f.kind, FAULT_IO);
  assert_int_equal (f.err, EIO);
  assert_string_equal (f.msg, "the cause");
}

static void
fault_without_a_reader_is_still_an_errno (void **state)
{
  assert_int_equal (fault_unsupported (NULL, "unread"), -ENOTSUP);
}

static void
long_fault_is_cut (void **state)
{
  struct fault f = { 0 };

  assert_int_equal (fault_usage (&f, "%0*d", 1000, 1), -EINVAL);
  assert_int_equal (strlen (f.msg), sizeof f.msg - 1);
}

struct seen {
  int nr;
  enum log_level level;
  char line[1024];
};

static void
remember (void *opaque, enum log_level level, const char *line)
{
  struct seen *seen = opaque;

  seen->nr++;
  seen->level = level;
  snprintf (seen->line, sizeof seen->line, "%s", line);
}

static void
log_line_reaches_the_sink (void **state)
{
  struct seen seen = { 0 };
  const struct log_sink sink = { .write = remember, .opaque = &seen };

  log_line (&sink, LOG_INFO, "%s %d", "number", 3);
  assert_int_equal (seen.nr, 1);
  assert_int_equal (seen.level, LOG_INFO);
  assert_string_equal (seen.line, "number 3");
  log_line (NULL, LOG_ERROR, "to nobody");
  assert_int_equal (seen.nr, 1);
}

static void *
ask_whether_held (void *opaque)
{
  return lock_held (opaque) ? opaque : NULL;
}

static bool
other_thread_holds (struct lock *l)
{
  pthread_t thread;
  void *answer;

  assert_int_equal (pthread_create (&thread, NULL, ask_whether_held, l), 0);
  assert_int_equal (pthread_join (thread, &answer), 0);
  return answer != NULL;
}

static void
lock_knows_its_owner (void **state)
{
  struct lock l;

  lock_init (&l);
  assert_false (lock_held (&l));
  lock_acquire (&l);
  assert_true (lock_held (&l));
  assert_false (other_thread_holds (&l));
  lock_release (&l);
  assert_false (lock_held (&l));
  lock_destroy (&l);
}

static int
held_inside (struct lock *l)
{
  LOCK_FOR_SCOPE (l);
  return lock_held (l);
}

static void
scoped_lock_ends_with_the_block (void **state)
{
  struct lock l;

  lock_init (&l);
  assert_true (held_inside (&l));
  assert_false (lock_held (&l));
  lock_destroy (&l);
}

struct handover {
  struct lock lock;
  pthread_cond_t cond;
  bool there;
  bool held_after_wait;
};

static void *
wait_for_it (void *opaque)
{
  struct handover *h = opaque;

  LOCK_FOR_SCOPE (&h->lock);
  while (!h->there)
    lock_wait (&h->lock, &h->cond);
  h->held_after_wait = lock_held (&h->lock);
  return NULL;
}

static void
waiting_gives_the_lock_up_and_takes_it_back (void **state)
{
  struct handover h = { .there = false };
  pthread_t thread;

  lock_init (&h.lock);
  pthread_cond_init (&h.cond, NULL);
  assert_int_equal (pthread_create (&thread, NULL, wait_for_it, &h), 0);
  lock_acquire (&h.lock);
  assert_true (lock_held (&h.lock));
  h.there = true;
  pthread_cond_signal (&h.cond);
  lock_release (&h.lock);
  assert_int_equal (pthread_join (thread, NULL), 0);
  assert_true (h.held_after_wait);
  pthread_cond_destroy (&h.cond);
  lock_destroy (&h.lock);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (wire_integers_are_big_endian),
    cmocka_unit_test (wire_integers_load_what_was_made),
    cmocka_unit_test (wire_integers_need_no_alignment),
    cmocka_unit_test (sums_that_do_not_fit_are_refused),
    cmocka_unit_test (products_that_do_not_fit_are_refused),
    cmocka_unit_test (rounding_is_right_at_the_edges),
    cmocka_unit_test (powers_of_two_are_known),
    cmocka_unit_test (fault_says_what_where_and_which_errno),
    cmocka_unit_test (first_fault_stands),
    cmocka_unit_test (fault_without_a_reader_is_still_an_errno),
    cmocka_unit_test (long_fault_is_cut),
    cmocka_unit_test (log_line_reaches_the_sink),
    cmocka_unit_test (lock_knows_its_owner),
    cmocka_unit_test (scoped_lock_ends_with_the_block),
    cmocka_unit_test (waiting_gives_the_lock_up_and_takes_it_back),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
