/* SPDX-License-Identifier: BSD-3-Clause */
/* Space of free clusters goes back to the host: what was overwritten, trimmed,
 * or left by an earlier session; not what writers need, what an entry names
 * whatever its refcount says, or what a crash might bring back. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "checked.h"
#include "disk.h"

#define CLUSTER 4096
#define NR 1024            /* guest clusters */
#define FEW 64
#define AT_ONCE 256

struct world {
  struct io_store *below, *io;
  struct dedup_disk *d;
  uint64_t next;           /* number of the next content */
  unsigned discards;
  int discard_result;
  bool unreadable;
};

static int
on_call (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;

  if (call == IO_PREAD && w->unreadable)
    return -EIO;
  if (call != IO_DISCARD)
    return 0;
  w->discards++;
  return w->discard_result;
}

static void
open_disk (struct world *w, bool writable)
{
  struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 4 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static int
setup (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  assert_int_equal (io_memory_new (0, &w->below), 0);
  assert_int_equal (io_faulty_new (w->below, on_call, w, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_disk (w, true);
  *state = w;
  return 0;
}

static void
close_disk (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_give_back_all (w->d);
  dedup_free (w->d);
  w->d = NULL;
}

/* Closed and checked: neither leaks nor anything worse. */
static int
teardown (void **state)
{
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct world *w = *state;
  struct fault f = { 0 };

  if (w->d)
    close_disk (w);
  open_disk (w, false);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
  return 0;
}

/* New data in NR clusters from FIRST on. */
static void
write_new (struct world *w, uint64_t first, size_t nr)
{
  uint8_t *buf = malloc (nr * CLUSTER);
  size_t i;

  assert_non_null (buf);
  for (i = 0; i < nr; i++) {
    memset (buf + i * CLUSTER, 0x5a, CLUSTER);
    memcpy (buf + i * CLUSTER, &(uint64_t) { ++w->next }, 8);
  }
  for (i = 0; i < nr; i += AT_ONCE)
    assert_int_equal (dedup_write (w->d, 0, buf + i * CLUSTER, first + i,
                                   MIN_OF (nr - i, AT_ONCE)), 0);
  free (buf);
}

/* How many blocks of the file hold such data? */
static unsigned
blocks_with_data (struct world *w)
{
  uint8_t buf[CLUSTER];
  uint64_t size = (uint64_t) io_size (w->below), off;
  unsigned n = 0, i;

  for (off = 0; off < size; off += CLUSTER) {
    assert_int_equal (io_pread (w->below, buf, CLUSTER, off), 0);
    for (i = 8; i < CLUSTER && buf[i] == 0x5a; i++)
      ;
    n += i == CLUSTER;
  }
  return n;
}

static void
run_due (struct world *w, unsigned jobs, unsigned times)
{
  unsigned job;

  while (times-- > 0)
    for (job = 1; job <= DEDUP_JOB_GIVE_BACK; job <<= 1)
      if (dedup_due (w->d, NULL) & jobs & job)
        assert_int_equal (dedup_run (w->d, job), 0);
}

/* As a server does that has nothing to do. */
static void
rest (struct world *w)
{
  run_due (w, ~0u, 12);
}

static void
test_what_was_overwritten_goes_back_at_rest (void **state)
{
  struct world *w = *state;

  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (blocks_with_data (w), 2 * FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), FEW);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_GIVE_BACK);
}

/* The records that freed them are not known durable. */
static void
test_nothing_goes_back_before_law_6_permits (void **state)
{
  struct world *w = *state;

  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  run_due (w, DEDUP_JOB_GIVE_BACK | DEDUP_JOB_SCAN, 4);
  assert_int_equal (dedup_flush (w->d), 0);
  run_due (w, DEDUP_JOB_GIVE_BACK | DEDUP_JOB_SCAN, 4);
  assert_int_equal (blocks_with_data (w), 2 * FEW);
}

/* Clusters that were freed and are taken again between two runs of the job are
 * needed; those that lie there all the time are not. */
static void
test_what_writers_use_again_stays (void **state)
{
  struct world *w = *state;
  unsigned discards, i;

  write_new (w, 0, NR / 2);
  for (i = 0; i < 6; i++) {
    write_new (w, 0, FEW);
    assert_int_equal (dedup_flush (w->d), 0);
    run_due (w, DEDUP_JOB_COMMIT, 4);
  }
  run_due (w, DEDUP_JOB_SCAN, 40);
  run_due (w, DEDUP_JOB_GIVE_BACK, 6);
  discards = w->discards;
  for (i = 0; i < 20; i++) {
    run_due (w, DEDUP_JOB_GIVE_BACK, 1);
    write_new (w, 0, FEW);       /* takes what the round before freed */
    assert_int_equal (dedup_flush (w->d), 0);
    run_due (w, DEDUP_JOB_COMMIT, 4);
  }
  assert_true (w->discards <= discards + 2);
}

/* Trimmed, and closed at once. */
static void
test_a_close_gives_back_what_was_freed (void **state)
{
  struct world *w = *state;
  int64_t size;

  write_new (w, 0, NR);
  assert_int_equal (dedup_flush (w->d), 0);
  size = io_size (w->below);
  assert_int_equal (dedup_unmap (w->d, 0, FEW, NR - FEW, DEDUP_TRIM), 0);
  dedup_stop_jobs (w->d);
  close_disk (w);
  assert_int_equal (blocks_with_data (w), FEW);
  assert_true (io_size (w->below) < size - NR / 2 * CLUSTER);
}

/* A session ends without a close: the next one finds what was forgotten. */
static void
test_what_a_crash_forgot_is_found (void **state)
{
  struct world *w = *state;

  write_new (w, 0, NR / 2);
  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  dedup_free (w->d);
  open_disk (w, true);
  assert_true (blocks_with_data (w) >= NR / 2 + FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR / 2);
}

/* --- Refcounts that are wrong ----------------------------------------------- */

/* Let the file say that the cluster of guest cluster GUEST_IDX is free: refcount
 * 0, not anchored.  Where it lies. */
static uint64_t
spoil_refcount (struct world *w, uint64_t guest_idx)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT, .count = 1 };
  struct qcow2_writeback *wb;
  struct qcow2_extent ext;
  struct qcow2_txn txn;
  int r;

  assert_int_equal (qcow2_map (w->d->img, 0, guest_idx * CLUSTER, CLUSTER, &ext,
                               1), 1);
  c.host_idx = ext.host_off / CLUSTER;
  qcow2_txn_begin (w->d->img, &txn);
  lock_acquire (w->d->lock);
  while ((r = qcow2_apply_locked (&txn, &c)) == -EAGAIN) {
    lock_release (w->d->lock);
    assert_int_equal (qcow2_txn_load (&txn), 0);
    lock_acquire (w->d->lock);
  }
  assert_int_equal (r, 0);
  assert_int_equal (qcow2_writeback_begin_locked (w->d->img, &wb), 0);
  lock_release (w->d->lock);
  assert_int_equal (qcow2_writeback_write (wb), 0);
  lock_acquire (w->d->lock);
  qcow2_writeback_end_locked (wb, true);
  qcow2_txn_end_locked (&txn);
  lock_release (w->d->lock);
  return c.host_idx;
}

