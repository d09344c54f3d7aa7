/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests tables of several slices: each entry is in its slice, no other slice is
 * read or written for it, and tables are made, copied and freed as a whole.
 *
 * Most images are in memory with clusters of 64 KiB; test-qcow2-slices-sliced
 * is the same with slices of 128 bytes.
 */
#include "qcow2-env.h"

/* A table that starts inside another one is none, though the slices that it
 * would have are in memory, as the other one's. */
static void
test_a_table_within_a_table_gives_eio (void **state)
{
  struct qcow2_txn txn;
  struct env e;
  uint64_t entry;

  env_new (&e, 16, 4, 3 * 8192);
  write_new (e.img, 8191);
  writeback (e.img);
  e.img->l1.v[1] = e.img->l1.v[0] + 65536 - QCOW2_SLICE_BYTES;
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_get_entry_locked (&txn, 0, 8191, &entry)));
  assert_int_equal (qcow2_get_entry_locked (&txn, 0, 8192, &entry), -EIO);
  assert_int_equal (qcow2_prepare_entry_locked (&txn, 0, 8192), -EIO);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  e.img->l1.v[1] = 0;
  env_free (&e);
}

/* Bytes read and written of one cluster. */
struct traffic {
  uint64_t host_off, read, written;
};

static int
traffic_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct traffic *t = opaque;

  if (host_off < t->host_off || host_off >= t->host_off + 65536)
    return 0;
  if (call == IO_PREAD)
    t->read += len;
  else if (call == IO_PWRITE)
    t->written += len;
  return 0;
}

/* Open the image anew and count what is read and written of L2 table TI. */
static void
watch_table (struct env *e, uint64_t ti, struct traffic *t)
{
  writeback (e->img);
  t->host_off = e->img->l1.v[ti] & QCOW2_OFFSET_MASK;
  qcow2_close (e->img);
  ok (io_faulty_new (e->io, traffic_cb, t, &e->io));
  env_open (e);
}

/* Of an L2 table of 64 KiB only what is asked for is read, and only what is
 * changed is written. */
static void
test_a_large_table_is_read_and_written_in_slices (void **state)
{
  const uint64_t per = QCOW2_SLICE_BYTES / 8;
  struct traffic t = { 0 };
  uint64_t h[2];
  struct env e;

  env_new (&e, 16, 4, 8192);
  h[0] = write_new (e.img, 0);
  h[1] = write_new (e.img, 3 * per - 1);
  watch_table (&e, 0, &t);
  t.read = 0;
  assert_int_equal (entry_of (e.img, 0, 0), h[0] << 16);
  assert_int_equal (entry_of (e.img, 0, per - 1), 0);
  assert_int_equal (t.read, QCOW2_SLICE_BYTES);
  assert_int_equal (entry_of (e.img, 0, 3 * per - 1), h[1] << 16);
  assert_int_equal (entry_of (e.img, 0, 2 * per), 0);
  assert_int_equal (t.read, 2 * QCOW2_SLICE_BYTES);
  h[1] = write_new (e.img, 2 * per);
  assert_int_equal (t.written, 0);
  writeback (e.img);
  assert_int_equal (t.read, 2 * QCOW2_SLICE_BYTES);
  assert_int_equal (t.written, QCOW2_SLICE_BYTES);
  assert_int_equal (entry_of (e.img, 0, 0), h[0] << 16);
  assert_int_equal (entry_of (e.img, 0, 2 * per), h[1] << 16);
  check_with_qemu (e.io);
  env_free (&e);
}

/* A new table is written whole: what was in its cluster before is gone. */
static void
test_a_new_table_has_nothing_of_what_was_there (void **state)
{
  struct qcow2_run run;
  uint8_t junk[65536];
  uint64_t h;
  struct env e;

  env_new (&e, 16, 4, 8192);
  memset (junk, 0xc5, sizeof junk);
  lock_acquire (&e.img->lock);
  run.host_idx = e.img->alloc.frontier;
  lock_release (&e.img->lock);
  for (unsigned i = 0; i < 8; ++i)
    ok (io_pwrite (e.io, junk, sizeof junk, (run.host_idx + i) << 16));
  h = write_new (e.img, 8000);
  writeback (e.img);
  env_reopen (&e);
  assert_true (e.img->l1.v[0] & QCOW2_OFFSET_MASK);
  for (uint64_t g = 0; g < 8192; g += 7)
    assert_int_equal (entry_of (e.img, 0, g), g == 8000 ? h << 16 : 0);
  check_with_qemu (e.io);
  env_free (&e);
}

