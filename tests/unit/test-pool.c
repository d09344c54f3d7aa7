/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the disks of an image (dedup-disks.h) on a byte store in memory, against a
 * model: an array of contents for each disk.
 *
 * Random writes, trims, clones, snapshots, resets, renames, resizes and deletes
 * of a few disks, with jobs in between, closes, and ends without a close.  All
 * disks are compared with the model, and a closed image is checked.
 *
 * POOL_TEST_SEED and POOL_TEST_OPS choose the seed and the length.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checked.h"
#include "dedup.h"

#define CLUSTER 512
#define PER_TABLE 64                    /* clusters of one L2 table */
#define MAX_CLUSTERS (6 * PER_TABLE)
#define NR_DISKS 6

struct disk {
  bool there, snapshot;
  char name[64];
  unsigned root;
  uint64_t nr;                          /* clusters */
  uint64_t ids[MAX_CLUSTERS];
};

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  struct disk disks[NR_DISKS];          /* the first is the active one */
  uint64_t next_id, next_name;
};

static uint64_t rng;

static uint64_t
rnd (uint64_t n)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return (rng >> 8) % n;
}

static uint64_t
number (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s ? strtoull (s, NULL, 0) : otherwise;
}

static void
fill (uint8_t *p, uint64_t id)
{
  uint64_t v;

  for (size_t i = 0; i < CLUSTER / 8; i++) {
    v = id == 0 ? 0 : i == 0 ? id : id * 0x100000001b3u + i * (id | 1);
    memcpy (p + 8 * i, &v, 8);
  }
}

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  (void) opaque;
  (void) level;
  if (getenv ("POOL_TEST_VERBOSE"))
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { print_line, NULL };

static struct dedup_pool *
open_verify (struct io_store *io, bool writable, bool verify)
{
  struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = verify,
    .max_incarnations = -1, .cache_bytes = 64 << 10, .log = &sink,
  };
  struct fault f = { 0 };
  struct dedup_pool *d = NULL;

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static struct dedup_pool *
open_pool (struct io_store *io, bool writable)
{
  return open_verify (io, writable, true);
}

static void
begin_verify (struct world *w, bool verify)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = MAX_CLUSTERS * CLUSTER, .cluster_bits = 9,
               .refcount_order = 5 },
    .order = 5, .journal_areas = 3,
  };
  struct fault f = { 0 };

  memset (w, 0, sizeof *w);
  w->next_id = 1000;
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  w->d = open_verify (w->io, true, verify);
  w->disks[0].there = true;
  w->disks[0].nr = MAX_CLUSTERS;
}

static void
begin (struct world *w)
{
  begin_verify (w, true);
}

/* --- Comparing ------------------------------------------------------------- */

static void
compare_disk (struct dedup_pool *d, const struct disk *m)
{
  uint8_t *buf = malloc (m->nr * CLUSTER), want[CLUSTER];

  assert_int_equal (dedup_read (d, m->root, buf, 0, m->nr * CLUSTER), 0);
  for (uint64_t i = 0; i < m->nr; i++) {
    fill (want, m->ids[i]);
    if (memcmp (buf + i * CLUSTER, want, CLUSTER) != 0)
      fail_msg ("disk \"%s\", cluster %llu: not %llx", m->name,
                (unsigned long long) i, (unsigned long long) m->ids[i]);
  }
  free (buf);
}

/* Finds the roots of all disks by their names; there are no others. */
static void
find_disks (struct world *w, struct dedup_pool *d)
{
  struct dedup_disk_info *v;
  size_t nr, there = 0;
  struct fault f;

  assert_int_equal (dedup_disk_list (d, &v, &nr), 0);
  for (size_t i = 1; i < NR_DISKS; i++) {
    struct disk *m = &w->disks[i];

    if (!m->there)
      continue;
    there++;
    f = (struct fault) { 0 };
    if (dedup_disk_find (d, m->name, &m->root, &f) < 0)
      fail_msg ("%s", f.msg);
    for (size_t k = 0; k < nr; k++)
      if (v[k].root == m->root) {
        assert_int_equal (v[k].size, m->nr * CLUSTER);
        assert_int_equal (v[k].writable, !m->snapshot);
      }
  }
  assert_int_equal (nr, there);
  dedup_disk_list_free (v, nr);
}

static void
compare_all (struct world *w, struct dedup_pool *d)
{
  find_disks (w, d);
  for (size_t i = 0; i < NR_DISKS; i++)
    if (w->disks[i].there)
      compare_disk (d, &w->disks[i]);
}

