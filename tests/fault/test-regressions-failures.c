/* SPDX-License-Identifier: BSD-3-Clause */
/* Bugs that a review found, each with the test that would have: what a failed
 * sync must stop, and two ways in which the index and the clusters it names
 * got out of step.
 */
#include "regress.h"

#include <errno.h>

static const struct shape small = { .name = "small", .order = 4,
                                    .journal_areas = 4 };

/* Writes until a log store waits to be frozen, all of it durable. */
static uint64_t
fill_log_store (struct world *w, uint64_t id)
{
  while (w->d->index.frozen == NULL) {
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
      struct dedup_disk *d;

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
  assert_true (dedup_make_room (w->d) < 0);
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
  static const struct shape exact = { .name = "exact", .order = 6,
                                      .journal_areas = 4, .exact = true };
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
  while (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_SCAN), 0);
  for (i = 0; i < 150; i++)
    assert_int_equal (write_id (w->d, 10 + i, 5000 + i), 0);
  assert_int_equal (write_id (w->d, 170, 1111), 0);
  assert_int_equal (read_id (w->d, 170), 1111);
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
assert_prefix (struct world *w, struct dedup_disk *d)
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
  struct dedup_disk *d;
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

static struct {
  struct world *w;
  uint64_t host_off;
  enum { WAIT, OVERWRITTEN, DONE } step;
} between;

/* Stands in for other threads: between the reads and writes of one request. */
static int
interleave (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  struct dedup_disk *d = between.w->d;

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
make_entry_stale (struct dedup_disk *d, uint64_t id, uint64_t host_idx)
{
  uint8_t buf[CLUSTER];
  struct dedup_hash h;

  fill_cluster (buf, id);
  assert_int_equal (dedup_hash_compute (&d->hasher, buf, CLUSTER, &h), 0);
  lock_acquire (d->lock);
  dedup_index_insert_locked (d, &h, host_idx);
  lock_release (d->lock);
}

/* A stale entry's cluster is held and compared; meanwhile its guest cluster is
 * overwritten.  Letting go frees it: a record without END, on which the next
 * checkpoint aborted. */
static void
test_the_last_reference_may_go_while_a_candidate_is_compared (void **state)
{
  static const struct shape mid = { .name = "mid", .order = 8,
                                    .journal_areas = 4 };
  struct world *w = world_open (&mid);
  struct io_store *io;
  struct qcow2_extent e;

  between.w = w;
  between.step = DONE;
  dedup_free (w->d);
  w->d = NULL;
  assert_int_equal (io_faulty_new (w->image.io, interleave, NULL, &io), 0);
  w->image.io = io;                   /* closes the one below */
  w->d = must_open (&mid, io, true);
  assert_int_equal (write_id (w->d, 5, 1), 0);
  assert_int_equal (qcow2_map (dedup_image (w->d), 0, 5 * CLUSTER, CLUSTER,
                               &e, 1), 1);
  between.host_off = e.host_off;
  make_entry_stale (w->d, 77, e.host_off / CLUSTER);
  between.step = WAIT;
  /* Between OVERWRITTEN and DONE nothing may be left half done. */
  assert_int_equal (write_id (w->d, 6, 77), 0);
  assert_int_equal (between.step, DONE);
  assert_int_equal (read_id (w->d, 5), 987654);
  assert_int_equal (read_id (w->d, 6), 77);
  finish_clean (w);
}

/* --- a disk that cannot be read at open ------------------------------------ */

/* The K-th read of an open fails.  False: there is no such one. */
static bool
open_unread (struct world *w, unsigned long k, bool writable, bool *refused)
{
  struct dedup_open_params p;
  struct dedup_disk *d = NULL;
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
    if (w->d->index.frozen)
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
    cmocka_unit_test (
      test_the_last_reference_may_go_while_a_candidate_is_compared),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