/* Freed clusters are left behind with their data, and one that is in use has
 * refcount 0: those go back, and that stays, and is not handed out. */
static void
test_what_an_entry_names_is_not_emptied (void **state)
{
  struct world *w = *state;
  struct qcow2_run run;
  uint64_t host_idx, id;
  uint8_t buf[CLUSTER];

  write_new (w, 0, NR / 2);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_finish (w->d), 0);
  host_idx = spoil_refcount (w, 100);
  dedup_free (w->d);
  open_disk (w, true);
  assert_int_equal (blocks_with_data (w), NR / 2 + FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR / 2);
  assert_int_equal (dedup_read (w->d, 0, buf, 100 * CLUSTER, CLUSTER), 0);
  memcpy (&id, buf, sizeof id);
  assert_int_equal (id, 101);
  lock_acquire (w->d->lock);
  while (qcow2_reserve_locked (w->d->img, 1, &run) == 0 &&
         run.host_idx < 4 * NR)
    assert_int_not_equal (run.host_idx, host_idx);
  lock_release (w->d->lock);
  dedup_free (w->d);

  /* So that it checks clean in the end: as it was. */
  open_disk (w, true);
  assert_int_equal (dedup_unmap (w->d, 0, 0, 100, DEDUP_TRIM), 0);
  dedup_free (w->d);
  w->d = NULL;
  io_close (w->io);
  setup (state);
  free (w);
}

