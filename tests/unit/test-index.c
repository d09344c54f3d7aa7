/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the index against a plain map: no live entry is ever missed or wrong,
 * and no deleted one found, whatever freezes, merges, closes and crashes come
 * in between; and the index does not grow when the same entries are made again.
 *
 * INDEX_OPS=n, INDEX_SEED=n: how many operations, which.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "index-world.h"

static uint64_t
in_runs (const struct world *w)
{
  return dedup_manifest_entries (w->d->store.index->manifest);
}

/* --- Tests ------------------------------------------------------------------- */

/* Where LIMITS, sessions have one or not by turns. */
static unsigned
play (struct world *w, uint64_t ops, bool limits)
{
  unsigned levels = 0;
  uint64_t i;

  for (i = 0; i < ops; i++) {
    const uint64_t what = rnd (1000);

    if (what < 700)
      set_value (w, rnd (w->nr_keys), next_value++);
    else if (what < 800)
      set_value (w, rnd (w->nr_keys), 0);
    else if (what < 960)
      check_some (w, 1 + rnd (20));
    else if (what < 998)
      work (w, what < 965);
    else if (rnd (limits ? 8 : 40) == 0) {
      w->limit = !limits ? -1 : rnd (3) ? 0 : WIDE;
      reopen (w, what == 998);
    }
    if (w->d->store.index->manifest->nr_segments > 0 &&
        w->d->store.index->manifest->segments[0].level > levels)
      levels = w->d->store.index->manifest->segments[0].level;
  }
  return levels;
}

static void
test_index_matches_a_plain_map (void **state)
{
  const uint64_t ops = env ("INDEX_OPS", 30000);
  const unsigned orders[] = { 4, 6, 7 };
  unsigned round, levels = 0;

  for (round = 0; round < 3; round++) {
    struct world w;

    make_world (&w, orders[round], 20000);
    levels = MAX_OF (levels, play (&w, ops, false));
    check_all (&w);
    reopen (&w, round % 2);
    check_all (&w);
    assert_store_is_right (&w);
    end_world (&w);
  }
  if (ops >= 30000)             /* runs of all kinds were there */
    assert_int_equal (levels, DEDUP_MAX_LEVEL);
}

/* A limit that comes and goes: what is of one age never comes to stand before
 * what is younger. */
static void
test_limits_come_and_go (void **state)
{
  const uint64_t ops = env ("INDEX_OPS", 30000);
  struct world w;

  make_world (&w, 4, 3000);
  play (&w, ops, true);
  check_all (&w);
  assert_store_is_right (&w);
  end_world (&w);
}

static void
merge_all (struct world *w)
{
  while (w->d->store.index->merge_due)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_MERGE), 0);
}

static unsigned
nr_runs (const struct world *w)
{
  const struct dedup_index_manifest *c = w->d->store.index->manifest;
  unsigned i, n = 0;

  for (i = 0; i < c->nr_segments; i++)
    n += i == 0 || c->segments[i].age != c->segments[i - 1].age;
  return n;
}

static bool
levels_are_in_order (const struct world *w)
{
  const struct dedup_index_manifest *c = w->d->store.index->manifest;
  unsigned i;

  for (i = 1; i < c->nr_segments; i++)
    if (c->segments[i - 1].level < c->segments[i].level)
      return false;
  return true;
}

/* Few are left, whatever there were, none of a level above an older one's, and
 * a stop in between harms nothing. */
static void
test_runs_are_merged_at_rest (void **state)
{
  unsigned round, most = 0;
  struct world w;
  uint64_t i;

  make_world (&w, 4, 20000);
  for (round = 0; round < 30; round++) {
    for (i = rnd (20000); i > 0; i--) {
      set_value (&w, rnd (w.nr_keys), next_value++);
      if (i % 16 == 0)
        work (&w, false);
    }
    merge_all (&w);
    most = MAX_OF (most, nr_runs (&w));
    while (dedup_due (w.d, NULL) & DEDUP_JOB_MERGE_IDLE) {
      assert_int_equal (dedup_run (w.d, DEDUP_JOB_MERGE_IDLE), 0);
      if (rnd (8) == 0)
        reopen (&w, false);
      merge_all (&w);
    }
    assert_in_range (nr_runs (&w), 0, 4);
    assert_true (levels_are_in_order (&w));
    for (i = 0; i < 100; i++)
      check_some (&w, 20);
  }
  assert_true (most > 8);
  check_all (&w);
  assert_store_is_right (&w);
  end_world (&w);
}