static void
report (void *opaque, bool is_leak, const char *line)
{
  (void) opaque;
  print_message ("%s: %s\n", is_leak ? "leak" : "problem", line);
}

/* Checks the image as it is, without a replay. */
static void
check_image (struct world *w, bool clean)
{
  struct qcow2_check_params p = { .problem = report };
  struct dedup_check_result r;
  struct fault f = { 0 };
  struct dedup_pool *d = open_pool (w->io, false);
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  assert_int_equal (s.needs_recovery, !clean);
  if (clean) {
    if (dedup_check (d, &p, &r, &f) < 0)
      fail_msg ("check: %s", f.msg);
    assert_int_equal (r.image.corruptions, 0);
    assert_int_equal (r.image.leaks, 0);
    assert_int_equal (r.image.errors, 0);
    assert_int_equal (r.store_errors, 0);
  }
  compare_all (w, d);
  dedup_free (d);
}

/* --- Operations ------------------------------------------------------------ */

static struct disk *
some_disk (struct world *w, bool writable)
{
  struct disk *m;

  do
    m = &w->disks[rnd (NR_DISKS)];
  while (!m->there || (writable && m->snapshot));
  return m;
}

static struct disk *
free_slot (struct world *w)
{
  for (size_t i = 1; i < NR_DISKS; i++)
    if (!w->disks[i].there)
      return &w->disks[i];
  return NULL;
}

static void
do_write (struct world *w)
{
  struct disk *m = some_disk (w, true);
  uint64_t first = rnd (m->nr), nr = 1 + rnd (MIN_OF (m->nr - first, 40));
  uint8_t *buf = malloc (nr * CLUSTER);

  for (uint64_t i = 0; i < nr; i++) {
    m->ids[first + i] = rnd (3) ? 1 + rnd (60) : rnd (8) ? w->next_id++ : 0;
    fill (buf + i * CLUSTER, m->ids[first + i]);
  }
  assert_int_equal (dedup_write (w->d, m->root, buf, first, nr), 0);
  free (buf);
}

static void
do_trim (struct world *w)
{
  struct disk *m = some_disk (w, true);
  uint64_t first = rnd (m->nr), nr = 1 + rnd (m->nr - first);

  assert_int_equal (dedup_unmap (w->d, m->root, first, nr,
                                 rnd (2) ? DEDUP_TRIM : DEDUP_ZERO), 0);
  memset (m->ids + first, 0, nr * sizeof m->ids[0]);
}

static void
new_name (struct world *w, struct disk *m)
{
  snprintf (m->name, sizeof m->name, m->snapshot ? "x@s%u" : "disk-%u",
            (unsigned) w->next_name++);
}

static void
do_create (struct world *w)
{
  struct disk *m = free_slot (w);
  struct fault f = { 0 };

  if (m == NULL)
    return;
  *m = (struct disk) { .there = true, .nr = 1 + rnd (MAX_CLUSTERS) };
  new_name (w, m);
  if (dedup_disk_create (w->d, m->name, m->nr * CLUSTER, &m->root, &f) < 0)
    fail_msg ("create: %s", f.msg);
}

static void
do_clone (struct world *w)
{
  struct disk *m = free_slot (w), *from = some_disk (w, false);
  struct fault f = { 0 };

  if (m == NULL)
    return;
  *m = *from;
  m->snapshot = rnd (3) == 0;
  new_name (w, m);
  if (dedup_disk_clone (w->d, from->root, m->name, !m->snapshot, &m->root,
                        &f) < 0)
    fail_msg ("clone: %s", f.msg);
}

static void
do_reset (struct world *w)
{
  struct disk *m = some_disk (w, true), *from = some_disk (w, false);
  struct fault f = { 0 };

  if (m == from || m == &w->disks[0])
    return;
  m->nr = from->nr;
  memcpy (m->ids, from->ids, sizeof m->ids);
  if (dedup_disk_reset (w->d, m->root, from->root, &f) < 0)
    fail_msg ("reset: %s", f.msg);
}

static void
do_rename (struct world *w)
{
  struct disk *m = some_disk (w, false);
  struct fault f = { 0 };

  if (m == &w->disks[0])
    return;
  new_name (w, m);
  if (dedup_disk_rename (w->d, m->root, m->name, &f) < 0)
    fail_msg ("rename: %s", f.msg);
}