/* The same for all clusters, up to the end of the file, where nobody finds out
 * that entries name them: IN_VAIN, the tables can't be read; else, the session
 * ends before that.  The file is not cut off. */
static void
close_with_a_tail_of_suspects (void **state, bool in_vain)
{
  struct world *w = *state;
  uint64_t i, id;
  uint8_t buf[CLUSTER];
  int64_t size;

  write_new (w, 0, NR / 2);
  close_disk (w);
  open_disk (w, true);
  size = io_size (w->below);
  for (i = 0; i < NR / 2; i++)
    spoil_refcount (w, i);
  dedup_free (w->d);
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  if (in_vain) {
    w->unreadable = true;
    run_due (w, DEDUP_JOB_GIVE_BACK, 12);
    w->unreadable = false;
  }
  close_disk (w);
  assert_int_equal (io_size (w->below), size);
  open_disk (w, false);
  for (i = 0; i < NR / 2; i++) {
    assert_int_equal (dedup_read (w->d, 0, buf, i * CLUSTER, CLUSTER), 0);
    memcpy (&id, buf, sizeof id);
    assert_int_equal (id, i + 1);
  }
  dedup_free (w->d);

  /* The refcounts are wrong still: this image is done with. */
  w->d = NULL;
  io_close (w->io);
  setup (state);
  free (w);
}

static void
test_a_tail_that_was_not_looked_at_is_not_cut_off (void **state)
{
  close_with_a_tail_of_suspects (state, false);
}

static void
test_a_tail_that_nobody_can_tell_of_is_not_cut_off (void **state)
{
  close_with_a_tail_of_suspects (state, true);
}

/* --- Hosts ------------------------------------------------------------------ */

static void
test_a_host_that_cannot_is_asked_once (void **state)
{
  struct world *w = *state;

  w->discard_result = -EOPNOTSUPP;
  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  rest (w);
  assert_int_equal (w->discards, 1);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_GIVE_BACK);
  assert_int_equal (dedup_unmap (w->d, 0, 0, FEW, DEDUP_TRIM), 0);
  rest (w);
  close_disk (w);
  assert_int_equal (w->discards, 1);
  w->discard_result = 0;
}

/* The space for overwriting on a full host is kept while the disk is in use. */
static void
test_spare_clusters_stay_until_the_close (void **state)
{
  struct world *w = *state;
  unsigned spare;

  write_new (w, 0, FEW);
  rest (w);
  write_new (w, 0, FEW);
  rest (w);
  lock_acquire (w->d->lock);
  spare = w->d->spare.nr;
  lock_release (w->d->lock);
  assert_true (spare > 0);
  rest (w);
  assert_int_equal (w->d->spare.nr, spare);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_what_was_overwritten_goes_back_at_rest),
    TEST (test_nothing_goes_back_before_law_6_permits),
    TEST (test_what_writers_use_again_stays),
    TEST (test_a_close_gives_back_what_was_freed),
    TEST (test_what_a_crash_forgot_is_found),
    TEST (test_what_an_entry_names_is_not_emptied),
    TEST (test_a_tail_that_was_not_looked_at_is_not_cut_off),
    TEST (test_a_tail_that_nobody_can_tell_of_is_not_cut_off),
    TEST (test_a_host_that_cannot_is_asked_once),
    TEST (test_spare_clusters_stay_until_the_close),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
