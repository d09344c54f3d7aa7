/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests writing ahead: while clients flush after little data, zeroes are
 * written to free clusters ahead of them, and their new data goes there;
 * otherwise not.  Clusters that are left over are free.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"

#define CLUSTER 4096
#define NR 4096            /* guest clusters */
#define AHEAD 512          /* clusters */

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t next;           /* number of the next write */
};

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
  struct io_store *memory;
  struct fault f = { 0 };

  assert_non_null (w);
  assert_int_equal (io_memory_new (0, &memory), 0);
  assert_int_equal (io_recording_new (memory, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_disk (w, true);
  *state = w;
  return 0;
}

/* Closed and checked: neither leaks nor anything worse. */
static int
teardown (void **state)
{
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct world *w = *state;
  struct fault f = { 0 };

  assert_int_equal (dedup_clean (&w->d->upkeep), 0);
  dedup_free (w->d);
  open_disk (w, false);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
  return 0;
}

/* New data in NR clusters. */
static void
write_some (struct world *w, size_t nr)
{
  uint8_t *buf = calloc (nr, CLUSTER);
  size_t i;

  assert_non_null (buf);
  for (i = 0; i < nr; i++) {
    uint64_t id = w->next + i + 1;

    memcpy (buf + i * CLUSTER, &id, sizeof id);
  }
  assert_int_equal (dedup_write (w->d, 0, buf, w->next % NR, nr), 0);
  w->next += nr;
  free (buf);
}

static void
write_and_flush (struct world *w, size_t times, size_t nr)
{
  for (; times > 0; times--) {
    write_some (w, nr);
    assert_int_equal (dedup_flush (w->d), 0);
  }
}

/* What was last written in one piece of a MiB, all zeroes: its number in the
 * log, or 0. */
static size_t
last_zeroes (struct world *w)
{
  const struct io_record *log;
  size_t i = io_recording_log (w->io, &log), k;

  while (i-- > 0) {
    if (log[i].call != IO_PWRITE || log[i].len != 1 << 20)
      continue;
    for (k = 0; k < log[i].len && log[i].data[k] == 0; k++)
      ;
    if (k == log[i].len)
      return i;
  }
  return 0;
}

static void
test_small_synced_writes_land_on_zeroes (void **state)
{
  struct world *w = *state;
  const struct io_record *log;
  size_t before = last_zeroes (w), zeroes, i, landed = 0, nr;
  unsigned urgent;

  write_and_flush (w, 40, 1);
  dedup_due (w->d, &urgent);
  assert_true (urgent & DEDUP_JOB_COMMIT);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  zeroes = last_zeroes (w);
  assert_true (zeroes > before);
  io_recording_log (w->io, &log);
  assert_int_equal (log[zeroes + 1].call, IO_SYNC);
  dedup_due (w->d, &urgent);
  assert_false (urgent & DEDUP_JOB_COMMIT);     /* enough for now */

  write_and_flush (w, 40, 1);
  nr = io_recording_log (w->io, &log);
  for (i = zeroes + 1; i < nr; i++)
    landed += log[i].call == IO_PWRITE && log[i].len == CLUSTER &&
      log[i].host_off + (1 << 20) >= log[zeroes].host_off &&
      log[i].host_off < log[zeroes].host_off + (1 << 20);
  assert_int_equal (landed, 40);
}

static void
test_large_or_unsynced_writes_do_not (void **state)
{
  struct world *w = *state;
  size_t before = last_zeroes (w);
  int i;

  for (i = 0; i < 40; i++)
    write_some (w, 16);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  write_and_flush (w, 40, 32);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (last_zeroes (w), before);
}

/* Flushes alone write nothing, and nothing is written to a clean image. */
static void
test_clean_images_are_left_alone (void **state)
{
  struct world *w = *state;
  size_t before = last_zeroes (w);
  int i;

  write_and_flush (w, 1, 1);
  for (i = 0; i < 40; i++)
    assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (last_zeroes (w), before);

  write_and_flush (w, 40, 1);
  assert_int_equal (dedup_clean (&w->d->upkeep), 0);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (last_zeroes (w), before);
  write_and_flush (w, 1, 1);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_true (last_zeroes (w) > before);
}

/* Who finds no space gets these, too. */
static void
test_they_are_given_back (void **state)
{
  struct world *w = *state;

  write_and_flush (w, 40, 1);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (w->d->upkeep.prewrite.run[1].count, AHEAD);
  assert_int_equal (dedup_find_space (&w->d->upkeep), 0);
  assert_int_equal (w->d->upkeep.prewrite.run[0].count + w->d->upkeep.prewrite.run[1].count, 0);
  write_and_flush (w, 10, 1);
}

/* Clusters that were in use before are not written again. */
static void
test_used_space_needs_none (void **state)
{
  struct world *w = *state;
  size_t before;
  int i;

  for (i = 0; i < 2; i++) {     /* the same guest clusters */
    w->next = (uint64_t) i * NR;
    write_some (w, AHEAD);
  }
  assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (dedup_drain_quarantine (&w->d->upkeep), 0);
  before = last_zeroes (w);
  write_and_flush (w, 80, 1);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_int_equal (last_zeroes (w), before);
}

/* Where data was given back, the file has a hole: as behind its end. */
static void
test_holes_in_the_file_are_written (void **state)
{
  struct world *w = *state;
  size_t before;
  int64_t size;
  int i;

  for (i = 0; i < 2; i++)
    write_some (w, AHEAD);
  assert_int_equal (dedup_unmap (w->d, 0, 0, 2 * AHEAD, DEDUP_TRIM), 0);
  assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (dedup_drain_quarantine (&w->d->upkeep), 0);
  before = last_zeroes (w);
  write_and_flush (w, 80, 1);
  size = io_size (w->io);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  assert_true (last_zeroes (w) > before);
  assert_true (io_size (w->io) == size);
}

int
main (void)
{
#define TEST(t) cmocka_unit_test_setup_teardown (t, setup, teardown)
  const struct CMUnitTest tests[] = {
    TEST (test_small_synced_writes_land_on_zeroes),
    TEST (test_large_or_unsynced_writes_do_not),
    TEST (test_clean_images_are_left_alone),
    TEST (test_they_are_given_back),
    TEST (test_used_space_needs_none),
    TEST (test_holes_in_the_file_are_written),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
