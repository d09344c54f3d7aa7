/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests bugs of failing calls that a review found: what a failed sync must
 * stop, what one cluster that cannot be read must not stop, three ways in which
 * the index and the clusters it names got out of step, and the journal's last
 * places.
 *
 * Breaks if: anything is called durable after a failed sync, or written over;
 * a recovery leaves no prefix; verify=off trusts an entry whose cluster was
 * freed; a bad sector stops jobs and the close; or a full journal aborts.
 */
#include "regress.h"

#include <errno.h>

static const struct shape small = { .name = "small", .order = 4,
                                    .journal_areas = 4 };
static const struct shape exact = { .name = "exact", .order = 6,
                                    .journal_areas = 4, .exact = true };

/* Writes until a log store waits to be frozen, all of it durable. */
static uint64_t
fill_log_store (struct world *w, uint64_t id)
{
  while (w->d->store.index->frozen == NULL) {
    assert_int_equal (write_id (w->d, id % (NR - 10), id), 0);
    id++;
  }
  assert_int_equal (dedup_flush (w->d), 0);
  return id;
}

/* The host tells of a lost write once, to whoever syncs next: where that was
 * the freeze, the next flush of a client returned 0 for what was lost. */
static void
test_a_sync_that_fails_in_a_job_fails_the_next_flush (void **state)
{
  static const enum dedup_job jobs[] = { DEDUP_JOB_CHECKPOINT,
                                         DEDUP_JOB_FREEZE, DEDUP_JOB_CLEAN };
  unsigned i, n;

  for (i = 0; i < 3; i++)
    for (n = 1; n <= 3; n++) {
      struct world *w = world_open (&small);
      struct dedup_pool *d;

      fill_log_store (w, 100);
      assert_int_equal (write_id (w->d, NR - 1, 11), 0);
      assert_int_equal (dedup_flush (w->d), 0);
      assert_int_equal (write_id (w->d, NR - 1, 4711), 0);
      fail_call (w, IO_SYNC, n, EIO);
      if (dedup_run (w->d, jobs[i]) == 0) {
        assert_false (w->hit);
        assert_true (n > 1);
      }
      else {
        assert_int_not_equal (dedup_failed (w->d), 0);
        assert_int_equal (dedup_flush (w->d), -EIO);
        assert_int_equal (write_id (w->d, 3, 12), -EROFS);
        read_id (w->d, 3);
        d = must_open (&small, w->image.power, true);
        assert_true (read_id (d, NR - 1) == 4711 || read_id (d, NR - 1) == 11);
        dedup_free (d);
      }
      world_free (w);
    }
}

/* A freeze whose configuration could not be made durable went on, and the
 * next one wrote over an incarnation that was listed (law 9). */
static void
test_maintenance_writes_nothing_after_a_failed_sync (void **state)
{
  static const struct shape two = { .name = "two", .order = 4,
                                    .journal_areas = 4,
                                    .max_incarnations = 2 };
  struct world *w = world_open (&two);
  unsigned long writes;
  uint64_t id = 100;
  unsigned k;

  for (k = 0; k < 4; k++) {
    id = fill_log_store (w, id);
    if (k < 3)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  fail_call (w, IO_SYNC, 2, EIO);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), -EIO);
  assert_true (w->hit);
  writes = w->calls[IO_PWRITE];
  assert_true (dedup_make_room (&w->d->upkeep) < 0);
  for (k = DEDUP_JOB_CHECKPOINT; k <= DEDUP_JOB_MERGE_IDLE; k <<= 1)
    assert_true (dedup_run (w->d, k) < 0);
  assert_true (dedup_finish (w->d) < 0);
  assert_int_equal (w->calls[IO_PWRITE], writes);
  w->armed = false;
  dedup_free (w->d);
  w->d = must_open (&two, w->image.io, true);
  finish_clean (w);
}

/* verify=off: what was in quarantine at the close was free in the next
 * session, with its entry still in an index that called itself exact. */
