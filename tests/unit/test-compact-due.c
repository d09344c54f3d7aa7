/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests when a compaction starts by itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compact-due.h"

#define STORED 1000             /* 100 are a tenth, 50 a twentieth */

/* A job starts, and ends with so much moved and dead. */
static void
run_job (struct srv_compact_due *d, uint64_t moved, uint64_t dead)
{
  assert_true (srv_compact_due (d, 300, STORED));
  d->ran = true;
  srv_compact_due_ended (d, moved, dead, STORED);
}

static void
test_starts_above_a_tenth (void **state)
{
  struct srv_compact_due d = { 0 };

  assert_false (srv_compact_due (&d, 0, 0));
  assert_false (srv_compact_due (&d, 100, STORED));
  assert_true (srv_compact_due (&d, 101, STORED));
}

/* Writes beside a job that has done well add to what is dead: the first count after it may
 * find more than a tenth, and so may the next. */
static void
test_starts_again_if_it_helped (void **state)
{
  struct srv_compact_due d = { 0 };

  run_job (&d, 500, 90);
  assert_true (srv_compact_due (&d, 140, STORED));
  run_job (&d, 500, 50);
  assert_false (srv_compact_due (&d, 90, STORED));
  assert_true (srv_compact_due (&d, 101, STORED));
}

static void
needs_growth (struct srv_compact_due *d)
{
  assert_false (srv_compact_due (d, 140, STORED));
  assert_false (srv_compact_due (d, 190, STORED));
  assert_true (srv_compact_due (d, 191, STORED));
}

static void
test_rests_if_it_did_not_help (void **state)
{
  struct srv_compact_due moved_nothing = { 0 }, left_much = { 0 }, cancelled = { 0 };

  run_job (&moved_nothing, 0, 90);
  needs_growth (&moved_nothing);
  run_job (&left_much, 500, 101);
  needs_growth (&left_much);
  run_job (&cancelled, 500, 90);
  assert_true (srv_compact_due (&cancelled, 300, STORED));
  cancelled.ran = true;         /* and has no end of its own */
  needs_growth (&cancelled);
}

/* What was taken for what cannot be moved is less by now: growth counts from there. */
static void
test_floor_sinks (void **state)
{
  struct srv_compact_due d = { 0 };

  run_job (&d, 500, 140);
  assert_false (srv_compact_due (&d, 140, STORED));
  assert_false (srv_compact_due (&d, 60, STORED));
  assert_false (srv_compact_due (&d, 110, STORED));
  assert_true (srv_compact_due (&d, 111, STORED));
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_starts_above_a_tenth),
    cmocka_unit_test (test_starts_again_if_it_helped),
    cmocka_unit_test (test_rests_if_it_did_not_help),
    cmocka_unit_test (test_floor_sinks),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
