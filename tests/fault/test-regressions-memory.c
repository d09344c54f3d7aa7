/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests bugs that a review found where memory runs out at a bad moment.
 *
 * Breaks if: without memory a configuration is written that names what is not
 * there, an index is lost, a disk stops or aborts; or if a cluster that was
 * freed unnoticed is trusted without a comparison (verify=off).
 */
#include "fault-malloc.h"
#include "regress.h"

#include <errno.h>
#include <unistd.h>

/* Of the allocations that an engine call makes while fault_running is set: */
static unsigned long countdown;       /* 0: none fails */
static size_t at_least;               /* smaller ones are spared */
static unsigned long failed;

static bool
fails_in_turn (size_t size)
{
  if (fault_running == NULL || countdown == 0 || --countdown > 0)
    return false;
  failed++;
  return true;
}

static bool
fails_if_large (size_t size)
{
  if (fault_running == NULL)
    return false;
  failed += size >= at_least;
  return size >= at_least;
}

/* Run JOB; its N-th allocation fails.  FAILED: was there one? */
static void
run_with_fault (struct world *w, unsigned job, unsigned long n)
{
  int r;

  failed = 0;
  countdown = n;
  fault_running = w;
  r = dedup_run (w->d, job);
  fault_running = NULL;
  assert_true (r == 0 || r == -ENOMEM);
}

/* --- in a freeze --------------------------------------------------------- */

static const struct shape small = { .name = "small", .order = 4,
                                    .journal_areas = 4 };

static void
fill_log_store (struct world *w, uint64_t *id)
{
  for (; w->d->store.index->frozen == NULL; ++*id) {
    assert_int_equal (write_id (w->d, *id % NR, *id), 0);
    assert_int_equal (dedup_flush (w->d), 0);
  }
}

/* Is the frozen log store all that keeps the first area from being used
 * again? */
static bool
frozen_holds_area (const struct dedup_pool *d)
{
  const struct dedup_journal_area *a = &d->store.config->areas[0];
  uint64_t end = a->first_seq + a->nr_blocks;

  return d->store.index->frozen_mark < end && d->store.index->current_mark >= end;
}