/* COUNT new clusters, one behind the other, at guest clusters from 0 on. */
static uint64_t
write_run (struct env *e, uint64_t count)
{
  struct qcow2_run run = { 0 };
  struct qcow2_txn txn;
  uint64_t i, old;

  qcow2_txn_begin (e->img, &txn);
  lock_acquire (&e->img->lock);
  ok (qcow2_reserve_locked (e->img, count, &run));
  assert_int_equal (run.count, count);
  for (i = 0; i < count; ++i) {
    ok (RETRY (&txn, prepare (&txn, i, run.host_idx + i, &old)));
    point_locked (&txn, i, run.host_idx + i, 2, old);
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&e->img->lock);
  return run.host_idx;
}

static void
test_a_run_ends_with_its_slice (void **state)
{
  const uint64_t per = QCOW2_SLICE_BYTES / 8;
  uint64_t first, entry, bitmap, nr;
  struct qcow2_extent x[3];
  struct qcow2_txn txn;
  struct env e;

  env_new (&e, 16, 4, 8192);
  first = write_run (&e, 2 * per + 7);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  nr = 8192;
  ok (RETRY (&txn, qcow2_get_l2_locked (&txn, 0, 3, &entry, &bitmap, &nr)));
  assert_int_equal (nr, per - 3);
  nr = 5;
  ok (RETRY (&txn, qcow2_get_l2_locked (&txn, 0, per - 1, &entry, &bitmap,
                                        &nr)));
  assert_int_equal (nr, 1);
  nr = 8192;
  ok (RETRY (&txn, qcow2_get_l2_locked (&txn, 0, 2 * per, &entry, &bitmap,
                                        &nr)));
  assert_int_equal (nr, 7);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  assert_int_equal (qcow2_map (e.img, 0, (2 * per - 9) << 16, 20 << 16, x, 3),
                    2);
  assert_int_equal (x[0].host_off, (first + 2 * per - 9) << 16);
  assert_int_equal (x[0].len, 16 << 16);
  env_free (&e);
}

/* What is prepared can be changed, wherever in its table it lies. */
static void
test_preparing_pins_the_right_slice (void **state)
{
  const uint64_t last = 8191;
  struct qcow2_change c = { QCOW2_CHANGE_L2, .count = 1, .guest_idx = last };
  struct qcow2_txn txn;
  struct env e;

  env_new (&e, 16, 4, 8192);
  write_new (e.img, 0);
  writeback (e.img);
  env_reopen (&e);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_prepare_entry_locked (&txn, 0, last)));
  ok (qcow2_apply_locked (&txn, &c));
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* A run of clusters whose refcounts differ from one slice to the next. */
static void
test_a_drop_looks_at_each_slice (void **state)
{
  const uint64_t per = QCOW2_SLICE_BYTES / 2;     /* refcounts of 16 bits */
  struct qcow2_txn txn;
  uint64_t first, edge, i;
  bool anchored;
  struct env e;

  env_new (&e, 12, 4, 8192);
  first = write_run (&e, 3 * per);
  edge = (first / per + 2) * per;              /* of a slice, within the run */
  for (i = edge; i < edge + 2; ++i)
    set_refcount (e.img, i, 3, true);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_prepare_drop_locked (&txn, (edge - 4) << 12, 6)));
  ok (qcow2_drop_locked (&txn, (edge - 4) << 12, 6, false));
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  for (i = edge - 4; i < edge + 2; ++i)
    assert_int_equal (refcount_of (e.img, i, &anchored), i < edge ? 0 : 2);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (RETRY (&txn, qcow2_anchored_run_locked (&txn, edge, 2 * per, 2, &i)));
  assert_int_equal (i, per);                   /* the slice ends */
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* The bytes of a table that was freed are not written any more; those of the
 * next one in its place are, even if they can't at first. */
