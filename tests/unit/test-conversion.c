/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests conversion: incarnations from a time when there was a limit on them
 * become runs.  None is left, each hash keeps its value, deleted hashes stay
 * deleted, and the space of the incarnations is freed.  This holds wherever the
 * conversion is interrupted, whoever still reads the incarnations, and whatever
 * their bytes are.
 *
 * Breaks if: the run takes another age than the incarnation's, loses tombstones
 * or entries, is listed while the incarnation stays listed, or the incarnation
 * leaves the list without it; an area is lost, or freed while it is read; or a
 * hostile incarnation meets an assertion of the writer of runs.
 *
 * CONVERSION_SEED=n
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "incarnation-page.h"
#include "index-world.h"

/* Twice what a log store holds, and more. */
#define KEYS(order) (UINT64_C (12) << (order))

static void
freeze (struct world *w)
{
  if (w->d->store.index->frozen)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
}

/* Values and tombstones of keys that come again and again. */
static void
make_tables (struct world *w, unsigned nr)
{
  const size_t more = w->d->store.index->manifest->nr_incarnations +
    w->d->store.index->manifest->nr_segments + nr;

  while (w->d->store.index->manifest->nr_incarnations + w->d->store.index->manifest->nr_segments < more) {
    set_value (w, rnd (w->nr_keys), rnd (4) ? next_value++ : 0);
    freeze (w);
  }
}

/* NR incarnations between BELOW runs and as many above; a session without a
 * limit begins. */
static void
make_incarnations (struct world *w, unsigned order, unsigned nr,
                   unsigned below)
{
  make_world (w, order, KEYS (order));
  make_tables (w, below);
  w->limit = WIDE;
  reopen (w, false);
  make_tables (w, nr);
  w->limit = 0;
  reopen (w, false);
  make_tables (w, below);
  assert_int_equal (w->d->store.index->manifest->nr_incarnations, nr);
  assert_int_equal (w->d->store.index->manifest->nr_segments, 2 * below);
}

static bool
step (struct world *w)
{
  if (!(dedup_due (w->d, NULL) & DEDUP_JOB_MERGE))
    return false;
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_MERGE), 0);
  return true;
}

static uint64_t
area_bytes (const struct world *w)
{
  const struct dedup_index_manifest *c = w->d->store.index->manifest;
  uint64_t n = 0;
  size_t i;

  for (i = 0; i < c->nr_segments; i++)
    n += c->segments[i].size_bytes;
  return n;
}

/* Closed, no incarnation is left, nor anything of one. */
static void
assert_converted (struct world *w)
{
  reopen (w, false);
  assert_int_equal (w->d->store.index->manifest->nr_incarnations, 0);
  assert_int_equal (w->d->store.index->manifest->nr_limbo, 0);
  assert_int_equal (w->d->store.index->nr_retired, 0);
  assert_clean (w);
}

static void
test_none_is_left_and_none_is_missed (void **state)
{
  struct dedup_stats s;
  struct world w;
  unsigned steps, orders[] = { 4, 6, 8 }, i;

  for (i = 0; i < 3; i++) {
    make_incarnations (&w, orders[i], 13, 3);
    check_all (&w);
    for (steps = 0; step (&w); steps++)
      check_all (&w);
    assert_true (steps >= 13);
    dedup_get_stats (w.d, &s);
    assert_int_equal (s.nr_incarnations, 0);
    assert_int_equal (s.index_disk_bytes, area_bytes (&w));
    check_all (&w);
    assert_store_is_right (&w);
    assert_converted (&w);
    end_world (&w);
  }
}

static void
open_limbo (struct world *w)
{
  make_world (w, 4, KEYS (4));
  w->limit = 6;
  reopen (w, false);
  while (w->d->store.index->manifest->nr_limbo == 0) {
    set_value (w, rnd (w->nr_keys), next_value++);
    freeze (w);
  }
  w->limit = 0;
  reopen (w, false);
}

/* What a limit dropped was kept for the next one: nobody wants it now. */
static void
test_limbo_is_freed (void **state)
{
  struct dedup_stats s;
  struct world w;

  open_limbo (&w);
  while (step (&w))
    ;
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.index_disk_bytes, area_bytes (&w));
  assert_converted (&w);
  end_world (&w);
}