static unsigned
merge_at_rest (struct world *w)
{
  unsigned steps = 0;

  for (; dedup_due (w->d, NULL) & DEDUP_JOB_MERGE_IDLE; steps++) {
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_MERGE_IDLE), 0);
    check_all (w);
  }
  return steps;
}

/* Where there is no level above, output and youngest input are of one age and
 * level. */
static void
test_runs_of_the_highest_level_are_merged (void **state)
{
  struct dedup_index_manifest *c;
  struct world w;
  uint64_t i;

  make_world (&w, 4, 20000);
  while (nr_runs (&w) < 7 || in_runs (&w) < 5000) {
    set_value (&w, rnd (w.nr_keys), rnd (4) ? next_value++ : 0);
    work (&w, false);
  }
  for (c = w.d->store.index->manifest, i = 0; i < c->nr_segments; i++)
    c->segments[i].level = DEDUP_MAX_LEVEL;
  w.d->store.config->index = *c;
  reopen (&w, false);
  assert_true (merge_at_rest (&w) > 1);
  assert_int_equal (nr_runs (&w), 1);
  assert_store_is_right (&w);
  end_world (&w);
}

/* A year's rewriting: each entry is made 12 times; what lies superseded is
 * bounded by what the policy leaves unmerged. */
static void
test_what_is_superseded_does_not_pile_up (void **state)
{
  struct world w;
  uint64_t i;

  make_world (&w, 6, 4000);
  for (i = 0; i < 12 * w.nr_keys; i++) {
    set_value (&w, rnd (w.nr_keys), next_value++);
    if (i % 64 == 0)
      work (&w, false);
  }
  merge_all (&w);
  check_all (&w);
  /* Twice: the bottom and a third of it, tiers below level 2. */
  if (in_runs (&w) > 4 * w.nr_keys)
    fail_msg ("%" PRIu64 " entries for %" PRIu64 " keys", in_runs (&w),
              w.nr_keys);
  end_world (&w);
}

/* Blocks rewritten all the time, with new contents, in a disk of 2000 clusters:
 * entries whose cluster has something else by now do not pile up. */
static void
test_clusters_used_again_take_no_room (void **state)
{
  const uint64_t clusters = 2000;
  uint64_t *owner = calloc (clusters, sizeof *owner), i, live = 0, most = 0;
  uint64_t bound;
  struct world w;

  assert_non_null (owner);
  make_world (&w, 8, 250000);
  for (i = 1; i < w.nr_keys; i++) {
    const uint64_t c = 1 + rnd (clusters - 1);

    w.values[owner[c]] = 0;      /* dead; the index is not told */
    set_value (&w, i, c);
    owner[c] = i;
    if (i % 64 == 0)
      work (&w, false);
    if (i % 8192 == 0) {
      merge_all (&w);
      most = MAX_OF (most, in_runs (&w));
    }
  }
  merge_all (&w);
  for (i = 1; i < w.nr_keys; i++)
    if (w.values[i]) {
      check_keys (&w, &i, 1);
      live++;
    }
  /* Twice the clusters of the file, and 24 log stores' worth of young ones. */
  lock_acquire (w.d->base.lock);
  bound = 2 * qcow2_frontier_locked (w.d->base.img) + 24 * (4 << 8);
  lock_release (w.d->base.lock);
  if (live != clusters - 1 || most > bound)
    fail_msg ("%" PRIu64 " entries of %" PRIu64 " made, %" PRIu64 " live, at "
              "most %" PRIu64, most, w.nr_keys, live, bound);
  free (owner);
  end_world (&w);
}

/* Enough runs for a merge of several steps, then every call of it fails in
 * turn, as does all after it: the next session goes on. */
