/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests which clusters are free: the bits of refcounts, the bitmap, allocator,
 * quarantine, holds, scan. */
#include "qcow2-env.h"

/* --- Refcount widths and the bitmap -------------------------------------- */

static void
test_refcount_bits_follow_the_specification (void **state)
{
  uint8_t block[64];

  for (unsigned bits = 1; bits <= 64; bits *= 2) {
    uint64_t max = bits == 64 ? UINT64_MAX : (UINT64_C (1) << bits) - 1;
    uint64_t nr = sizeof block * 8 / bits, v[sizeof block * 8];

    memset (block, 0xa5, sizeof block);
    for (uint64_t i = 0; i < nr; ++i) {
      v[i] = rnd (UINT64_MAX) & max;
      qcow2_refcount_put (bits, block, i, v[i]);
    }
    for (uint64_t i = 0; i < nr; ++i)
      assert_int_equal (qcow2_refcount_get (bits, block, i), v[i]);
  }
  memset (block, 0, sizeof block);
  qcow2_refcount_put (2, block, 1, 2);
  assert_int_equal (block[0], 2 << 2);   /* the first is the lowest */
  qcow2_refcount_put (16, block, 1, 0x1234);
  assert_int_equal (block[2], 0x12);     /* big-endian */
}

static void
compare_bitmap (const struct qcow2_bitset *b, const bool *model, uint64_t nr)
{
  uint64_t next = QCOW2_BITSET_NONE, run = 0, count = 0;

  for (uint64_t i = nr; i-- > 0; ) {
    run = model[i] ? run + 1 : 0;
    count += model[i];
    if (model[i])
      next = i;
    assert_int_equal (qcow2_bitset_test (b, i), model[i]);
    if (i % 7 == 0) {
      assert_true (qcow2_bitset_next (b, i) == next);
      assert_int_equal (qcow2_bitset_run (b, i, UINT64_MAX), run);
      assert_int_equal (qcow2_bitset_run (b, i, 5), MIN_OF (run, 5));
    }
  }
  assert_int_equal (qcow2_bitset_count (b), count);
}

static void
test_bitmap_matches_model (void **state)
{
  const uint64_t nr = 4 * QCOW2_BITSET_CHUNK;
  struct qcow2_bitset *b = qcow2_bitset_new ();
  bool *model = calloc (nr, 1);

  assert_true (qcow2_bitset_next (b, 0) == QCOW2_BITSET_NONE);
  for (int i = 0; i < 300; ++i) {
    uint64_t idx = rnd (nr), n = rnd (rnd (8) ? 200 : nr);
    bool on = rnd (2);

    n = MIN_OF (n, nr - idx);
    memset (model + idx, on, n);
    if (on)
      ok (qcow2_bitset_set (b, idx, n));
    else
      qcow2_bitset_clear (b, idx, n);
    if (i % 30 == 0)
      compare_bitmap (b, model, nr);
  }
  compare_bitmap (b, model, nr);
  assert_int_equal (qcow2_bitset_set (b, QCOW2_BITSET_MAX_TOP *
                                      QCOW2_BITSET_CHUNK, 1), -ENOMEM);
  qcow2_bitset_free (b);
  free (model);
}

/* --- Holds --------------------------------------------------------------- */

static void
test_held_cluster_outlives_its_last_reference (void **state)
{
  struct env e;
  struct qcow2_txn txn;
  uint64_t a, b;

  env_new (&e, 9, 4, 64);
  a = write_new (e.img, 1);
  b = write_new (e.img, 2);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_hold_locked (&txn, a, 100)));
  ok (RETRY (&txn, qcow2_hold_locked (&txn, a, 100)));
  ok (RETRY (&txn, qcow2_hold_locked (&txn, b, 100)));
  assert_int_equal (RETRY (&txn, qcow2_hold_locked (&txn, b, 2)), -ERANGE);
  assert_int_equal (RETRY (&txn, qcow2_hold_locked (&txn, b + 9999, 2)),
                    -ENOENT);
  lock_release (&e.img->lock);
  unmap (e.img, 1);
  unmap (e.img, 2);
  assert_int_equal (refcount_of (e.img, a, NULL), 1);
  assert_int_equal (quarantined (e.img), 0);
  lock_acquire (&e.img->lock);
  change_refcount (&txn, b, 2, true);      /* a link */
  qcow2_unhold_locked (&txn, b);
  /* What is held still can be held once more, though no guest has it. */
  ok (RETRY (&txn, qcow2_hold_locked (&txn, a, 100)));
  qcow2_unhold_locked (&txn, a);
  qcow2_unhold_locked (&txn, a);
  assert_int_equal (qcow2_quarantined_locked (e.img), 0);
  qcow2_unhold_locked (&txn, a);
  assert_int_equal (qcow2_quarantined_locked (e.img), 1);
  assert_int_equal (RETRY (&txn, qcow2_hold_locked (&txn, a, 100)), -ENOENT);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  assert_int_equal (refcount_of (e.img, a, NULL), 0);
  assert_int_equal (refcount_of (e.img, b, NULL), 2);
  env_free (&e);
}