/* There is never a table more than at the start: young runs are merged as they
 * come. */
static void
test_many_take_no_more_tables_meanwhile (void **state)
{
  struct world w;

  make_incarnations (&w, 4, 400, 0);
  while (step (&w)) {
    assert_true (w.d->store.index->manifest->nr_segments <= 400 / 8 + 40);
    assert_true (w.d->store.index->view->nr_tables <= 400);
  }
  assert_int_equal (w.d->store.index->manifest->nr_incarnations, 0);
  assert_true (w.d->store.index->view->nr_tables < 20);
  check_all (&w);
  assert_converted (&w);
  end_world (&w);
}

/* The sweep for garbage, with a guard that was made anew when they were listed no
 * more: what waits to be freed is not freed by that as well. */
static void
sweep_up (struct world *w)
{
  struct fault f = { 0 };

  assert_int_equal (dedup_guard (&w->d->store, true, &f), 0);
  assert_true (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN);
  while (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_SCAN), 0);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_GIVE_BACK), 0);
  assert_true (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN);
  while (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_SCAN), 0);
}

/* A lookup that began before goes on with the incarnations; their space waits
 * for it. */
static void
test_readers_are_waited_for (void **state)
{
  struct dedup_index_view *set;
  uint64_t quarantined;
  struct world w;
  uint64_t key, nr = 0;

  make_incarnations (&w, 5, 5, 0);
  lock_acquire (w.d->base.lock);
  set = dedup_index_view_locked (w.d->store.index);
  lock_release (w.d->base.lock);
  while (step (&w))
    ;
  assert_int_equal (w.d->store.index->nr_retired, 5);
  lock_acquire (w.d->base.lock);
  quarantined = qcow2_quarantined_locked (w.d->base.img);
  lock_release (w.d->base.lock);
  sweep_up (&w);
  lock_acquire (w.d->base.lock);
  assert_int_equal (qcow2_quarantined_locked (w.d->base.img), quarantined);
  lock_release (w.d->base.lock);
  assert_int_equal (dedup_run (w.d, DEDUP_JOB_COMMIT), 0);
  for (key = 0; key < w.nr_keys; key++) {
    struct dedup_probe p = { .hash = hash_of (key) };

    dedup_index_probe (set, &p, 1);
    nr += p.found == DEDUP_HIT;
  }
  assert_true (nr > 0);
  for (key = 0; key < set->nr; key++)
    assert_false (dedup_incarnation_damaged (set->v[key]));
  dedup_index_view_put (w.d->store.index, set);
  assert_int_equal (dedup_index_reap (w.d->store.index), 0);
  assert_int_equal (w.d->store.index->nr_retired, 0);
  assert_converted (&w);
  end_world (&w);
}

/* --- Interrupted ------------------------------------------------------------- */

static void
test_it_may_end_at_any_call (void **state)
{
  struct breaker b = { 0, UINT64_MAX };
  uint64_t nr, converted = 0;
  struct world w, t;

  make_incarnations (&w, 4, 4, 2);
  assert_int_equal (dedup_finish (w.d), 0);
  dedup_free (w.d);
  for (nr = 1; ; nr++) {
    t = w;
    t.io = copy_of (w.io);
    assert_int_equal (io_faulty_new (t.io, break_cb, &b, &t.io), 0);
    b = (struct breaker) { 0, UINT64_MAX };
    open_world (&t);
    b = (struct breaker) { 0, nr };
    while (t.d->store.index->merge_due && dedup_run (t.d, DEDUP_JOB_MERGE) == 0)
      ;
    if (b.calls < nr)
      break;
    dedup_free (t.d);
    b.fail_at = UINT64_MAX;
    open_world (&t);
    converted += t.d->store.index->manifest->nr_incarnations < 4;
    check_all (&t);
    while (step (&t))
      ;
    check_all (&t);
    assert_converted (&t);
    dedup_free (t.d);
    io_close (t.io);
  }
  if (nr < 25 || converted < 5)
    fail_msg ("only %" PRIu64 " calls, %" PRIu64 " late ones", nr, converted);
  dedup_free (t.d);
  io_close (t.io);
  io_close (w.io);
  free (w.values);
}