static void
test_merge_may_end_at_any_call (void **state)
{
  struct breaker b = { 0, UINT64_MAX };
  struct world w, t;
  uint64_t i, nr, steps = 0;

  make_world (&w, 4, 3000);
  for (i = 0; i < w.nr_keys; i++) {
    set_value (&w, i, next_value++);
    if (w.d->store.index->frozen)
      assert_int_equal (dedup_run (w.d, DEDUP_JOB_FREEZE), 0);
  }
  assert_int_equal (dedup_finish (w.d), 0);
  dedup_free (w.d);
  for (nr = 1; ; nr += 1 + nr / 4) {
    t = w;
    t.io = copy_of (w.io);
    assert_int_equal (io_faulty_new (t.io, break_cb, &b, &t.io), 0);
    b = (struct breaker) { 0, UINT64_MAX };
    open_world (&t);
    b = (struct breaker) { 0, nr };
    while (t.d->store.index->merge_due && dedup_run (t.d, DEDUP_JOB_MERGE) == 0)
      steps++;
    if (b.calls < nr)
      break;
    dedup_free (t.d);
    b.fail_at = UINT64_MAX;
    open_world (&t);
    check_all (&t);
    merge_all (&t);
    check_all (&t);
    assert_store_is_right (&t);
    dedup_free (t.d);
    io_close (t.io);
  }
  if (nr < 25 || steps < 5)
    fail_msg ("only %" PRIu64 " calls, %" PRIu64 " steps", nr, steps);
  check_all (&t);
  dedup_free (t.d);
  io_close (t.io);
  io_close (w.io);
  free (w.values);
}

/* An index of incarnations, as older programs and limits make them, with runs
 * above it; and a limit put on runs. */
static void
test_limit_drops_the_oldest_whatever_it_is (void **state)
{
  struct dedup_stats s;
  struct world w;
  uint64_t i;

  make_world (&w, 5, 6000);
  for (i = 0; i < w.nr_keys; i++) {
    if (i == 2000)
      w.d->store.index->manifest->max_incarnations = 1024;
    if (i == 4000)
      w.d->store.index->manifest->max_incarnations = 0;
    set_value (&w, i, next_value++);
    if (i < 4000)
      work (&w, false);
    else if (w.d->store.index->frozen)          /* as they are */
      assert_int_equal (dedup_run (w.d, DEDUP_JOB_FREEZE), 0);
  }
  dedup_get_stats (w.d, &s);
  assert_true (s.nr_incarnations > 5 && s.nr_runs > 1);
  check_all (&w);
  reopen (&w, false);
  check_all (&w);
  w.d->store.index->manifest->max_incarnations = 4;
  for (i = 0; i < 1000; i++) {
    set_value (&w, i, next_value++);
    work (&w, false);
  }
  dedup_get_stats (w.d, &s);
  assert_true (s.nr_incarnations + s.nr_runs <= 4);
  assert_true (s.nr_runs == 0);
  check_keys (&w, (uint64_t[]) { 997, 998, 999 }, 3);
  reopen (&w, false);
  end_world (&w);
}

static void
count_wake (void *opaque)
{
  ++*(unsigned *) opaque;
}

static bool
journal_fills (struct world *w)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  return dedup_journal_filling_locked (w->d->store.journal);
}

/* Writers go on while a commit is due: the loop, which takes the lock, is not
 * woken for each of them; and it is for the next one. */
static void
test_loop_is_woken_once_for_a_commit (void **state)
{
  unsigned wakes = 0, round;
  struct world w;
  uint64_t i, end;

  make_world (&w, 16, 200000);
  w.d->base.wake = count_wake;
  w.d->base.wake_opaque = &wakes;
  for (i = 0, round = 1; round <= 3; round++) {
    do
      set_value (&w, i++ % w.nr_keys, next_value++);
    while (!journal_fills (&w));
    for (end = i + 1000; i < end; i++)
      set_value (&w, i % w.nr_keys, next_value++);
    assert_int_equal (wakes, round);
    if (round == 2)
      assert_int_equal (dedup_flush (w.d), 0);   /* a client's */
    work (&w, false);
  }
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_index_matches_a_plain_map),
    cmocka_unit_test (test_limits_come_and_go),
    cmocka_unit_test (test_runs_are_merged_at_rest),
    cmocka_unit_test (test_runs_of_the_highest_level_are_merged),
    cmocka_unit_test (test_what_is_superseded_does_not_pile_up),
    cmocka_unit_test (test_clusters_used_again_take_no_room),
    cmocka_unit_test (test_merge_may_end_at_any_call),
    cmocka_unit_test (test_limit_drops_the_oldest_whatever_it_is),
    cmocka_unit_test (test_loop_is_woken_once_for_a_commit),
  };

  rng = env ("INDEX_SEED", (uint64_t) time (NULL));
  printf ("INDEX_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