static void
test_an_exact_index_forgets_what_is_in_quarantine_at_the_close (void **state)
{
  struct world *w = world_open (&exact);
  struct dedup_stats s;
  uint64_t i;

  dedup_get_stats (w->d, &s);
  assert_true (s.exact);
  assert_int_equal (write_id (w->d, 0, 1111), 0);
  assert_int_equal (write_id (w->d, 0, 2222), 0);
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  w->d = must_open (&exact, w->image.io, true);
  scan_all (w->d);
  for (i = 0; i < 150; i++)
    assert_int_equal (write_id (w->d, 10 + i, 5000 + i), 0);
  assert_int_equal (write_id (w->d, 170, 1111), 0);
  assert_int_equal (read_id (w->d, 170), 1111);
  finish_clean (w);
}

/* --- a cluster that cannot be read ---------------------------------------- */

static uint64_t unreadable;     /* host offset; 0: none is */

static int
fail_unreadable (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  return call == IO_PREAD && unreadable != 0 && off <= unreadable &&
    unreadable < off + len ? -EIO : 0;
}

/* A world whose calls CB is asked about first. */
static struct world *
open_asking (const struct shape *s, io_faulty_cb cb)
{
  struct world *w = world_open (s);
  struct io_store *io;

  dedup_free (w->d);
  w->d = NULL;
  assert_int_equal (io_faulty_new (w->image.io, cb, NULL, &io), 0);
  w->image.io = io;                   /* closes the one below */
  w->d = must_open (s, io, true);
  return w;
}

static uint64_t
quarantined (struct dedup_pool *d)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return qcow2_quarantined_locked (d->base.img);
}

static bool
is_exact (struct dedup_pool *d)
{
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  return s.exact;
}

/* Guest clusters 2 to 4 held 102 to 104; what held 103 is unreadable and has
 * come free with the others. */
static struct world *
free_unreadable (uint64_t *host_idx)
{
  struct world *w = open_asking (&exact, fail_unreadable);
  uint64_t i;

  assert_true (is_exact (w->d));
  for (i = 0; i < 8; i++)
    assert_int_equal (write_id (w->d, i, 100 + i), 0);
  *host_idx = host_idx_of (w->d, 3);
  unreadable = *host_idx * CLUSTER;
  for (i = 2; i < 5; i++)
    assert_int_equal (write_id (w->d, i, 500 + i), 0);
  return w;
}

/* verify=off: what comes free is read for its hash.  One cluster that could not
 * be stopped the quarantine for good, and commits and the close failed.  Its
 * entry stays, and is compared where it is met, in later sessions, too. */
static void
test_an_unreadable_free_cluster_stops_nothing (void **state)
{
  struct world *w;
  uint64_t was;
  unsigned again, i;

  for (again = 0; again < 2; again++) {
    w = free_unreadable (&was);
    for (i = 0; i < 4; i++)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
    assert_int_equal (quarantined (w->d), 0);
    assert_int_equal (dedup_find_space (&w->d->upkeep), 0);
    assert_false (is_exact (w->d));
    if (again) {
      assert_int_equal (dedup_finish (w->d), 0);
      dedup_free (w->d);
      w->d = must_open (&exact, w->image.io, true);
      assert_false (is_exact (w->d));
    }
    unreadable = 0;             /* a sector that is written is good again */
    assert_true (reuses (w->d, was, 50, 120));
    for (i = 2; i < 5; i++) {
      assert_int_equal (write_id (w->d, 10 + i, 100 + i), 0);
      assert_int_equal (read_id (w->d, 10 + i), 100 + i);
    }
    finish_clean (w);
  }
}

/* The same, met only by the close. */
static void
test_an_unreadable_free_cluster_does_not_stop_the_close (void **state)
{
  struct world *w;
  uint64_t was;

  w = free_unreadable (&was);
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  w->d = must_open (&exact, w->image.io, true);
  assert_false (is_exact (w->d));
  unreadable = 0;
  assert_true (reuses (w->d, was, 50, 120));
  assert_int_equal (write_id (w->d, 10, 103), 0);
  assert_int_equal (read_id (w->d, 10), 103);
  finish_clean (w);
}