static void
test_a_freed_table_is_not_written (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_L2_TABLE, .table_idx = 1 };
  struct qcow2_writeback *wb;
  struct traffic t = { 0 };
  struct env e;
  uint64_t old;

  env_new (&e, 16, 4, 2 * 8192);
  write_new (e.img, 0);
  watch_table (&e, 0, &t);
  write_new (e.img, 1);
  write_new (e.img, 8191);                     /* another slice */
  old = e.img->l1.v[0];
  e.img->l1.v[0] &= ~QCOW2_L2_COPIED;          /* so the next one copies it */
  write_new (e.img, 2);
  assert_int_not_equal (e.img->l1.v[0], old);
  assert_int_equal (refcount_of (e.img, old >> 16 & UINT32_MAX, NULL), 0);
  t.written = 0;
  writeback (e.img);
  assert_int_equal (t.written, 0);
  assert_int_not_equal (entry_of (e.img, 0, 8191), 0);
  check_with_qemu (e.io);

  c.host_off = t.host_off;
  ok (apply_one (e.img, c));
  lock_acquire (&e.img->lock);
  ok (qcow2_writeback_begin_locked (e.img, &wb));
  qcow2_writeback_end_locked (wb, false);
  lock_release (&e.img->lock);
  writeback (e.img);
  assert_int_equal (t.written, 65536);
  env_free (&e);
}

/* The same where the table's cluster is freed with many others. */
static void
test_tables_freed_in_a_long_run_are_forgotten (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_REFCOUNT };
  struct traffic t = { 0 };
  struct env e;

  env_new (&e, 16, 4, 2 * 8192);
  write_new (e.img, 0);
  write_new (e.img, 8192);
  watch_table (&e, 1, &t);
  write_new (e.img, 8193);
  write_new (e.img, 2 * 8192 - 1);             /* another slice */
  write_new (e.img, 1);
  c.host_idx = t.host_off >> 16;
  c.count = 4000;
  assert_true (e.img->cache.nr_slices < c.count * 65536 / QCOW2_SLICE_BYTES);
  ok (apply_one (e.img, c));
  writeback (e.img);
  assert_int_equal (t.written, 0);
  assert_int_not_equal (entry_of (e.img, 0, 1), 0);
  env_free (&e);
}

/* All of a table that is copied is read in one round, not one each. */
static void
test_a_table_to_be_copied_is_loaded_at_once (void **state)
{
  struct traffic t = { 0 };
  struct qcow2_txn txn;
  struct env e;
  int rounds = 0;

  env_new (&e, 16, 4, 8192);
  write_new (e.img, 0);
  watch_table (&e, 0, &t);
  e.img->l1.v[0] &= ~QCOW2_L2_COPIED;
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  while (qcow2_prepare_entry_locked (&txn, 0, 5) == -EAGAIN) {
    lock_release (&e.img->lock);
    ok (qcow2_txn_load (&txn));
    lock_acquire (&e.img->lock);
    rounds++;
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  assert_int_equal (t.read, 65536);
  assert_true (rounds < 8);                    /* refcounts, space and it */
  assert_true (e.img->l1.v[0] & QCOW2_L2_COPIED);
  env_free (&e);
}

/* Without a log refcount blocks are written before what refers to them: all
 * of a new one. */
static void
test_all_slices_of_a_new_block_are_of_a_block (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_REFBLOCK };
  const struct qcow2_slice *t;
  size_t nr = 0;
  struct env e;

  env_new (&e, 16, 4, 64);
  while (e.img->reftable.v[c.table_idx])
    c.table_idx++;
  c.host_off = reserve_one (e.img) << 16;
  ok (apply_one (e.img, c));
  for (t = e.img->cache.dirty; t; t = t->dirty_next)
    if (t->host_off >= c.host_off && t->host_off < c.host_off + 65536) {
      assert_true (t->is_refblock);
      nr++;
    }
  assert_int_equal (nr, 65536 / QCOW2_SLICE_BYTES);
  env_free (&e);
}

