/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests replay after a crash in the middle of a checkpoint.  L1, refcount table
 * or anchor L1 may then name tables that were not written yet: past the end of
 * the file, or in a cluster that still holds its former contents.  Records that
 * come before the one which creates such a table touch it, and the replay must
 * ignore its contents.
 *
 * Breaks if: such an image cannot be opened any more ("a journal record does
 * not fit the image"; found by tests/crash).
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "dedup.h"
#include "wire.h"

#define CLUSTER 4096u
#define L1_OFF_AT 40           /* specification: l1_table_offset */
#define PART 5                 /* of the anchor: far behind the file */

static int
apply (struct qcow2_image *img, const struct qcow2_change *c)
{
  struct lock *l = qcow2_lock (img);
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (img, &txn);
  do {
    lock_acquire (l);
    r = qcow2_apply_locked (&txn, c);
    lock_release (l);
  } while (r == -EAGAIN && (r = qcow2_txn_load (&txn)) == 0);
  qcow2_txn_end (&txn);
  return r;
}

static void
create (struct io_store **io)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 1 << 20, .cluster_bits = 12,
               .refcount_order = 4 },
  };
  struct fault f = { 0 };

  assert_int_equal (io_memory_new (0, io), 0);
  assert_int_equal (dedup_create (*io, &p, &f), 0);
}

static struct qcow2_image *
reopen (struct io_store *io)
{
  struct qcow2_open_params p = { .path = "test", .cache_bytes = 1 << 20 };
  struct qcow2_image *img;
  struct fault f = { 0 };

  assert_int_equal (qcow2_open (io, &p, &img, &f), 0);
  return img;
}

static uint64_t
end_of_file (struct io_store *io)
{
  return ((uint64_t) io_size (io) + CLUSTER - 1) / CLUSTER * CLUSTER;
}

static void
put_entry (struct io_store *io, uint64_t at, uint64_t entry)
{
  be64 wire = be64_make (entry);

  assert_int_equal (io_pwrite (io, &wire, sizeof wire, at), 0);
}

static void
test_an_l2_table_that_was_cut_off (void **state)
{
  struct qcow2_change unmap = { .type = QCOW2_CHANGE_L2, .count = 1 };
  struct qcow2_change make = { .type = QCOW2_CHANGE_L2_TABLE };
  struct qcow2_image *img;
  struct io_store *io;
  be64 wire;

  create (&io);
  make.host_off = end_of_file (io) + 3 * CLUSTER;
  assert_int_equal (io_pread (io, &wire, sizeof wire, L1_OFF_AT), 0);
  put_entry (io, be64_load (wire), make.host_off | QCOW2_L2_COPIED);
  img = reopen (io);
  assert_int_equal (apply (img, &unmap), -EIO);
  qcow2_replay_begin (img);
  assert_int_equal (apply (img, &unmap), 0);
  assert_int_equal (apply (img, &make), 0);
  assert_int_equal (qcow2_replay_end (img), 0);
  assert_int_equal (apply (img, &unmap), 0);
  qcow2_close (img);
  io_close (io);
}

/* A record from before the first disk meets an L1 entry from after it, whose
 * table's refcount was not written yet. */
static void
test_a_record_from_before_the_first_disk (void **state)
{
  struct qcow2_change unmap = { .type = QCOW2_CHANGE_L2, .count = 1 };
  struct qcow2_image *img;
  struct io_store *io;
  be64 wire;

  create (&io);
  assert_int_equal (io_pread (io, &wire, sizeof wire, L1_OFF_AT), 0);
  put_entry (io, be64_load (wire), end_of_file (io) + 3 * CLUSTER);
  img = reopen (io);
  lock_acquire (qcow2_lock (img));
  qcow2_begin_disks_locked (img);
  lock_release (qcow2_lock (img));
  assert_int_equal (apply (img, &unmap), -EINVAL);
  qcow2_replay_begin (img);
  assert_int_equal (apply (img, &unmap), 0);
  assert_int_equal (qcow2_replay_end (img), 0);
  qcow2_close (img);
  io_close (io);
}

static uint64_t
anchor_l1_off (struct io_store *io)
{
  struct qcow2_image *img = reopen (io);
  const struct qcow2_snapshot *s;
  uint64_t off = 0;
  size_t i, nr = qcow2_snapshots (img, &s);

  for (i = 0; i < nr; i++)
    if (s[i].is_anchor) {
      assert_true (s[i].l1_entries > PART);
      off = s[i].l1_off;
    }
  assert_true (off != 0);
  qcow2_close (img);
  return off;
}

/* An anchor L1 entry for a cluster of other bytes; returns its place. */
static uint64_t
garbage_for_a_table (struct io_store *io)
{
  uint64_t off = end_of_file (io);
  uint8_t garbage[CLUSTER];

  memset (garbage, 0xa5, sizeof garbage);
  assert_int_equal (io_pwrite (io, garbage, sizeof garbage, off), 0);
  put_entry (io, anchor_l1_off (io) + PART * 8, off);
  return off;
}

static void
test_an_anchor_table_that_was_not_written (void **state)
{
  struct qcow2_change ref = { .type = QCOW2_CHANGE_REFCOUNT, .count = 1,
                              .host_idx = PART * (CLUSTER / 8) + 7 };
  struct qcow2_change make = { .type = QCOW2_CHANGE_ANCHOR_TABLE,
                               .table_idx = PART };
  struct qcow2_image *img;
  struct io_store *io;

  create (&io);
  make.host_off = garbage_for_a_table (io);
  img = reopen (io);
  assert_int_equal (apply (img, &ref), -EIO);
  qcow2_close (img);

  img = reopen (io);
  qcow2_replay_begin (img);
  assert_int_equal (apply (img, &ref), 0);
  assert_int_equal (apply (img, &make), 0);
  assert_int_equal (qcow2_replay_end (img), 0);
  qcow2_close (img);

  /* No record makes it: then it is damage, not a crash. */
  img = reopen (io);
  qcow2_replay_begin (img);
  assert_int_equal (apply (img, &ref), 0);
  assert_int_equal (qcow2_replay_end (img), -EIO);
  qcow2_close (img);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_an_l2_table_that_was_cut_off),
    cmocka_unit_test (test_a_record_from_before_the_first_disk),
    cmocka_unit_test (test_an_anchor_table_that_was_not_written),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
