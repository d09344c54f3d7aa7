/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which runs are merged, and when (docs/ARCHITECTURE.md section 8), with
 * made-up configurations of which nothing is read.
 *
 * Breaks if: as many runs of a level as a tier are left alone, or fewer are
 * merged; the oldest run is rewritten for too little, or never; smaller runs
 * that are older than it prevent that; at rest more runs are left than four, or
 * runs are merged for nothing, or a level in part; or the output has the level
 * of one of its inputs.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "index-world.h"
#include "merge.h"

/* Few enough entries that none counts as stale. */
struct shape {
  const char *what;
  enum { NEVER, IDLE, ALWAYS } when;
  struct { unsigned level, nr_entries; } runs[9];    /* oldest first */
};

static const struct shape shapes[] = {
  { "nothing", NEVER, { { 0, 0 } } },
  { "seven of a level", IDLE,
    { { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 } } },
  { "eight of a level", ALWAYS,
    { { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 },
      { 0, 9 } } },
  { "eight of two levels", IDLE,
    { { 1, 9 }, { 1, 9 }, { 1, 9 }, { 1, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 },
      { 0, 9 } } },
  { "less than a third behind the bottom", NEVER,
    { { DEDUP_MAX_LEVEL, 300 }, { 2, 99 } } },
  { "a third", ALWAYS, { { DEDUP_MAX_LEVEL, 300 }, { 2, 100 } } },
  { "a third in two", ALWAYS,
    { { DEDUP_MAX_LEVEL, 300 }, { 3, 60 }, { 2, 40 } } },
  { "a third, but half of it young", NEVER,
    { { DEDUP_MAX_LEVEL, 300 }, { 2, 50 }, { 1, 50 } } },
  { "less than a third, with a small one that is older", NEVER,
    { { 1, 10 }, { DEDUP_MAX_LEVEL, 300 }, { 2, 89 } } },
  { "a third, with that", ALWAYS,
    { { 1, 10 }, { DEDUP_MAX_LEVEL, 300 }, { 2, 90 } } },
  { "only small ones", NEVER, { { 1, 300 }, { 1, 200 } } },
  { "four", NEVER,
    { { DEDUP_MAX_LEVEL, 300 }, { 1, 9 }, { 0, 9 }, { 0, 9 } } },
  { "five", IDLE,
    { { DEDUP_MAX_LEVEL, 300 }, { 1, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 } } },
};

/* The configuration as it says; ages are 10, 20, and so on. */
static void
list_runs (struct dedup_index_manifest *c, const struct shape *s)
{
  size_t i;

  c->nr_segments = 0;
  for (i = 0; i < 9 && s->runs[i].nr_entries > 0; i++)
    c->segments[c->nr_segments++] = (struct dedup_segment_desc) {
      .id = i + 1, .age = 10 * (i + 1), .hi = UINT32_MAX,
      .nr_entries = s->runs[i].nr_entries, .level = (uint8_t) s->runs[i].level,
    };
}

static void
test_when_runs_are_merged (void **state)
{
  struct world w;
  size_t i;

  make_world (&w, 4, 16);
  for (i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    list_runs (w.d->store.index->manifest, &shapes[i]);
    if (merge_wanted (w.d->store.index, false) != (shapes[i].when == ALWAYS))
      fail_msg ("%s: %s", shapes[i].what,
                shapes[i].when == ALWAYS ? "left alone" : "merged");
    if (merge_wanted (w.d->store.index, true) != (shapes[i].when != NEVER))
      fail_msg ("%s: %s at rest", shapes[i].what,
                shapes[i].when != NEVER ? "left alone" : "merged");
  }
  w.d->store.index->manifest->nr_segments = 0;
  end_world (&w);
}

/* What says that it is the output of a merge that has no inputs, as an image
 * may, is left alone. */
static void
test_output_alone_is_no_input (void **state)
{
  static const struct shape five = { "five levels", IDLE,
    { { DEDUP_MAX_LEVEL, 900 }, { 3, 9 }, { 2, 9 }, { 1, 9 }, { 0, 9 } } };
  struct world w;

  make_world (&w, 4, 16);
  list_runs (w.d->store.index->manifest, &five);
  assert_true (merge_wanted (w.d->store.index, true));
  w.d->store.index->manifest->segments[3].merge = 7;
  w.d->store.index->manifest->segments[3].output = true;
  assert_false (merge_wanted (w.d->store.index, true));
  w.d->store.index->manifest->nr_segments = 0;
  end_world (&w);
}

/* What was an incarnation is of level 0, however old. */
static void
test_output_stands_above_what_was_an_incarnation (void **state)
{
  static const struct shape converted = { "converted", IDLE,
    { { DEDUP_MAX_LEVEL, 900 }, { 0, 9 }, { 0, 9 }, { 0, 9 }, { 0, 9 },
      { 0, 9 }, { 2, 9 }, { 1, 9 } } };
  struct merge_plan *p = NULL;
  struct world w;

  make_world (&w, 4, 16);
  list_runs (w.d->store.index->manifest, &converted);
  w.d->store.index->manifest->next_id = 100;
  assert_int_equal (merge_plan_new (w.d->store.index, true, &p), 1);
  assert_int_equal (p->nr_ids, 7);
  assert_int_equal (p->out.age, 80);
  assert_int_equal (p->out.level, 3);
  merge_plan_free (p);
  w.d->store.index->manifest->nr_segments = 0;
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_when_runs_are_merged),
    cmocka_unit_test (test_output_alone_is_no_input),
    cmocka_unit_test (test_output_stands_above_what_was_an_incarnation),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
