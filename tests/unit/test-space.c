/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the two messages on lack of space: one when space is gone and one when
 * it is back, however many requests fail, and few where some of them succeed
 * meanwhile.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "space.h"

#define SECOND UINT64_C (1000000000)

static uint64_t now;
static unsigned errors, infos;
static char last_line[256];

static uint64_t
fake_now (void)
{
  return now;
}

static void
count_line (void *opaque, enum log_level level, const char *line)
{
  if (level == LOG_ERROR)
    errors++;
  else if (level == LOG_INFO)
    infos++;
  strncpy (last_line, line, sizeof last_line - 1);
}

static const struct log_sink sink = { .write = count_line };

static void
begin (struct srv_space *s)
{
  *s = (struct srv_space) {
    .path = "disk.qcow2", .log = &sink, .now_ns = fake_now,
  };
  now = 1000 * SECOND;
  errors = infos = 0;
}

static void
one_line_when_it_is_gone_and_one_when_it_is_back (void **state)
{
  struct srv_space s;
  int i;

  begin (&s);
  srv_space_note (&s, 0);
  assert_int_equal (errors + infos, 0);
  for (i = 0; i < 1000; ++i)
    srv_space_note (&s, -ENOSPC);
  assert_int_equal (errors, 1);
  assert_non_null (strstr (last_line, "disk.qcow2: no space left"));
  now += 4 * SECOND;
  for (i = 0; i < 1000; ++i)
    srv_space_note (&s, i % 2);
  assert_int_equal (infos, 1);
  assert_non_null (strstr (last_line, "space on the host again"));
  assert_int_equal (errors, 1);
}

static void
a_success_beside_failures_is_no_space (void **state)
{
  struct srv_space s;
  int i;

  begin (&s);
  for (i = 0; i < 100; ++i) {
    srv_space_note (&s, -EDQUOT);
    now += SECOND;
    srv_space_note (&s, 0);
  }
  assert_int_equal (errors, 1);
  assert_int_equal (infos, 0);
}

static void
other_errors_say_nothing_of_space (void **state)
{
  struct srv_space s;

  begin (&s);
  srv_space_note (&s, -EIO);
  srv_space_note (&s, -ENOSPC);
  now += 100 * SECOND;
  srv_space_note (&s, -EIO);
  assert_int_equal (errors, 1);
  assert_int_equal (infos, 0);
}

/* A failure every 5 s, and successes between, for a day. */
static void
a_disk_that_stays_full_does_not_fill_the_log (void **state)
{
  struct srv_space s;
  int i;

  begin (&s);
  for (i = 0; i < 86400 / 5; ++i) {
    srv_space_note (&s, -ENOSPC);
    now += 4 * SECOND;
    srv_space_note (&s, 0);
    now += SECOND;
  }
  assert_in_range (errors, 1, 4);
}

static void
after_a_long_time_it_is_quick_again (void **state)
{
  struct srv_space s;
  unsigned before;
  int i;

  begin (&s);
  for (i = 0; i < 20; ++i) {    /* often: it becomes slow */
    srv_space_note (&s, -ENOSPC);
    now += 1000 * SECOND;
    srv_space_note (&s, 0);
  }
  now += 10000 * SECOND;
  srv_space_note (&s, -ENOSPC);
  before = infos;
  now += 4 * SECOND;
  srv_space_note (&s, 0);
  assert_int_equal (infos, before + 1);
}

#define ROUNDS 300

static pthread_barrier_t barrier;
static struct srv_space shared;
static bool round_done;         /* atomic */

/* Each round has a disk of its own, which becomes full. */
static void
begin_round (void)
{
  shared = (struct srv_space) {
    .path = "disk.qcow2", .log = &sink, .now_ns = fake_now,
  };
  round_done = false;
  pthread_barrier_wait (&barrier);
}

static void *
succeed (void *opaque)
{
  for (int i = 0; i < ROUNDS; ++i) {
    pthread_barrier_wait (&barrier);
    do
      srv_space_note (&shared, 0);
    while (!__atomic_load_n (&round_done, __ATOMIC_RELAXED));
    srv_space_note (&shared, 0);
    pthread_barrier_wait (&barrier);
  }
  return NULL;
}

static void
a_success_at_the_same_moment_is_no_space (void **state)
{
  pthread_t thread;

  begin (&shared);
  pthread_barrier_init (&barrier, NULL, 2);
  assert_int_equal (pthread_create (&thread, NULL, succeed, NULL), 0);
  for (int i = 0; i < ROUNDS; ++i) {
    begin_round ();
    srv_space_note (&shared, -ENOSPC);
    __atomic_store_n (&round_done, true, __ATOMIC_RELAXED);
    pthread_barrier_wait (&barrier);
  }
  pthread_join (thread, NULL);
  pthread_barrier_destroy (&barrier);
  assert_int_equal (errors, ROUNDS);
  assert_int_equal (infos, 0);
}

/* As a test that makes an export by hand has it. */
static void
all_zero_is_fine (void **state)
{
  struct srv_space s = { 0 };

  srv_space_note (&s, -ENOSPC);
  srv_space_note (&s, 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (one_line_when_it_is_gone_and_one_when_it_is_back),
    cmocka_unit_test (a_success_beside_failures_is_no_space),
    cmocka_unit_test (other_errors_say_nothing_of_space),
    cmocka_unit_test (a_disk_that_stays_full_does_not_fill_the_log),
    cmocka_unit_test (after_a_long_time_it_is_quick_again),
    cmocka_unit_test (a_success_at_the_same_moment_is_no_space),
    cmocka_unit_test (all_zero_is_fine),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