static void
do_resize (struct world *w)
{
  struct disk *m = some_disk (w, true);
  const uint64_t nr = 1 + rnd (MAX_CLUSTERS);
  struct fault f = { 0 };

  if (m == &w->disks[0])
    return;
  if (nr < m->nr) {
    assert_int_equal (dedup_unmap (w->d, m->root, nr, m->nr - nr, DEDUP_TRIM),
                      0);
    memset (m->ids + nr, 0, (m->nr - nr) * sizeof m->ids[0]);
  }
  m->nr = nr;
  if (dedup_disk_resize (w->d, m->root, nr * CLUSTER, &f) < 0)
    fail_msg ("resize: %s", f.msg);
}

static void
do_delete (struct world *w)
{
  struct disk *m = some_disk (w, false);
  struct fault f = { 0 };

  if (m == &w->disks[0])
    return;
  m->there = false;
  if (dedup_disk_delete (w->d, m->root, &f) < 0)
    fail_msg ("delete: %s", f.msg);
}

static void
some_jobs (struct world *w)
{
  unsigned urgent, due = dedup_due (w->d, &urgent);

  for (unsigned job = 1; job <= DEDUP_JOB_DISKS; job <<= 1)
    if ((rnd (2) ? due : urgent) & job)
      assert_int_equal (dedup_run (w->d, (enum dedup_job) job), 0);
}

/* Ends the session: a close with all work done, a close with work left, or
 * neither. */
static void
do_reopen (struct world *w)
{
  const unsigned how = (unsigned) rnd (3);
  bool clean;

  if (how == 0)
    assert_int_equal (dedup_disks_settle (w->d), 0);
  clean = how < 2 && !dedup_disks_pending (w->d);
  if (how < 2)
    assert_int_equal (dedup_finish (w->d), 0);
  else
    assert_int_equal (dedup_flush (w->d), 0);
  dedup_free (w->d);
  if (how < 2)
    check_image (w, clean);
  w->d = open_pool (w->io, true);
  compare_all (w, w->d);
}

static void
do_something (struct world *w)
{
  switch (rnd (24)) {
  case 0: do_create (w); break;
  case 1: case 2: do_clone (w); break;
  case 3: do_reset (w); break;
  case 4: do_rename (w); break;
  case 5: do_resize (w); break;
  case 6: case 7: do_delete (w); break;
  case 8: do_trim (w); break;
  case 9: case 10: some_jobs (w); break;
  case 11: if (rnd (4) == 0) do_reopen (w); break;
  default: do_write (w); break;
  }
}

static void
test_disks_equal_their_model (void **state)
{
  const uint64_t nr = number ("POOL_TEST_OPS", 3000);
  static struct world w;

  (void) state;
  rng = number ("POOL_TEST_SEED", 0x9e3779b97f4a7c15u);
  print_message ("POOL_TEST_SEED=%llu\n", (unsigned long long) rng);
  begin (&w);
  for (uint64_t i = 0; i < nr; i++) {
    do_something (&w);
    if (i % 50 == 0)
      compare_all (&w, w.d);
  }
  assert_int_equal (dedup_disks_settle (w.d), 0);
  assert_false (dedup_disks_pending (w.d));
  assert_int_equal (dedup_finish (w.d), 0);
  dedup_free (w.d);
  check_image (&w, true);
  io_close (w.io);
}

static void
test_names_are_checked (void **state)
{
  static const char *const good[] = { "a", "vm-1", ("B\xc3\xbc" "ro"), "#1", "." };
  static const char *const bad[] = { "", "a/b", "a@b", "a\nb", "\xff", "\xc3",
                                     "\xed\xa0\x80", "\xc2\x85" };
  char longest[257];
  struct fault f;

  (void) state;
  memset (longest, 'x', sizeof longest);
  longest[255] = '\0';
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    assert_int_equal (dedup_disk_check_name (good[i], false, &f), 0);
  assert_int_equal (dedup_disk_check_name (longest, false, &f), 0);
  longest[255] = 'x';
  longest[256] = '\0';
  assert_int_equal (dedup_disk_check_name (longest, false, &f), -EINVAL);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_int_equal (dedup_disk_check_name (bad[i], false, &f), -EINVAL);
  assert_int_equal (dedup_disk_check_name ("vm@monday", true, &f), 0);
  assert_int_equal (dedup_disk_check_name ("vm", true, &f), -EINVAL);
  assert_int_equal (dedup_disk_check_name ("vm@", true, &f), -EINVAL);
  assert_int_equal (dedup_disk_check_name ("@a", true, &f), -EINVAL);
  assert_int_equal (dedup_disk_check_name ("vm@a@b", true, &f), -EINVAL);
}