/* What is held already is held once more without memory, also when the table is as full
 * as it gets: whoever has reserved room for so many clusters may hold each one twice. */
static void
test_second_holds_need_no_memory (void **state)
{
  struct env e;
  struct qcow2_txn txn;
  uint64_t h[48];
  size_t max;

  env_new (&e, 9, 4, 64);
  for (unsigned i = 0; i < 48; ++i)
    h[i] = write_new (e.img, i);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (qcow2_holds_reserve_locked (e.img, 48));
  max = e.img->holds.max;
  assert_int_equal (max / 4 * 3, 48);
  for (unsigned n = 0; n < 2; ++n)
    for (unsigned i = 0; i < 48; ++i)
      ok (RETRY (&txn, qcow2_hold_locked (&txn, h[i], 100)));
  assert_int_equal (e.img->holds.max, max);
  assert_int_equal (e.img->holds.nr, 48);
  for (unsigned n = 0; n < 2; ++n)
    for (unsigned i = 0; i < 48; ++i) {
      assert_true (qcow2_is_held_locked (e.img, h[i]));
      qcow2_unhold_locked (&txn, h[i]);
    }
  assert_int_equal (e.img->holds.nr, 0);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

static void
test_thousands_of_holds (void **state)
{
  struct env e;
  struct qcow2_txn txn;
  uint64_t h[2000];

  env_new (&e, 9, 4, 2000);
  for (unsigned i = 0; i < 2000; ++i)
    h[i] = write_new (e.img, i);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  for (unsigned i = 0; i < 2000; ++i)
    ok (RETRY (&txn, qcow2_hold_locked (&txn, h[i], 100)));
  for (unsigned n = 2000; n > 0; --n) {
    unsigned i = rnd (n);

    for (unsigned j = 0; j < n; j += 97)
      assert_true (qcow2_is_held_locked (e.img, h[j]));
    qcow2_unhold_locked (&txn, h[i]);
    assert_false (qcow2_is_held_locked (e.img, h[i]));
    h[i] = h[n - 1];
  }
  qcow2_txn_end_locked (&txn);
  for (size_t i = 0; i < e.img->cache.nr_slices; ++i)
    assert_int_equal (e.img->cache.clock[i]->pins, 0);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* --- Allocator ----------------------------------------------------------- */

/* Returns how many candidates for garbage there are then. */
static uint64_t
scan_all (struct qcow2_image *img)
{
  int r;

  while ((r = qcow2_scan_step (img)) == 1)
    ;
  ok (r);
  LOCK_FOR_SCOPE (&img->lock);
  assert_true (qcow2_scan_done_locked (img));
  return qcow2_bitset_count (img->alloc.garbage);
}

static void
test_quarantine_keeps_order_and_kinds_apart (void **state)
{
  struct qcow2_run runs[8], run = { .count = 1 };
  struct env e;
  size_t nr;
  static const struct { uint64_t idx; bool trimmed; uint64_t seq; } in[] = {
    { 502, true, 1 }, { 500, true, 1 }, { 501, true, 1 }, { 503, false, 2 },
    { 505, true, 2 }, { 504, false, 3 }, { 400, true, 7 },
  };

  env_new (&e, 9, 4, 64);
  lock_acquire (&e.img->lock);
  for (size_t i = 0; i < sizeof in / sizeof in[0]; ++i) {
    run.host_idx = in[i].idx;
    run.trimmed = in[i].trimmed;
    qcow2_quarantine_locked (e.img, &run, in[i].seq);
  }
  assert_int_equal (qcow2_quarantine_take_locked (e.img, 0, runs, 8), 0);
  nr = qcow2_quarantine_take_locked (e.img, 3, runs, 2);
  assert_int_equal (nr, 2);
  nr += qcow2_quarantine_take_locked (e.img, 3, runs + nr, 6);
  assert_int_equal (qcow2_coalesce (runs, nr), 3);
  assert_int_equal (runs[0].host_idx, 500);
  assert_int_equal (runs[0].count, 3);
  assert_true (runs[0].trimmed);
  assert_int_equal (runs[1].host_idx, 503);
  assert_int_equal (runs[1].count, 2);
  assert_false (runs[1].trimmed);
  assert_int_equal (runs[2].host_idx, 505);
  assert_int_equal (qcow2_quarantined_locked (e.img), 1);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* What was freed is not handed out before its release, whichever comes
 * first, scan or release. */
static void
test_freed_clusters_wait_for_release_and_scan (void **state)
{
  struct env e;
  uint64_t h[8], end;

  env_new (&e, 9, 4, 64);
  for (unsigned i = 0; i < 8; ++i)
    h[i] = write_new (e.img, i);
  writeback (e.img);
  env_reopen (&e);

  unmap (e.img, 0);
  scan_all (e.img);     /* quarantined during the scan */
  assert_false (qcow2_bitset_test (e.img->alloc.free, h[0]));
  release_all (e.img);
  assert_true (qcow2_bitset_test (e.img->alloc.free, h[0]));
  writeback (e.img);
  env_reopen (&e);

  unmap (e.img, 1);
  release_all (e.img);                     /* released before the scan */
  assert_false (qcow2_bitset_test (e.img->alloc.free, h[1]));
  scan_all (e.img);
  assert_true (qcow2_bitset_test (e.img->alloc.free, h[0]));
  assert_true (qcow2_bitset_test (e.img->alloc.free, h[1]));
  assert_false (qcow2_bitset_test (e.img->alloc.free, h[2]));
  end = e.img->alloc.frontier;
  while (reserve_one (e.img) != MAX_OF (h[0], h[1]))
    assert_int_equal (e.img->alloc.frontier, end);
  env_free (&e);
}

/* Whatever its refcount says. */
static void
test_scan_never_finds_a_table_free (void **state)
{
  static const bool tables[8] = { [0] = true, [3] = true, [4] = true,
                                  [7] = true };
  struct env e;
  struct fault f = { 0 };
  uint64_t h[8];

  env_new (&e, 9, 4, 64);
  for (unsigned i = 0; i < 8; ++i)
    h[i] = write_new (e.img, i);
  for (unsigned i = 0; i < 8; ++i)
    unmap (e.img, i);
  release_all (e.img);
  writeback (e.img);
  env_reopen (&e);
  ok (qcow2_guard_begin (e.img, &f));
  lock_acquire (&e.img->lock);
  for (unsigned i = 0; i < 8; ++i)
    if (tables[i])
      qcow2_guard_put_locked (e.img, h[i], 1, true);
  lock_release (&e.img->lock);
  scan_all (e.img);
  for (unsigned i = 0; i < 8; ++i)
    assert_int_equal (qcow2_bitset_test (e.img->alloc.free, h[i]), !tables[i]);
  env_free (&e);
}

struct bad_read {
  uint64_t host_off;
};

static int
bad_read_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  const struct bad_read *b = opaque;

  return call == IO_PREAD && host_off == b->host_off ? -EIO : 0;
}

/* What can't be read is passed over, and no more than that; a block that can't
 * be one, as a whole. */
static void
test_scan_passes_over_what_is_bad (void **state)
{
  const uint64_t per = QCOW2_SLICE_BYTES / 2;  /* refcounts of 16 bits */
  struct bad_read bad = { UINT64_MAX };
  uint64_t first;
  struct env e;

  env_new (&e, 16, 4, 8192);
  while (e.img->alloc.frontier <= 2 * per)
    assert_int_not_equal (write_new (e.img, e.img->alloc.frontier % 8192), 0);
  writeback (e.img);
  qcow2_close (e.img);
  ok (io_faulty_new (e.io, bad_read_cb, &bad, &e.io));
  env_open (&e);
  first = e.img->reftable.v[0];
  bad.host_off = first + QCOW2_SLICE_BYTES;
  assert_int_equal (qcow2_scan_step (e.img), 1);
  assert_int_equal (qcow2_scan_step (e.img), -EIO);
  assert_int_equal (e.img->alloc.scan_next, 2 * per);
  scan_all (e.img);
  qcow2_close (e.img);

  bad.host_off = UINT64_MAX;
  env_open (&e);
  e.img->reftable.v[0] = first + 512;
  assert_int_equal (qcow2_scan_step (e.img), -EIO);
  lock_acquire (&e.img->lock);
  assert_true (qcow2_scan_done_locked (e.img));
  lock_release (&e.img->lock);
  env_free (&e);
}

static void
test_scan_reports_garbage_but_not_what_is_held (void **state)
{
  struct env e;
  struct qcow2_txn txn;
  uint64_t areas, h;

  env_new (&e, 9, 4, 64);
  areas = scan_all (e.img);   /* the adopted area */
  assert_int_equal (areas, 65536 / 512);
  h = write_new (e.img, 0);
  set_refcount (e.img, reserve_one (e.img), 1, true);
  writeback (e.img);
  env_reopen (&e);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_hold_locked (&txn, h, 100)));
  lock_release (&e.img->lock);
  unmap (e.img, 0);
  assert_int_equal (scan_all (e.img), areas + 1);
  lock_acquire (&e.img->lock);
  qcow2_unhold_locked (&txn, h);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

static void
test_reservation_ends_at_the_bound (void **state)
{
  struct env e;
  struct qcow2_run run;
  uint64_t idx;

  env_new (&e, 9, 4, 64);
  lock_acquire (&e.img->lock);
  assert_int_equal (qcow2_reserve_area_locked (e.img, 1 << 30, &idx),
                    -ENOSPC);
  ok (qcow2_reserve_area_locked (e.img, 100, &idx));
  while (qcow2_reserve_locked (e.img, 1000, &run) == 0)
    assert_in_range (run.count, 1, 1000);
  assert_int_equal (qcow2_frontier_locked (e.img), e.img->alloc.bound);
  run = (struct qcow2_run) { .host_idx = idx, .count = 100 };
  qcow2_unreserve_locked (e.img, &run);
  ok (qcow2_reserve_locked (e.img, 7, &run));
  assert_int_equal (run.count, 7);
  ok (qcow2_reserve_area_locked (e.img, 93, &idx));
  assert_int_equal (qcow2_reserve_locked (e.img, 1, &run), -ENOSPC);
  lock_release (&e.img->lock);
  assert_int_equal (write_new (e.img, 0), 0);
  env_free (&e);
}

/* A crash between a checkpoint and the cut of the file leaves counted
 * clusters behind its end: they must not be handed out. */
static void
test_frontier_is_past_all_counted_clusters (void **state)
{
  struct env e;
  uint64_t h;

  env_new (&e, 9, 4, 64);
  for (unsigned i = 0; i < 40; ++i)
    h = write_new (e.img, i);
  writeback (e.img);
  qcow2_close (e.img);
  ok (io_truncate (e.io, h << 9));
  env_open (&e);
  assert_true (e.img->alloc.frontier > h);
  env_free (&e);
}

/* The next open may still read what lies at the old place. */
static void
test_nothing_is_released_before_the_header_is_written (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_HEADER };
  struct qcow2_writeback *wb;
  struct qcow2_run runs[2];
  struct env e;

  env_new (&e, 9, 4, 64);
  write_new (e.img, 0);
  unmap (e.img, 0);
  c.header = e.img->fields;
  c.header.reftable_off += 51200;
  lock_acquire (&e.img->lock);
  ok (qcow2_apply_locked (&(struct qcow2_txn) { .img = e.img }, &c));
  assert_int_equal (qcow2_quarantine_take_locked (e.img, UINT64_MAX, runs, 2),
                    0);
  ok (qcow2_writeback_begin_locked (e.img, &wb));
  assert_int_equal (qcow2_quarantine_take_locked (e.img, UINT64_MAX, runs, 2),
                    0);
  qcow2_writeback_end_locked (wb, true);
  assert_int_equal (qcow2_quarantine_take_locked (e.img, UINT64_MAX, runs, 2),
                    1);
  lock_release (&e.img->lock);
  env_free (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_refcount_bits_follow_the_specification),
    cmocka_unit_test (test_bitmap_matches_model),
    cmocka_unit_test (test_held_cluster_outlives_its_last_reference),
    cmocka_unit_test (test_second_holds_need_no_memory),
    cmocka_unit_test (test_thousands_of_holds),
    cmocka_unit_test (test_quarantine_keeps_order_and_kinds_apart),
    cmocka_unit_test (test_freed_clusters_wait_for_release_and_scan),
    cmocka_unit_test (test_scan_never_finds_a_table_free),
    cmocka_unit_test (test_scan_passes_over_what_is_bad),
    cmocka_unit_test (test_scan_reports_garbage_but_not_what_is_held),
    cmocka_unit_test (test_reservation_ends_at_the_bound),
    cmocka_unit_test (test_frontier_is_past_all_counted_clusters),
    cmocka_unit_test (test_nothing_is_released_before_the_header_is_written),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