/* --- the power fails after the process has ------------------------------- */

/* Operations on one cluster each, none of which undoes another, so that a
 * replay finds tables as it would make them; the process dies at
 * the close after them, in which the N-th sync failed: of records, tables,
 * configuration, header. */
static void
die_in_close (struct world *w, unsigned n)
{
  unsigned i;

  for (i = 0; i < 40; i++) {
    struct op op = { .idx = i, .nr = 1, .ids = { 300 + i % 30 } };

    if (i == 20) {
      assert_int_equal (dedup_flush (w->d), 0);
      w->durable = w->nr_ops;
    }
    assert_int_equal (write_id (w->d, op.idx, op.ids[0]), 0);
    w->ops[w->nr_ops++] = op;
  }
  fail_call (w, IO_SYNC, n, EIO);
  assert_int_equal (dedup_finish (w->d), -EIO);
  assert_true (w->hit);
  dedup_free (w->d);
  w->d = NULL;
}

static void
assert_prefix (struct world *w, struct dedup_pool *d)
{
  uint64_t got[NR], i;

  for (i = 0; i < NR; i++)
    got[i] = read_id (d, i);
  assert_true (is_prefix (w, got));
}

/* Recover, with the K-th call of KIND failing and all after it; then the
 * power fails.  False: there was no such call. */
static bool
recover_and_cut (unsigned kind, unsigned long k, unsigned round,
                 uint64_t *chance)
{
  struct world *w = world_open (&small);
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_pool *d;
  bool hit;
  int r;

  w->remembers = round & 4;
  die_in_close (w, 1 + round % 4);
  fail_call (w, kind, k, EIO);
  w->plan.for_ever = true;
  open_params (&small, &p);
  r = dedup_open (w->image.io, &p, &w->d, &f);
  hit = w->hit;
  assert_true (r == (hit ? -EIO : 0));
  if (r == 0) {                 /* what it shows now, it may not lose */
    assert_prefix (w, w->d);
    w->durable = read_id (w->d, w->nr_ops - 1) != 0 ? w->nr_ops : w->durable;
    dedup_free (w->d);
  }
  w->d = NULL;
  world_settle (w, chance);
  w->armed = false;
  d = must_open (&small, w->image.power, true);
  assert_prefix (w, d);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  assert_clean (&small, w->image.power);
  world_free (w);
  return hit;
}

/* What a recovery reads past the durable number may be in the host's cache
 * only, and after a failed sync even look clean there.  Tables were written
 * before it was durable, and anchor tables that looked right not at all. */
static void
test_a_power_cut_during_or_after_recovery_leaves_a_prefix (void **state)
{
  static const unsigned kinds[] = { IO_PWRITE, IO_SYNC };
  uint64_t chance = 4242;
  unsigned long k;
  unsigned i, round;

  for (i = 0; i < 2; i++)
    for (round = 0; round < 16; round++)
      for (k = 1; recover_and_cut (kinds[i], k, round, &chance); k++)
        ;
}

/* --- a candidate's last reference dropped while it is compared ----------- */

static const struct shape mid = { .name = "mid", .order = 8,
                                  .journal_areas = 4 };

static struct {
  struct world *w;
  uint64_t host_off;
  enum { WAIT, OVERWRITTEN, DONE } step;
} between;

/* Stands in for other threads: between the reads and writes of one request. */
static int
interleave (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  struct dedup_pool *d = between.w ? between.w->d : NULL;

  if (between.step == WAIT && call == IO_PREAD && len == CLUSTER &&
      off == between.host_off) {
    between.step = DONE;        /* not again for what this does */
    assert_int_equal (write_id (d, 5, 987654), 0);
    between.step = OVERWRITTEN;
  }
  else if (between.step == OVERWRITTEN && call == IO_PWRITE) {
    between.step = DONE;
    assert_int_equal (dedup_run (d, DEDUP_JOB_CHECKPOINT), 0);
  }
  return 0;
}

