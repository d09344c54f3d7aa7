/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which readers are taken for sequential, and which ranges are announced
 * for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checked.h"
#include "read-ahead.h"

#define MIB (UINT64_C (1) << 20)
#define GIB (UINT64_C (1) << 30)
#define DISK (64 * GIB)

static struct srv_read_ahead ra;

static int
set_up (void **state)
{
  srv_read_ahead_init (&ra);
  return 0;
}

static int
tear_down (void **state)
{
  srv_read_ahead_destroy (&ra);
  return 0;
}

static struct srv_ahead
note (uint64_t off, uint32_t len)
{
  return srv_read_ahead_note (&ra, off, len, DISK);
}

/* Read NR requests of LEN bytes from START on, in groups of GROUP whose order
 * is turned round, and check that what is announced follows on, lies ahead of
 * the reader, and not too far.  Returns where the announcements end. */
static uint64_t
read_on (uint64_t start, uint32_t len, unsigned nr, unsigned group)
{
  uint64_t announced = 0, off, furthest = start;
  struct srv_ahead a;
  unsigned i;

  for (i = 0; i < nr; i++) {
    off = start + (uint64_t) (i / group * group + group - 1 - i % group) * len;
    furthest = off + len > furthest ? off + len : furthest;
    a = note (off, len);
    assert_true (a.from <= a.to);
    if (a.from == a.to)
      continue;
    assert_true (a.from >= furthest && a.to <= furthest + SRV_READ_AHEAD_MAX);
    assert_true (announced == 0 || a.from >= announced);
    announced = a.to;
  }
  return announced;
}

static void
a_sequential_reader_is_read_ahead_of (void **state)
{
  assert_true (read_on (0, 128 << 10, 100, 1) >= 100 * (128 << 10) + 2 * MIB);
  assert_true (read_on (DISK / 2, MIB, 100, 1) >= DISK / 2 + 102 * MIB);
}

static void
requests_in_flight_may_arrive_in_any_order (void **state)
{
  assert_true (read_on (0, MIB, 96, 8) >= 96 * MIB);
  assert_true (read_on (8 * GIB, 128 << 10, 96, 16) >= (8 * GIB) + 12 * MIB);
}

/* Reads as read_on does; returns how much was passed, in order and once. */
static uint64_t
pass (uint64_t start, uint32_t len, unsigned nr, unsigned group)
{
  uint64_t passed = 0, end = 0;
  struct srv_ahead a;
  unsigned i;

  for (i = 0; i < nr; i++) {
    a = note (start + (uint64_t) (i / group * group + group - 1 - i % group) *
              len, len);
    assert_true (a.passed_from <= a.passed_to);
    if (a.passed_from == a.passed_to)
      continue;
    assert_true (a.passed_from % MIB == 0 && a.passed_to % MIB == 0);
    assert_true (end == 0 || a.passed_from == end);
    end = a.passed_to;
    passed += a.passed_to - a.passed_from;
  }
  return passed;
}

static void
what_a_reader_has_passed_is_told_once (void **state)
{
  assert_int_equal (pass (0, 128 << 10, 256, 1), 32 * MIB);
  assert_int_equal (pass (4 * GIB, MIB, 64, 1), 64 * MIB);
  assert_int_equal (pass (8 * GIB, MIB, 64, 8), 64 * MIB);
  assert_int_equal (pass (12 * GIB, 16 << 10, 640, 16), 10 * MIB);
  /* In units; the first and the last are read in part here. */
  assert_int_equal (pass (16 * GIB + MIB / 2, MIB, 64, 1), 63 * MIB);
  /* Again, but for what is near to where the first reader ended. */
  assert_true (pass (0, 128 << 10, 256, 1) >= 29 * MIB);
}

/* Half of it is left out: it was not passed. */
static void
a_reader_with_gaps_passes_nothing (void **state)
{
  uint64_t i;

  for (i = 0; i < 1000; i++) {
    struct srv_ahead a = note (i * (128 << 10), 64 << 10);

    assert_true (a.passed_from == a.passed_to);
  }
}

