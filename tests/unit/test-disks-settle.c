/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that a tool which removes many deleted disks at once (dedup_disks_settle), as
 * "recover" does, takes little space for that.
 *
 * Breaks if: what the removal of each disk leaves in quarantine stays there to the end.
 * That grows with the square of the number of disks: all lists that are written here
 * together take 210 MiB in either half of the test.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"

#define CLUSTER 512u
#define NR 1800u                /* clones */
/* A checkpoint is due when a quarter of what is in use is to be freed; as no refcounts were
 * scanned, that is all of the file; and as much again may be freed before the checkpoint is
 * followed by a commit. */
#define MOST_FILE (UINT64_C (192) << 20)
#define MOST_MORE (MOST_FILE / 2)

static struct dedup_pool *
open_pool (struct io_store *io)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 16 << 20,
  };
  struct dedup_pool *d;
  struct fault f = { 0 };

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("%s", f.msg);
  return d;
}

static void
close_pool (struct dedup_pool *d)
{
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
}

/* Runs what is urgent, until nothing is, as the loop of a server does. */
static void
run_urgent (struct dedup_pool *d)
{
  unsigned urgent, job;

  while (dedup_due (d, &urgent), urgent != 0)
    for (job = 1; job <= urgent; job <<= 1)
      if (urgent & job)
        assert_in_range (dedup_run (d, job), 0, 1);
}

/* Makes a pool, and in it a disk and NR clones of it. */
static void
make_clones (struct io_store *io)
{
  struct dedup_create_params c = {
    .image = { .virtual_size = 64 * CLUSTER, .cluster_bits = 9, .refcount_order = 5 },
    .order = 5, .journal_areas = 8,
  };
  const uint8_t buf[CLUSTER] = { 1 };
  struct dedup_pool *d;
  struct fault f = { 0 };
  unsigned root, clone, i;
  char name[20];

  if (dedup_create (io, &c, &f) < 0)
    fail_msg ("%s", f.msg);
  d = open_pool (io);
  if (dedup_disk_create (d, "a", c.image.virtual_size, &root, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_int_equal (dedup_write (d, root, buf, 0, 1), 0);
  for (i = 0; i < NR; i++) {
    snprintf (name, sizeof name, "c%u", i);
    if (dedup_disk_clone (d, root, name, true, &clone, &f) < 0)
      fail_msg ("%s", f.msg);
    run_urgent (d);
  }
  close_pool (d);
}

static void
delete_clones (struct dedup_pool *d)
{
  struct fault f = { 0 };
  unsigned root, i;
  char name[20];

  for (i = 0; i < NR; i++) {
    snprintf (name, sizeof name, "c%u", i);
    if (dedup_disk_find (d, name, &root, &f) < 0 || dedup_disk_delete (d, root, &f) < 0)
      fail_msg ("%s", f.msg);
    run_urgent (d);
  }
}

static void
many_deleted_disks_take_little_space (void **state)
{
  struct io_store *io;
  struct dedup_pool *d;
  int64_t before;

  (void) state;
  assert_int_equal (io_memory_new (0, &io), 0);
  make_clones (io);
  d = open_pool (io);
  delete_clones (d);
  close_pool (d);               /* as a server does that has no time for the work */
  d = open_pool (io);
  assert_true (dedup_disks_pending (d));
  before = io_size (io);
  print_message ("%" PRId64 " KiB\n", before / 1024);
  assert_in_range ((uint64_t) before, 0, MOST_FILE);
  assert_int_equal (dedup_disks_settle (d), 0);
  assert_false (dedup_disks_pending (d));
  print_message ("%" PRId64 " KiB more\n", (io_size (io) - before) / 1024);
  assert_in_range ((uint64_t) (io_size (io) - before), 0, MOST_MORE);
  close_pool (d);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (many_deleted_disks_take_little_space),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