static void
make_entry_stale (struct dedup_pool *d, uint64_t id, uint64_t host_idx)
{
  uint8_t buf[CLUSTER];
  struct dedup_hash h;

  fill_cluster (buf, id);
  assert_int_equal (dedup_hash_compute (&d->base.hasher, buf, CLUSTER, &h), 0);
  lock_acquire (d->base.lock);
  dedup_index_insert_locked (d->store.index, &h, host_idx);
  lock_release (d->base.lock);
}

/* Guest cluster 5 holds what an entry wrongly says is 77; who compares them is
 * interrupted by MEANWHILE. */
static struct world *
ready_to_compare (io_faulty_cb meanwhile)
{
  struct world *w;
  uint64_t host_idx;

  between.step = DONE;
  between.w = NULL;
  between.w = w = open_asking (&mid, meanwhile);
  assert_int_equal (write_id (w->d, 5, 1), 0);
  host_idx = host_idx_of (w->d, 5);
  between.host_off = host_idx * CLUSTER;
  make_entry_stale (w->d, 77, host_idx);
  between.step = WAIT;
  return w;
}

/* A stale entry's cluster is held and compared; meanwhile its guest cluster is
 * overwritten.  Letting go frees it: a record without END, on which the next
 * checkpoint aborted. */
static void
test_the_last_reference_may_go_while_a_candidate_is_compared (void **state)
{
  struct world *w = ready_to_compare (interleave);

  /* Between OVERWRITTEN and DONE nothing may be left half done. */
  assert_int_equal (write_id (w->d, 6, 77), 0);
  assert_int_equal (between.step, DONE);
  assert_int_equal (read_id (w->d, 5), 987654);
  assert_int_equal (read_id (w->d, 6), 77);
  finish_clean (w);
}

/* --- the last places of the journal --------------------------------------- */

static uint64_t
places_left (struct dedup_pool *d)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return dedup_journal_left_locked (d->store.journal);
}

/* As a commit job does that finds something in quarantine, again and again. */
static void
commit_while_it_lasts (struct dedup_pool *d)
{
  uint64_t before;

  do {
    before = places_left (d);
    assert_int_equal (dedup_commit_empty (&d->store), 0);
  } while (places_left (d) < before);
}

static int
fill_journal (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  struct dedup_pool *d = between.w ? between.w->d : NULL;

  if (between.step == WAIT && call == IO_PREAD && len == CLUSTER &&
      off == between.host_off) {
    between.step = DONE;
    assert_int_equal (write_id (d, 5, 987654), 0);
    commit_while_it_lasts (d);
  }
  return 0;
}

/* What is let go without a reference left is freed by a record for which no
 * room was promised.  Empty blocks had taken its place: an assertion failed. */
static void
test_empty_blocks_leave_room_for_what_is_let_go (void **state)
{
  struct world *w = ready_to_compare (fill_journal);

  assert_int_equal (write_id (w->d, 6, 77), 0);
  assert_int_equal (between.step, DONE);
  assert_int_equal (read_id (w->d, 5), 987654);
  assert_int_equal (read_id (w->d, 6), 77);
  finish_clean (w);
}

/* Duplicates log no entries, so the log store's have to be packed again and
 * again: that takes no more areas than there may be. */
static void
test_packing_takes_no_more_areas_than_allowed (void **state)
{
  struct world *w = world_open (&small);
  unsigned i;

  for (i = 0; i < 60000; i++) {
    assert_int_equal (write_id (w->d, i % 50, 100 + i % 20), 0);
    assert_in_range (w->d->store.config->nr_areas, 1,
                     w->d->store.config->max_journal_areas);
  }
  finish_clean (w);
}

/* So had entries that were logged anew.  Where it takes many threads to need
 * all the places that are left, that they are there has to do. */