static void
expect (int r, int want)
{
  if (r != want)
    fail_msg ("%d instead of %d", r, want);
}

static void
test_what_cannot_be_is_refused (void **state)
{
  struct fault f = { 0 };
  static struct world w;
  unsigned a, b;

  (void) state;
  begin (&w);
  expect (dedup_disk_create (w.d, "a", 0, &a, &f), -EINVAL);
  expect (dedup_disk_create (w.d, "a", 100, &a, &f), -EINVAL);
  expect (dedup_disk_create (w.d, "a", UINT64_C (1) << 40, &a, &f), -EINVAL);
  expect (dedup_disk_create (w.d, "a", 4 * CLUSTER, &a, &f), 0);
  expect (dedup_disk_create (w.d, "a", 4 * CLUSTER, &b, &f), -EEXIST);
  expect (dedup_disk_clone (w.d, 99, "b", true, &b, &f), -ENOENT);
  expect (dedup_disk_clone (w.d, a, "a", true, &b, &f), -EEXIST);
  expect (dedup_disk_clone (w.d, a, "a@x", false, &b, &f), 0);
  expect (dedup_disk_reset (w.d, b, a, &f), -EINVAL);       /* a snapshot */
  expect (dedup_disk_reset (w.d, a, a, &f), -EINVAL);
  expect (dedup_disk_delete (w.d, 0, &f), -EINVAL);
  expect (dedup_disk_delete (w.d, b, &f), 0);
  expect (dedup_disk_delete (w.d, b, &f), -ENOENT);
  expect (dedup_disk_clone (w.d, a, "a@x", false, &b, &f), 0);
  expect (dedup_disks_settle (w.d), 0);
  expect (dedup_finish (w.d), 0);
  dedup_free (w.d);
  w.d = open_pool (w.io, false);
  expect (dedup_disk_find (w.d, "a", &a, &f), 0);
  expect (dedup_disk_create (w.d, "c", 4 * CLUSTER, &b, &f), -EROFS);
  dedup_free (w.d);
  io_close (w.io);
}

/* A deleted disk that is not freed yet has no name: another disk may have it, in
 * the next session as well. */
static void
test_a_name_is_free_at_once (void **state)
{
  uint8_t buf[CLUSTER];
  struct fault f = { 0 };
  static struct world w;
  unsigned a, b;

  (void) state;
  begin (&w);
  fill (buf, 7);
  expect (dedup_disk_create (w.d, "a", 4 * CLUSTER, &a, &f), 0);
  expect (dedup_write (w.d, a, buf, 1, 1), 0);
  expect (dedup_disk_delete (w.d, a, &f), 0);
  expect (dedup_disk_create (w.d, "a", 4 * CLUSTER, &b, &f), 0);
  assert_true (dedup_disks_pending (w.d));
  expect (dedup_finish (w.d), 0);
  dedup_free (w.d);
  w.d = open_pool (w.io, true);
  assert_true (dedup_disks_pending (w.d));
  expect (dedup_disk_find (w.d, "a", &b, &f), 0);
  expect (dedup_write (w.d, b, buf, 2, 1), 0);
  expect (dedup_disks_settle (w.d), 0);
  expect (dedup_finish (w.d), 0);
  dedup_free (w.d);
  io_close (w.io);
}

/* The last checkpoint lets go of the tables that were freed.  With an exact index
 * that once set bit 48 again. */
static void
test_a_close_without_verify_is_clean (void **state)
{
  struct fault f = { 0 };
  struct dedup_stats s;
  static struct world w;
  unsigned a, b;

  (void) state;
  begin_verify (&w, false);
  expect (dedup_disk_create (w.d, "a", 4 * CLUSTER, &a, &f), 0);
  expect (dedup_disk_clone (w.d, a, "b", true, &b, &f), 0);
  expect (dedup_disk_delete (w.d, b, &f), 0);
  expect (dedup_disks_settle (w.d), 0);
  expect (dedup_finish (w.d), 0);
  dedup_get_stats (w.d, &s);
  assert_false (s.needs_recovery);
  dedup_free (w.d);
  w.d = open_verify (w.io, false, false);
  dedup_get_stats (w.d, &s);
  assert_false (s.needs_recovery);
  dedup_free (w.d);
  io_close (w.io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_name_is_free_at_once),
    cmocka_unit_test (test_names_are_checked),
    cmocka_unit_test (test_what_cannot_be_is_refused),
    cmocka_unit_test (test_a_close_without_verify_is_clean),
    cmocka_unit_test (test_disks_equal_their_model),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