/* Making a table anew, where it is in a cache that has no room for it. */
static void
test_a_table_is_made_anew_in_a_small_cache (void **state)
{
  const uint64_t per = QCOW2_SLICE_BYTES / 8;
  struct qcow2_change c = { QCOW2_CHANGE_L2_TABLE };
  struct env e;
  uint64_t g;

  env_new (&e, 16, 4, 8192);
  write_new (e.img, 0);
  writeback (e.img);
  env_reopen (&e);
  assert_int_equal (e.img->cache.budget, 16);
  for (g = 0; g < 8192 && g < 16 * per; g += per)
    entry_of (e.img, 0, g);
  c.host_off = e.img->l1.v[0] & QCOW2_OFFSET_MASK;
  ok (apply_one (e.img, c));
  for (g = 0; g < 8192; g += per)
    assert_int_equal (entry_of (e.img, 0, g), 0);
  writeback (e.img);
  env_reopen (&e);
  assert_int_equal (entry_of (e.img, 0, 0), 0);
  env_free (&e);
}

static void
open_made_by (struct env *e, const char *commands)
{
  char path[] = "/tmp/test-qcow2-XXXXXX", cmd[600];
  struct io_store *file;
  struct fault f = { 0 };

  if (system ("command -v qemu-io >/dev/null") != 0)
    skip ();
  memset (e, 0, sizeof *e);
  close (mkstemp (path));
  snprintf (cmd, sizeof cmd, "f=%s; %s", path, commands);
  assert_int_equal (system (cmd), 0);
  ok (io_file_open (path, 0, IO_LOCK_NONE, &file, &f));
  e->io = clone_store (file);
  io_close (file);
  unlink (path);
  env_open (e);
}

/* Tables of snapshots and bitmaps that QEMU made, of several slices. */
static void
test_entries_of_every_slice_are_found (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_BITMAP };
  const unsigned entry = 40;                   /* of 64: 16 GiB / 256 MiB */
  uint64_t g, at;
  be64 wire;
  struct env e;

  open_made_by (&e, "qemu-img create -q -f qcow2 -o cluster_size=512 $f 4M && "
                "qemu-io -f qcow2 -c 'write -q 0 4M' $f && "
                "qemu-img snapshot -c s $f");
  for (g = 0; g < 8192; g += 64)
    assert_int_equal (entry_of (e.img, 1, g),
                      entry_of (e.img, 0, g) & ~QCOW2_L2_COPIED);
  env_free (&e);

  open_made_by (&e, "qemu-img create -q -f qcow2 -o cluster_size=512 $f 16G && "
                "qemu-img bitmap --add $f b");
  c.host_off = reserve_one (e.img) << 9;
  for (at = 0; at < (uint64_t) io_size (e.io); at += 512) {
    c.table_idx = at + entry * sizeof wire;
    if (apply_one (e.img, c) == 0)
      break;
  }
  assert_true (at < (uint64_t) io_size (e.io));
  writeback (e.img);
  ok (io_pread (e.io, &wire, sizeof wire, c.table_idx));
  assert_int_equal (be64_load (wire), c.host_off);
  ok (io_pread (e.io, &wire, sizeof wire, at + 8 * (entry % 16)));
  assert_int_equal (be64_load (wire), 0);
  env_free (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_table_within_a_table_gives_eio),
    cmocka_unit_test (test_a_large_table_is_read_and_written_in_slices),
    cmocka_unit_test (test_a_new_table_has_nothing_of_what_was_there),
    cmocka_unit_test (test_a_run_ends_with_its_slice),
    cmocka_unit_test (test_preparing_pins_the_right_slice),
    cmocka_unit_test (test_a_drop_looks_at_each_slice),
    cmocka_unit_test (test_a_freed_table_is_not_written),
    cmocka_unit_test (test_tables_freed_in_a_long_run_are_forgotten),
    cmocka_unit_test (test_a_table_to_be_copied_is_loaded_at_once),
    cmocka_unit_test (test_all_slices_of_a_new_block_are_of_a_block),
    cmocka_unit_test (test_a_table_is_made_anew_in_a_small_cache),
    cmocka_unit_test (test_entries_of_every_slice_are_found),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