static void
test_packing_leaves_room_for_what_is_let_go (void **state)
{
  struct world *w = world_open (&small);
  uint64_t least = UINT64_MAX;
  unsigned i;

  for (i = 0; i < 20; i++)
    assert_int_equal (write_id (w->d, i, 100 + i), 0);
  for (i = 0; i < 400; i++) {
    assert_int_equal (dedup_relog_index (&w->d->upkeep), 0);
    least = MIN_OF (least, places_left (w->d));
    assert_in_range (w->d->store.config->nr_areas, 1,
                     w->d->store.config->max_journal_areas);
  }
  assert_in_range (least, dedup_journal_slack_blocks (&w->d->store),
                   2 * DEDUP_JOURNAL_RESERVE);
  finish_clean (w);
}

/* --- a disk that cannot be read at open ------------------------------------ */

/* The K-th read of an open fails.  False: there is no such one. */
static bool
open_unread (struct world *w, unsigned long k, bool writable, bool *refused)
{
  struct dedup_open_params p;
  struct dedup_pool *d = NULL;
  struct fault f = { 0 };
  struct dedup_stats s;
  int r;

  open_params (&small, &p);
  p.writable = writable;
  fail_call (w, IO_PREAD, k, EIO);
  r = dedup_open (w->image.io, &p, &d, &f);
  if (r == 0 && writable) {     /* a page of an incarnation, or none */
    dedup_get_stats (d, &s);
    assert_true (s.index_entries > 50);
    w->plan.k = 0;
    assert_int_equal (dedup_finish (d), 0);
  }
  *refused = r < 0;
  assert_true (r == 0 || (r == -EIO && f.kind == FAULT_IO && f.msg[0]));
  dedup_free (d);
  return w->hit;
}

/* Refcounts of the store's areas could not be read: the store was void, and
 * the index thrown away.  Nothing is written now, and later all is there. */
static void
test_what_cannot_be_read_at_open_is_not_thrown_away (void **state)
{
  struct world *w = world_open (&small);
  unsigned long k, refusals = 0, writes;
  struct dedup_stats s;
  bool refused;
  uint64_t i;

  for (i = 0; i < 100; i++) {
    assert_int_equal (write_id (w->d, i, 1000 + i), 0);
    if (w->d->store.index->frozen)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  }
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  for (k = 1; ; k++) {
    writes = w->calls[IO_PWRITE];
    if (!open_unread (w, k, true, &refused))
      break;
    refusals += refused;
    if (refused)
      assert_int_equal (w->calls[IO_PWRITE], writes);
    (void) open_unread (w, k, false, &refused);   /* it reads less */
  }
  assert_true (refusals > 3);
  w->armed = false;
  w->d = must_open (&small, w->image.io, true);
  dedup_get_stats (w->d, &s);
  for (i = 0; i < 100; i++)
    assert_int_equal (write_id (w->d, 100 + i % 50, 1000 + i), 0);
  dedup_get_stats (w->d, &s);
  /* But the youngest entries, where it was the journal that could not be
   * read: they are advice, and no reason to refuse an image for ever. */
  assert_true (s.stored < 60);
  finish_clean (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_sync_that_fails_in_a_job_fails_the_next_flush),
    cmocka_unit_test (test_what_cannot_be_read_at_open_is_not_thrown_away),
    cmocka_unit_test (test_maintenance_writes_nothing_after_a_failed_sync),
    cmocka_unit_test (
      test_an_exact_index_forgets_what_is_in_quarantine_at_the_close),
    cmocka_unit_test (
      test_a_power_cut_during_or_after_recovery_leaves_a_prefix),
    cmocka_unit_test (test_an_unreadable_free_cluster_stops_nothing),
    cmocka_unit_test (
      test_an_unreadable_free_cluster_does_not_stop_the_close),
    cmocka_unit_test (
      test_the_last_reference_may_go_while_a_candidate_is_compared),
    cmocka_unit_test (test_empty_blocks_leave_room_for_what_is_let_go),
    cmocka_unit_test (test_packing_takes_no_more_areas_than_allowed),
    cmocka_unit_test (test_packing_leaves_room_for_what_is_let_go),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