static uint64_t
frontier (struct world *w)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  return qcow2_frontier_locked (w->d->base.img);
}

/* Not even the space is lost. */
static void
test_a_stop_leaves_it_as_it_was (void **state)
{
  uint64_t before = 0;
  unsigned i, k;
  struct world w;

  make_incarnations (&w, 5, 3, 0);
  dedup_stop_jobs (w.d);
  for (i = 0; i < 8; i++) {
    assert_true (step (&w));
    for (k = 0; k < 4; k++)
      assert_int_equal (dedup_run (w.d, DEDUP_JOB_COMMIT), 0);
    before = i == 2 ? frontier (&w) : before;
  }
  assert_int_equal (frontier (&w), before);
  assert_int_equal (w.d->store.index->manifest->nr_incarnations, 3);
  assert_int_equal (w.d->store.index->manifest->nr_segments, 0);
  w.d->upkeep.stop = w.d->store.index->stop = false;
  while (step (&w))
    ;
  check_all (&w);
  assert_converted (&w);
  end_world (&w);
}

/* --- Bytes that nobody vouches for --------------------------------------------- */

static uint64_t
page_off (const struct dedup_incarnation_desc *desc, uint64_t number)
{
  const struct inc_layout l = inc_layout_of (desc->order);

  return inc_table_off (desc, &l, number);
}

static void
read_page (struct world *w, size_t inc, uint64_t number,
           struct inc_wire_page *p)
{
  assert_int_equal (io_pread (w->io, p, sizeof *p,
                              page_off (&w->d->store.index->manifest->incarnations[inc],
                                        number)), 0);
}

static void
write_page (struct world *w, size_t inc, uint64_t number,
            struct inc_wire_page *p)
{
  p->checksum = be64_make (dedup_page_checksum (p, &p->checksum));
  assert_int_equal (io_pwrite (w->io, p, sizeof *p,
                               page_off (&w->d->store.index->manifest->incarnations[inc],
                                         number)), 0);
}

/* Every slot of a page has the same hash, with other values. */
static void
repeat_hash (struct world *w, size_t inc, uint64_t number,
             struct dedup_hash hash)
{
  struct inc_wire_page p;
  size_t i;

  read_page (w, inc, number, &p);
  for (i = 0; i < INC_PAGE_BUCKETS * DEDUP_BUCKET_SLOTS; i++)
    p.slots[i / DEDUP_BUCKET_SLOTS][i % DEDUP_BUCKET_SLOTS] =
      (struct inc_wire_slot) { hash, be64_make (i % 3 ? i + 1 : UINT64_MAX) };
  write_page (w, inc, number, &p);
}

/* An exact index of NR incarnations, each key in one of them. */
static void
make_exact (struct world *w, unsigned order, unsigned nr)
{
  uint64_t key;

  make_world_of (w, order, 4800, true);
  w->limit = WIDE;
  reopen (w, false);
  for (key = 0; w->d->store.index->manifest->nr_incarnations < nr; key++) {
    set_value (w, key, next_value++);
    freeze (w);
  }
  w->limit = 0;
  reopen (w, false);
  assert_true (w->d->store.index->exact);
}

/* What only the incarnations that were harmed had may be missing, and comes
 * never out wrong. */
static uint64_t
count_found (struct world *w)
{
  uint64_t key, nr = 0;

  for (key = 0; key < w->nr_keys; key++) {
    struct dedup_probe p = { .hash = hash_of (key) };

    lock_acquire (w->d->base.lock);
    p.found = dedup_index_lookup_locked (w->d->store.index, &p.hash, &p.value);
    lock_release (w->d->base.lock);
    if (p.found == DEDUP_PROBE)
      dedup_index_probe (w->d->store.index->view, &p, 1);
    if (p.found == DEDUP_HIT) {
      assert_int_equal (p.value, w->values[key]);
      nr++;
    }
  }
  return nr;
}

static void
test_hashes_that_come_twice_do_no_harm (void **state)
{
  const struct dedup_hash stranger = hash_of (UINT64_C (1) << 40);
  struct world w;
  uint64_t before;

  make_exact (&w, 7, 3);
  before = count_found (&w);
  repeat_hash (&w, 1, 0, stranger);
  repeat_hash (&w, 1, 2, stranger);
  while (step (&w))
    ;
  assert_int_equal (w.d->store.index->manifest->nr_incarnations, 0);
  assert_true (count_found (&w) >= before - 2 * 100);
  assert_store_is_right (&w);
  assert_true (w.d->store.index->exact);
  assert_converted (&w);
  end_world (&w);
}