/* A reader that has left out half of a GiB, and then reads all, is told of what
 * it reads from then on.  No request has to look at the GiB behind it. */
static void
a_long_way_with_gaps_is_forgotten (void **state)
{
  uint64_t i, passed = 0, most = 0;

  for (i = 0; i < GIB / (128 << 10); i++)
    (void) note (i * (128 << 10), 64 << 10);
  for (i = 0; i < 3 * GIB / MIB; i++) {
    struct srv_ahead a = note (GIB + i * MIB, MIB);

    passed += a.passed_to - a.passed_from;
    most = MAX_OF (most, a.passed_to - a.passed_from);
  }
  assert_true (most <= 128 * MIB);
  assert_true (passed >= 3 * GIB - 64 * MIB && passed <= 3 * GIB + 64 * MIB);
}

static void
several_readers_are_told_apart (void **state)
{
  uint64_t i, r, announced[4] = { 0 };
  struct srv_ahead a;

  for (i = 0; i < 50; i++)
    for (r = 0; r < 4; r++) {
      a = note (r * (4 * GIB) + i * (256 << 10), 256 << 10);
      announced[r] = a.to > a.from ? a.to : announced[r];
    }
  for (r = 0; r < 4; r++)
    assert_true (announced[r] > r * (4 * GIB) + 50 * (256 << 10));
}

static void
small_requests_are_not_looked_at (void **state)
{
  uint64_t i;

  for (i = 0; i < 1000; i++) {
    struct srv_ahead a = note (i * 4096, 4096);

    assert_true (a.from == a.to);
  }
  assert_int_equal (ra.clock, 0);
}

static void
a_random_reader_gets_nothing (void **state)
{
  unsigned seed = 5, i;

  for (i = 0; i < 100000; i++) {
    uint64_t off = ((uint64_t) rand_r (&seed) << 16) % (DISK - MIB);
    struct srv_ahead a = note (off, 64 << 10);

    assert_true (a.from == a.to);
    assert_true (a.passed_from == a.passed_to);
  }
}

/* Inside a few MiB all requests are near each other; but the reader gets no
 * further. */
static void
a_random_reader_of_a_small_range_gets_little (void **state)
{
  unsigned seed = 5, i;
  uint64_t total = 0;

  for (i = 0; i < 100000; i++) {
    struct srv_ahead a = note ((uint64_t) rand_r (&seed) % 64 * (64 << 10),
                               64 << 10);

    total += a.to - a.from;
  }
  assert_true (total <= 2 * SRV_READ_AHEAD_MAX);
}

static void
nothing_is_announced_past_the_end (void **state)
{
  uint64_t i;

  for (i = 0; i < 16; i++) {
    struct srv_ahead a = srv_read_ahead_note (&ra, i * MIB, MIB, 16 * MIB);

    assert_true (a.to <= 16 * MIB);
  }
}

static void
a_reader_of_what_is_cached_is_looked_at_seldom (void **state)
{
  uint64_t i;
  unsigned announcements = 0;

  for (i = 0; i < 1024; i++) {
    struct srv_ahead a = note (i * MIB, MIB);

    if (a.from < a.to) {
      announcements++;
      srv_read_ahead_rest (&ra, &a);
    }
  }
  assert_true (announcements > 10 && announcements < 1024 / 24);
}

#define TEST(fn) cmocka_unit_test_setup_teardown (fn, set_up, tear_down)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (a_sequential_reader_is_read_ahead_of),
    TEST (requests_in_flight_may_arrive_in_any_order),
    TEST (what_a_reader_has_passed_is_told_once),
    TEST (a_reader_with_gaps_passes_nothing),
    TEST (a_long_way_with_gaps_is_forgotten),
    TEST (several_readers_are_told_apart),
    TEST (small_requests_are_not_looked_at),
    TEST (a_random_reader_gets_nothing),
    TEST (a_random_reader_of_a_small_range_gets_little),
    TEST (nothing_is_announced_past_the_end),
    TEST (a_reader_of_what_is_cached_is_looked_at_seldom),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