static struct world *
ready_to_freeze (void)
{
  struct world *w = world_open (&small);
  uint64_t id = 100;
  unsigned k;

  for (k = 0; k < 10; k++) {
    fill_log_store (w, &id);
    if (frozen_holds_area (w->d))
      break;
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  assert_int_equal (dedup_checkpoint (&w->d->store), 0);
  assert_true (frozen_holds_area (w->d));
  return w;
}

/* After ENOMEM at the publishing of an incarnation, the next checkpoint wrote
 * a configuration that named blocks of areas which had been given away. */
static void
test_enomem_in_a_freeze_leaves_a_valid_configuration (void **state)
{
  unsigned long k, hits = 0, went_on = 0;
  struct dedup_stats s;
  struct world *w;
  uint64_t before, want;

  fault_malloc_fails = fails_in_turn;
  do {
    w = ready_to_freeze ();
    dedup_get_stats (w->d, &s);
    before = s.index_entries;
    run_with_fault (w, DEDUP_JOB_FREEZE, hits + 1);
    if (dedup_failed (w->d) == 0) {     /* it may stop, if nothing is wrong */
      for (k = 0; k < 3; k++)
        assert_int_equal (dedup_checkpoint (&w->d->store), 0);
      assert_int_equal (write_id (w->d, 7, 123456789), 0);
      assert_int_equal (dedup_flush (w->d), 0);
      went_on++;
    }
    want = read_id (w->d, 7);
    dedup_free (w->d);
    w->d = must_open (&small, w->image.io, true);
    dedup_get_stats (w->d, &s);
    assert_true (s.index_entries >= before);
    assert_int_equal (read_id (w->d, 7), want);
    finish_clean (w);
    hits += failed;
  } while (failed > 0);
  assert_true (hits > 3 && went_on > hits / 2);
  fault_malloc_fails = NULL;
}

/* --- in a merge ---------------------------------------------------------- */

static struct world *
ready_to_merge (bool idle, uint64_t *id)
{
  struct world *w = world_open (&small);

  while (!merge_wanted (w->d->store.index, idle)) {
    fill_log_store (w, id);
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  return w;
}

/* A merge that can't publish what it made leaves its inputs listed, which were
 * to be dropped: the next commit must not give their areas away, and the merge
 * that is made then gives them away once. */
static void
test_enomem_in_a_merge_keeps_its_inputs (void **state)
{
  unsigned long hits = 0, kept = 0;
  struct world *w;
  uint64_t id;
  size_t nr;

  fault_malloc_fails = fails_in_turn;
  do {
    id = 100;
    w = ready_to_merge (false, &id);
    nr = w->d->store.index->manifest->nr_segments;
    run_with_fault (w, DEDUP_JOB_MERGE, hits + 1);
    if (dedup_failed (w->d) == 0) {
      kept += w->d->store.index->manifest->nr_segments == nr;
      fill_log_store (w, &id);
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
      while (merge_wanted (w->d->store.index, false))
        assert_int_equal (dedup_run (w->d, DEDUP_JOB_MERGE), 0);
      fill_log_store (w, &id);
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
      assert_int_equal (w->d->store.index->nr_retired, 0);
    }
    dedup_free (w->d);
    w->d = must_open (&small, w->image.io, true);
    finish_clean (w);
    hits += failed;
  } while (failed > 0);
  assert_true (hits > 3 && kept > hits / 2);
  fault_malloc_fails = NULL;
}

/* A merge that only serves speed is not tried for ever where it fails: the
 * image would never be left alone. */
static void
test_enomem_in_a_merge_at_rest_ends_it (void **state)
{
  unsigned long hits = 0;
  struct world *w;
  unsigned due;
  uint64_t id;

  fault_malloc_fails = fails_in_turn;
  do {
    id = 100;
    w = ready_to_merge (true, &id);
    assert_false (merge_wanted (w->d->store.index, false));
    assert_true (dedup_due (w->d, NULL) & DEDUP_JOB_MERGE_IDLE);
    run_with_fault (w, DEDUP_JOB_MERGE_IDLE, hits + 1);
    due = dedup_failed (w->d) ? 0 : dedup_due (w->d, NULL);
    assert_false (due & DEDUP_JOB_MERGE_IDLE);
    if (dedup_failed (w->d) == 0) {
      fill_log_store (w, &id);
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
      while ((due = dedup_due (w->d, NULL)) &
             (DEDUP_JOB_MERGE | DEDUP_JOB_MERGE_IDLE))
        assert_int_equal (dedup_run (w->d, due & DEDUP_JOB_MERGE ?
                                     DEDUP_JOB_MERGE : DEDUP_JOB_MERGE_IDLE),
                          0);
      assert_false (merge_wanted (w->d->store.index, true));
    }
    dedup_free (w->d);
    w->d = must_open (&small, w->image.io, true);
    finish_clean (w);
    hits += failed;
  } while (failed > 0);
  assert_true (hits > 3);
  fault_malloc_fails = NULL;
}

/* --- at open ------------------------------------------------------------- */

static uint64_t
index_entries (struct dedup_pool *d)
{
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  return s.has_store ? s.index_entries : 0;
}

/* Where memory for the configuration was wanting, the store counted as void:
 * a new one was made, and the index lost. */
static void
test_enomem_at_open_keeps_the_index (void **state)
{
  struct world *w = world_open (&small);
  struct dedup_open_params p;
  uint64_t id = 100, entries;
  unsigned long k = 0;

  fill_log_store (w, &id);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  assert_int_equal (write_id (w->d, 1, 99), 0);
  assert_int_equal (dedup_finish (w->d), 0);
  entries = index_entries (w->d);
  dedup_free (w->d);
  fault_malloc_fails = fails_in_turn;
  open_params (&small, &p);
  do {
    struct fault f = { 0 };
    int r;

    failed = 0;
    countdown = ++k;
    fault_running = w;
    r = dedup_open (w->image.io, &p, &w->d, &f);
    fault_running = NULL;
    assert_true (r == 0 || (r == -ENOMEM && f.err == ENOMEM && f.msg[0]));
    if (r < 0)
      w->d = must_open (&small, w->image.io, true);
    assert_int_equal (index_entries (w->d), entries);
    dedup_free (w->d);
  } while (failed > 0);
  assert_true (k > 10);
  fault_malloc_fails = NULL;
  w->d = must_open (&small, w->image.io, true);
  finish_clean (w);
}

/* --- in a write ---------------------------------------------------------- */

/* The table of held clusters grew in the link step, whose one assertion said
 * that nothing can fail there. */
static void
test_enomem_in_a_large_write_aborts_nothing (void **state)
{
  enum { COUNT = 150 };
  CLEANUP_FREE uint8_t *buf = malloc (COUNT * CLUSTER);
  unsigned long k = 0;
  struct world *w;
  uint64_t i;
  int r;

  for (i = 0; i < COUNT; i++)
    fill_cluster (buf + i * CLUSTER, 20000 + i);
  do {
    w = world_open (&small);
    failed = 0;
    countdown = ++k;
    fault_malloc_fails = fails_in_turn;
    fault_running = w;
    r = dedup_write (w->d, 0, buf, 10, COUNT);
    fault_running = NULL;
    assert_true (r == 0 || r == -ENOMEM);
    assert_int_equal (dedup_write (w->d, 0, buf, 10, COUNT), 0);
    for (i = 0; i < COUNT; i++)
      assert_int_equal (read_id (w->d, 10 + i), 20000 + i);
    finish_clean (w);
  } while (failed > 0);
  assert_true (k > COUNT);
}

/* Without memory for another log store, a writer asked for room for ever. */
static void
test_no_memory_for_a_log_store_does_not_spin (void **state)
{
  static const struct shape s = { .name = "large", .order = 12,
                                  .journal_areas = 16 };
  struct world *w = world_open (&s);
  struct dedup_stats before, after;
  uint64_t id = 1;

  /* A write asks for two entries: that of its hash, and a mark. */
  while (dedup_log_store_count (w->d->store.index->current) + 1 <
         dedup_log_store_capacity (w->d->store.index->current)) {
    assert_int_equal (write_id (w->d, id % NR, id), 0);
    id++;
  }
  dedup_get_stats (w->d, &before);
  at_least = 256 << 10;                 /* such a log store has 640 KiB */
  failed = 0;
  fault_malloc_fails = fails_if_large;
  alarm (20);
  fault_running = w;
  assert_int_equal (write_id (w->d, 5, 999999999), 0);
  fault_running = NULL;
  alarm (0);
  fault_malloc_fails = NULL;
  assert_true (failed > 0);
  assert_int_equal (read_id (w->d, 5), 999999999);
  assert_int_equal (write_id (w->d, 6, 1000000000), 0);
  dedup_get_stats (w->d, &after);
  assert_int_equal (after.stored, before.stored + 2);
  finish_clean (w);
}

/* Writing the configuration wants no memory: a checkpoint without any failed
 * in its middle, and the disk took no more writes. */
static void
test_enomem_in_a_checkpoint_stops_nothing (void **state)
{
  struct world *w = world_open (&small);
  uint64_t id = 1;
  int r;

  fault_malloc_fails = fails_in_turn;
  for (unsigned long hits = 0; ; hits++, id++) {
    assert_int_equal (write_id (w->d, id % NR, id), 0);
    failed = 0;
    countdown = hits + 1;
    fault_running = w;
    r = dedup_run (w->d, DEDUP_JOB_CLEAN);
    fault_running = NULL;
    assert_int_equal (dedup_failed (w->d), 0);
    if (failed == 0)
      break;
    assert_true (r == 0 || r == -ENOMEM);
  }
  fault_malloc_fails = NULL;
  assert_true (id > 1);
  assert_int_equal (read_id (w->d, id % NR), id);
  finish_clean (w);
}

/* --- in a free ----------------------------------------------------------- */

static const struct shape exact = { .name = "exact", .order = 6,
                                    .journal_areas = 4, .exact = true };

static bool
lost_a_free (struct dedup_pool *d)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return qcow2_frees_lost_locked (d->base.img);
}

/* Overwrite guest cluster IDX; the N-th allocation fails. */
static void
overwrite_with_fault (struct world *w, uint64_t idx, unsigned long n)
{
  int r;

  failed = 0;
  countdown = n;
  fault_running = w;
  r = write_id (w->d, idx, 500);
  fault_running = NULL;
  assert_true (r == 0 || r == -ENOMEM);
  if (r < 0)
    assert_int_equal (write_id (w->d, idx, 500), 0);
}

/* verify=off: where the ring of quarantine had no room, nobody made a tombstone
 * for the cluster, and the index was still called exact at the close.  The next
 * session used the cluster again, and linked it for what it had held. */
static void
test_enomem_in_a_free_makes_an_index_inexact (void **state)
{
  unsigned long n = 0, lost = 0;
  struct dedup_stats s;
  struct world *w;
  uint64_t i, was;
  bool lose;

  fault_malloc_fails = fails_in_turn;
  do {
    w = world_open (&exact);
    for (i = 0; i < 8; i++)
      assert_int_equal (write_id (w->d, i, 100 + i), 0);
    assert_int_equal (dedup_flush (w->d), 0);
    was = host_idx_of (w->d, 3);
    overwrite_with_fault (w, 3, ++n);
    lose = lost_a_free (w->d);
    lost += lose;
    assert_int_equal (dedup_finish (w->d), 0);
    dedup_free (w->d);
    w->d = must_open (&exact, w->image.io, true);
    dedup_get_stats (w->d, &s);
    assert_int_equal (s.exact, !lose);
    assert_true (reuses (w->d, was, 50, 120));
    assert_int_equal (write_id (w->d, 10, 103), 0);
    assert_int_equal (read_id (w->d, 10), 103);
    finish_clean (w);
  } while (failed > 0);
  assert_true (lost > 0);
  fault_malloc_fails = NULL;
}

/* --- in a copy of a lent table ------------------------------------------- */

static const struct shape lent = { .name = "lent", .order = 6,
                                   .journal_areas = 4, .disks = 4 };

/* Lends the active disk's tables to a disk, and copies one of them. */
static unsigned
clone_and_write (struct world *w)
{
  struct fault f = { 0 };
  unsigned root;

  for (uint64_t i = 0; i < 4; i++)
    assert_int_equal (write_id (w->d, i, 300 + i), 0);
  assert_int_equal (dedup_disk_clone (w->d, 0, "clone", true, &root, &f), 0);
  return root;
}

static uint64_t
read_clone (struct world *w, unsigned root, uint64_t idx)
{
  uint8_t buf[CLUSTER];
  uint64_t id;

  assert_int_equal (dedup_read (w->d, root, buf, idx * CLUSTER, CLUSTER), 0);
  assert_true (identify_cluster (buf, &id));
  return id;
}

/* Without memory for a recent source all tables counted as shared, that which
 * the link step was about to change as well, and its assertion ended the
 * server.  So it did after a checkpoint without memory to keep sources. */
static void
test_enomem_beside_lent_tables_aborts_nothing (void **state)
{
  unsigned long n = 0, hits;
  struct world *w;
  unsigned root;
  int r;

  fault_malloc_fails = fails_in_turn;
  do {
    w = world_open (&lent);
    root = clone_and_write (w);
    overwrite_with_fault (w, 1, ++n);
    hits = failed;
    assert_int_equal (read_id (w->d, 1), 500);
    failed = 0;
    countdown = n;
    fault_running = w;
    r = dedup_run (w->d, DEDUP_JOB_CHECKPOINT);
    fault_running = NULL;
    assert_true (r == 0 || r == -ENOMEM);
    hits += failed;
    assert_int_equal (write_id (w->d, 2, 501), 0);
    assert_int_equal (read_id (w->d, 2), 501);
    for (uint64_t i = 0; i < 4; i++)
      assert_int_equal (read_clone (w, root, i), 300 + i);
    assert_int_equal (dedup_disks_settle (w->d), 0);
    finish_clean (w);
  } while (hits > 0);
  assert_true (n > 10);
  fault_malloc_fails = NULL;
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_enomem_in_a_freeze_leaves_a_valid_configuration),
    cmocka_unit_test (test_enomem_in_a_checkpoint_stops_nothing),
    cmocka_unit_test (test_enomem_in_a_merge_keeps_its_inputs),
    cmocka_unit_test (test_enomem_in_a_merge_at_rest_ends_it),
    cmocka_unit_test (test_enomem_at_open_keeps_the_index),
    cmocka_unit_test (test_enomem_in_a_large_write_aborts_nothing),
    cmocka_unit_test (test_no_memory_for_a_log_store_does_not_spin),
    cmocka_unit_test (test_enomem_in_a_free_makes_an_index_inexact),
    cmocka_unit_test (test_enomem_beside_lent_tables_aborts_nothing),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