/* More slots in use than the configuration says, all of one prefix. */
static void
test_entries_too_many_are_left_out (void **state)
{
  struct inc_wire_page p;
  struct world w;
  uint64_t page, i, n = 0;

  make_exact (&w, 7, 2);
  for (page = 0; page < 6; page++) {
    read_page (&w, 0, page, &p);
    for (i = 0; i < INC_PAGE_BUCKETS * DEDUP_BUCKET_SLOTS; i++) {
      struct inc_wire_slot *s =
        &p.slots[i / DEDUP_BUCKET_SLOTS][i % DEDUP_BUCKET_SLOTS];

      s->hash = hash_of (n++ + (UINT64_C (1) << 40));
      memset (&s->hash, 0x55, 8);
      s->value = be64_make (n);
    }
    write_page (&w, 0, page, &p);
  }
  assert_true (n > w.d->store.index->manifest->incarnations[0].nr_entries);
  while (step (&w))
    ;
  assert_int_equal (w.d->store.index->manifest->nr_incarnations, 0);
  assert_true (count_found (&w) > 300);
  assert_store_is_right (&w);
  assert_converted (&w);
  end_world (&w);
}

static void
test_damaged_pages_cost_their_entries (void **state)
{
  struct world w;
  uint64_t before, after;

  make_exact (&w, 7, 3);
  before = count_found (&w);
  damage (&w, page_off (&w.d->store.index->manifest->incarnations[1], 1) + 100);
  while (step (&w))
    ;
  after = count_found (&w);
  assert_true (after < before && after >= before - 100);
  assert_false (w.d->store.index->exact);
  assert_store_is_right (&w);
  assert_converted (&w);
  end_world (&w);
}

static void
test_a_damaged_head_costs_the_incarnation (void **state)
{
  struct world w;
  uint64_t before, after, lost;

  make_exact (&w, 7, 3);
  before = count_found (&w);
  lost = w.d->store.index->manifest->incarnations[1].nr_entries;
  damage (&w, w.d->store.index->manifest->incarnations[1].host_off + 16);
  while (step (&w))
    ;
  after = count_found (&w);
  assert_int_equal (before - after, lost);
  assert_false (w.d->store.index->exact);
  assert_converted (&w);
  end_world (&w);
}

/* Another one takes its place when all pages are bad: there is nothing to
 * list. */
static void
test_nothing_left_lists_nothing (void **state)
{
  struct world w;
  uint64_t i;

  make_exact (&w, 4, 1);
  assert_int_equal (dedup_run (w.d, DEDUP_JOB_FILTERS), 0);
  for (i = 0; i < inc_layout_of (4).table_pages; i++)
    damage (&w, page_off (&w.d->store.index->manifest->incarnations[0], i) + 100);
  while (step (&w))
    ;
  assert_int_equal (w.d->store.index->manifest->nr_segments, 0);
  assert_false (w.d->store.index->exact);
  assert_converted (&w);
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_none_is_left_and_none_is_missed),
    cmocka_unit_test (test_limbo_is_freed),
    cmocka_unit_test (test_many_take_no_more_tables_meanwhile),
    cmocka_unit_test (test_readers_are_waited_for),
    cmocka_unit_test (test_it_may_end_at_any_call),
    cmocka_unit_test (test_a_stop_leaves_it_as_it_was),
    cmocka_unit_test (test_hashes_that_come_twice_do_no_harm),
    cmocka_unit_test (test_entries_too_many_are_left_out),
    cmocka_unit_test (test_damaged_pages_cost_their_entries),
    cmocka_unit_test (test_a_damaged_head_costs_the_incarnation),
    cmocka_unit_test (test_nothing_left_lists_nothing),
  };
  const char *seed = getenv ("CONVERSION_SEED");

  rng = seed ? strtoull (seed, NULL, 0) : (uint64_t) time (NULL);
  printf ("CONVERSION_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
