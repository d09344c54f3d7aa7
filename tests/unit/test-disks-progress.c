/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the progress of the work that clones and deletions leave is true, by counts:
 * what is told as the total before the work begins is what is done at its end.
 *
 * The unit is a sixteenth of a table: a path that is dropped from a debt counts one, a
 * table that is paid for, or a path that is dropped with its references, sixteen.  What
 * each case has to do in all follows from the rules of debts (docs/on-disk.md 11.2).
 *
 * Breaks if: a debt is counted for each disk that has it, a debt is paid for that a
 * deletion would have taken away, or a payment that is not needed any more still counts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checked.h"
#include "clock.h"
#include "disks-private.h"
#include "pool.h"

#define CLUSTER 512u
#define PER_TABLE 64u                   /* clusters of one L2 table */
#define NR_TABLES UINT64_C (224)        /* more than lent.c begins with */
#define UNIT (PER_TABLE * CLUSTER / 16) /* bytes of the disk */
#define WHOLE (16 * NR_TABLES)          /* units of all tables */

struct world {
  struct io_store *io;
  struct dedup_pool *d;
};

/* --- World ----------------------------------------------------------------- */

static void
open_pool (struct world *w)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 16 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("%s", f.msg);
}

static void
close_pool (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
}

static void
reopen (struct world *w)
{
  close_pool (w);
  open_pool (w);
}

static unsigned
disk (struct world *w, const char *name)
{
  struct fault f = { 0 };
  unsigned root;

  if (dedup_disk_find (w->d, name, &root, &f) < 0)
    fail_msg ("%s", f.msg);
  return root;
}

static void
make_clone (struct world *w, const char *source, const char *name)
{
  struct fault f = { 0 };
  unsigned root;

  if (dedup_disk_clone (w->d, disk (w, source), name, true, &root, &f) < 0)
    fail_msg ("%s", f.msg);
}

static void
delete (struct world *w, const char *name)
{
  struct fault f = { 0 };

  if (dedup_disk_delete (w->d, disk (w, name), &f) < 0)
    fail_msg ("%s", f.msg);
}

/* Makes the disk "a", with one cluster of data in each table. */
static int
make_pool (void **state)
{
  struct world *w = calloc (1, sizeof *w);
  struct dedup_create_params c = {
    .image = { .virtual_size = NR_TABLES * PER_TABLE * CLUSTER,
               .cluster_bits = 9, .refcount_order = 5 },
    .order = 5, .journal_areas = 8,
  };
  uint8_t buf[CLUSTER] = { 0 };
  struct fault f = { 0 };
  unsigned root;

  assert_non_null (w);
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &c, &f) < 0)
    fail_msg ("%s", f.msg);
  open_pool (w);
  if (dedup_disk_create (w->d, "a", c.image.virtual_size, &root, &f) < 0)
    fail_msg ("%s", f.msg);
  for (uint64_t i = 0; i < NR_TABLES; i++) {
    memcpy (buf, &i, sizeof i);
    buf[CLUSTER - 1] = 1;
    assert_int_equal (dedup_write (w->d, root, buf, i * PER_TABLE, 1), 0);
  }
  assert_int_equal (dedup_flush (w->d), 0);
  *state = w;
  return 0;
}

static int
remove_pool (void **state)
{
  struct world *w = *state;

  close_pool (w);
  io_close (w->io);
  free (w);
  return 0;
}

/* --- Work ------------------------------------------------------------------ */

static bool
is_left (struct world *w)
{
  return dedup_due (w->d, NULL) & DEDUP_JOB_DISKS;
}

/* Does a slice of the work, usually of few tables: it rests behind each, as if a client
 * had just used the image. */
static void
step (struct world *w)
{
  w->d->disks.pace.used_ns = clock_now_ns ();
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_DISKS), 0);
}

static void
work (struct world *w)
{
  while (is_left (w))
    step (w);
}

static uint64_t
units_done (struct world *w)
{
  uint64_t done, total;

  dedup_disks_progress (w->d, &done, &total);
  return done / UNIT;
}

/* Counts the work, and does it: both are to be UNITS, what was done before included. */
static void
expect_true_progress (struct world *w, uint64_t units)
{
  uint64_t done, total;

  while (dedup_progress_count (&w->d->disks))
    ;
  assert_true (is_left (w));
  do {
    dedup_disks_progress (w->d, &done, &total);
    assert_int_equal (total, units * UNIT);
    step (w);
  } while (is_left (w));
  assert_int_equal (units_done (w), units);
}

/* --- Cases ----------------------------------------------------------------- */

static void
a_deletion (void **state)
{
  delete (*state, "a");
  expect_true_progress (*state, WHOLE);
}

static void
a_deletion_that_is_found_at_open (void **state)
{
  delete (*state, "a");
  reopen (*state);
  expect_true_progress (*state, WHOLE);
}

static void
a_debt (void **state)
{
  make_clone (*state, "a", "b");
  expect_true_progress (*state, WHOLE);
}

/* Which of the disks owes is not known: all count as such. */
static void
a_debt_that_is_found_at_open (void **state)
{
  make_clone (*state, "a", "b");
  reopen (*state);
  expect_true_progress (*state, WHOLE);
}

static void
a_deletion_of_one_of_two_clones (void **state)
{
  make_clone (*state, "a", "b");
  make_clone (*state, "a", "c");
  delete (*state, "b");
  expect_true_progress (*state, NR_TABLES + WHOLE);
}

/* What is left has the references that were counted for the source. */
static void
a_deletion_of_the_source (void **state)
{
  make_clone (*state, "a", "b");
  delete (*state, "a");
  expect_true_progress (*state, NR_TABLES);
}

static void
a_deletion_of_source_and_clone (void **state)
{
  make_clone (*state, "a", "b");
  delete (*state, "b");
  delete (*state, "a");
  expect_true_progress (*state, NR_TABLES + WHOLE);
}

/* Two of four paths are not counted, of which one is dropped. */
static void
all_of_it_that_is_found_at_open (void **state)
{
  make_clone (*state, "a", "b");
  work (*state);
  make_clone (*state, "a", "c");
  make_clone (*state, "b", "d");
  delete (*state, "b");
  reopen (*state);
  expect_true_progress (*state, NR_TABLES + WHOLE);
}

/* Of K tables that are paid for, the references are dropped again.  (Where the machine is
 * so slow that all were, that is a work of its own.) */
static void
a_deletion_amid_the_payment (void **state)
{
  struct world *w = *state;
  uint64_t k;
  bool all;

  make_clone (w, "a", "b");
  while ((k = units_done (w) / 16) < NR_TABLES / 4)
    step (w);
  all = !is_left (w);
  delete (w, "b");
  expect_true_progress (w, all ? WHOLE : 16 * k + 16 * k + (NR_TABLES - k));
}

int
main (void)
{
#define CASE(f) cmocka_unit_test_setup_teardown (f, make_pool, remove_pool)
  const struct CMUnitTest tests[] = {
    CASE (a_deletion),
    CASE (a_deletion_that_is_found_at_open),
    CASE (a_debt),
    CASE (a_debt_that_is_found_at_open),
    CASE (a_deletion_of_one_of_two_clones),
    CASE (a_deletion_of_the_source),
    CASE (a_deletion_of_source_and_clone),
    CASE (all_of_it_that_is_found_at_open),
    CASE (a_deletion_amid_the_payment),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
