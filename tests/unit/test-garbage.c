/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that garbage, an anchored cluster with refcount 1, is freed only if no
 * L2 entry names it: refcounts may be wrong, and the data of a cluster that is
 * counted too low would be lost.
 *
 * The images are damaged byte by byte while they are closed, without the
 * program's code.  All of them have refcounts of 16 bits.
 */
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"

#define CLUSTER 4096
#define NR 1024                /* guest clusters: two L2 tables */
#define UNIQUE 64              /* guest clusters 0 to 63 have contents of theirs */
#define PER_TABLE (CLUSTER / 8)
#define MANY 150u              /* L2 tables: more than are read at once */
#define OFFSET UINT64_C (0x00fffffffffffe00)
#define COPIED (UINT64_C (1) << 63)

/* These have the same content, and so one host cluster with refcount 5. */
static const uint64_t shared[] = { 100, 200, 300, 600 };
#define NR_SHARED 4

struct world {
  struct io_store *below, *io;
  struct dedup_pool *d;
  struct log_sink sink;
  uint64_t want[NR];           /* number of each content; 0: zeroes */
  uint64_t next;
  uint64_t table[2];           /* where the L2 tables were at the last close */
  bool unreadable;             /* they are */
  unsigned table_reads;        /* since the open */
  unsigned nr_errors;          /* lines in the log */
  uint64_t full_from;          /* the host has no space from here; 0: it has */
};

static int
on_call (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  bool table = false;

  for (unsigned i = 0; i < 2; i++)
    table |= w->table[i] && host_off < w->table[i] + CLUSTER &&
      host_off + len > w->table[i];
  if (call == IO_PREAD && table) {
    w->table_reads++;
    return w->unreadable ? -EIO : 0;
  }
  return (call == IO_PWRITE || call == IO_ALLOCATE) && w->full_from > 0 &&
    host_off + len > w->full_from ? -ENOSPC : 0;
}

static void
count_error (void *opaque, enum log_level level, const char *line)
{
  struct world *w = opaque;

  w->nr_errors += level == LOG_ERROR;
}

/* --- The bytes of a closed image ---------------------------------------------- */

static uint64_t
get (struct world *w, uint64_t off)
{
  uint64_t v;

  assert_int_equal (io_pread (w->below, &v, 8, off), 0);
  return be64toh (v);
}

static void
put (struct world *w, uint64_t off, uint64_t v)
{
  v = htobe64 (v);
  assert_int_equal (io_pwrite (w->below, &v, 8, off), 0);
}

static uint64_t
l1_off (struct world *w)
{
  return get (w, 40);
}

static uint64_t
entry_off (struct world *w, uint64_t guest_idx)
{
  uint64_t l1e = get (w, l1_off (w) + guest_idx / PER_TABLE * 8);

  return (l1e & OFFSET) + guest_idx % PER_TABLE * 8;
}

static uint64_t
refcount_off (struct world *w, uint64_t host_idx)
{
  uint64_t block = get (w, get (w, 48) + host_idx / (CLUSTER / 2) * 8);

  return block + host_idx % (CLUSTER / 2) * 2;
}

static unsigned
refcount (struct world *w, uint64_t host_idx)
{
  uint16_t n;

  assert_int_equal (io_pread (w->below, &n, 2, refcount_off (w, host_idx)), 0);
  return be16toh (n);
}

static void
set_refcount (struct world *w, uint64_t host_idx, unsigned n)
{
  uint16_t v = htobe16 ((uint16_t) n);

  assert_int_equal (io_pwrite (w->below, &v, 2, refcount_off (w, host_idx)), 0);
}

static uint64_t
host_idx_of (struct world *w, uint64_t guest_idx)
{
  return (get (w, entry_off (w, guest_idx)) & OFFSET) / CLUSTER;
}

/* Drops a guest's only reference as a program does that does not know the
 * anchor; returns the cluster, which is garbage then. */
static uint64_t
make_garbage (struct world *w, uint64_t guest_idx)
{
  uint64_t host_idx = host_idx_of (w, guest_idx);

  assert_int_equal (refcount (w, host_idx), 2);
  put (w, entry_off (w, guest_idx), 0);
  set_refcount (w, host_idx, 1);
  w->want[guest_idx] = 0;
  return host_idx;
}

/* Makes the refcount of the shared cluster, which it returns, 1. */
static uint64_t
spoil (struct world *w)
{
  uint64_t host_idx = host_idx_of (w, shared[0]);

  assert_int_equal (refcount (w, host_idx), 1 + NR_SHARED);
  set_refcount (w, host_idx, 1);
  return host_idx;
}

/* --- Worlds ------------------------------------------------------------------- */

static void
open_disk (struct world *w, bool writable)
{
  struct dedup_open_params p = {
    .path = "test", .log = &w->sink, .writable = writable, .dedup = true,
    .verify = true, .max_incarnations = -1, .cache_bytes = 4 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  w->table_reads = 0;
}

static void
close_disk (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_give_back_all (w->d);
  dedup_free (w->d);
  w->d = NULL;
  for (uint64_t i = 0; i < 2; i++)
    w->table[i] = get (w, l1_off (w) + i * 8) & OFFSET;
}

static void
fill (uint8_t *buf, uint64_t id)
{
  for (unsigned i = 0; i < CLUSTER / 8; i++)
    memcpy (buf + i * 8, &id, 8);
}

static void
put_id (struct world *w, uint64_t guest_idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill (buf, id);
  assert_int_equal (dedup_write (w->d, 0, buf, guest_idx, 1), 0);
  w->want[guest_idx] = id;
}

static void
write_new (struct world *w, uint64_t first, uint64_t nr)
{
  for (uint64_t i = first; i < first + nr; i++)
    put_id (w, i, ++w->next);
}

static void
check_contents (struct world *w)
{
  uint8_t buf[CLUSTER], want[CLUSTER];

  for (uint64_t i = 0; i < NR; i++) {
    fill (want, w->want[i]);
    assert_int_equal (dedup_read (w->d, 0, buf, i * CLUSTER, CLUSTER), 0);
    if (memcmp (buf, want, CLUSTER) != 0)
      fail_msg ("guest cluster %u has other bytes", (unsigned) i);
  }
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

/* Leaves a closed image, whose free clusters are empty. */
static struct world *
new_world (struct io_store *below)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 10,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->sink = (struct log_sink) { count_error, w };
  w->below = below;
  assert_int_equal (io_faulty_new (w->below, on_call, w, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_disk (w, true);
  write_new (w, 0, UNIQUE);
  w->next++;
  for (unsigned i = 0; i < NR_SHARED; i++)
    put_id (w, shared[i], w->next);
  close_disk (w);
  open_disk (w, true);
  rest (w);
  close_disk (w);
  return w;
}

static int
setup (void **state)
{
  struct io_store *below;

  assert_int_equal (io_memory_new (0, &below), 0);
  *state = new_world (below);
  return 0;
}

/* A host that neither tells where it holds data nor takes space back. */
static int
setup_device (void **state)
{
  struct io_store *below;

  assert_int_equal (io_memory_new_device (64 << 20, 0x3c, &below), 0);
  *state = new_world (below);
  return 0;
}

/* The image checks clean, without garbage. */
static int
teardown (void **state)
{
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct world *w = *state;
  struct fault f = { 0 };

  open_disk (w, false);
  check_contents (w);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.image.errors +
                    r.store_errors, 0);
  assert_int_equal (r.image.garbage, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
  return 0;
}

/* --- Tests -------------------------------------------------------------------- */

/* Garbage is freed.  A cluster that four entries name is not, though its
 * refcount says the same: none of its places loses its bytes, however much is
 * written, in this session or the next; and one line in the log says so. */
static void
test_what_entries_name_is_no_garbage (void **state)
{
  struct world *w = *state;
  uint64_t garbage = make_garbage (w, 5), used = spoil (w);

  open_disk (w, true);
  rest (w);
  assert_int_equal (w->nr_errors, 1);
  check_contents (w);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 0);
  assert_int_equal (refcount (w, used), 1);

  open_disk (w, true);
  write_new (w, 700, 256);
  rest (w);
  write_new (w, 400, 100);
  write_new (w, 0, UNIQUE);
  rest (w);
  assert_int_equal (w->nr_errors, 2);
  check_contents (w);
  close_disk (w);
  assert_int_equal (refcount (w, used), 1);
  set_refcount (w, used, 1 + NR_SHARED);
}

/* Then it is not known if entries name it, and it is left to a session that
 * can read them. */
static void
test_nothing_is_freed_if_a_table_cannot_be_read (void **state)
{
  struct world *w = *state;
  uint64_t garbage = make_garbage (w, 5), used = spoil (w);

  open_disk (w, true);
  w->unreadable = true;
  rest (w);
  assert_true (w->table_reads > 0);
  w->unreadable = false;
  check_contents (w);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 1);
  assert_int_equal (refcount (w, used), 1);
  set_refcount (w, used, 1 + NR_SHARED);

  open_disk (w, true);
  rest (w);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 0);
  assert_int_equal (w->nr_errors, 0);
}

/* The session ends while there are candidates: they are left to the next. */
static void
test_a_close_before_that_leaves_garbage (void **state)
{
  struct world *w = *state;
  uint64_t garbage = make_garbage (w, 5);

  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 1);
  open_disk (w, true);
  rest (w);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 0);
}

static void
test_tables_are_not_read_where_there_is_no_garbage (void **state)
{
  struct world *w = *state;

  open_disk (w, true);
  rest (w);
  assert_int_equal (w->table_reads, 0);
  close_disk (w);
  make_garbage (w, 5);
  open_disk (w, true);
  rest (w);
  assert_int_equal (w->table_reads, 2);
  close_disk (w);
}

/* Suspects are of no interest there, but garbage is free space. */
static void
test_garbage_is_freed_on_a_device (void **state)
{
  struct world *w = *state;
  uint64_t garbage = make_garbage (w, 5), used = spoil (w);

  open_disk (w, true);
  write_new (w, 10, 1);
  rest (w);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_GIVE_BACK);
  check_contents (w);
  close_disk (w);
  assert_int_equal (refcount (w, garbage), 0);
  assert_int_equal (refcount (w, used), 1);
  assert_int_equal (w->nr_errors, 1);
  set_refcount (w, used, 1 + NR_SHARED);
}

/* Takes all clusters that are free in the file.  Returns how many runs. */
#define MAX_RUNS 256

static size_t
reserve_all (struct world *w, struct qcow2_run *runs)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  const uint64_t end = qcow2_frontier_locked (w->d->base.img);
  size_t n = 0;

  do
    assert_int_equal (qcow2_reserve_locked (w->d->base.img, 64, &runs[n]), 0);
  while (runs[n].host_idx < end && ++n < MAX_RUNS);
  assert_true (n < MAX_RUNS);
  qcow2_unreserve_locked (w->d->base.img, &runs[n]);
  return n;
}

/* No job has run yet, and the only clusters with space are garbage. */
static void
test_a_writer_without_space_finds_garbage (void **state)
{
  struct world *w = *state;
  struct qcow2_run runs[MAX_RUNS];
  uint64_t garbage = make_garbage (w, 5), used = spoil (w);
  size_t nr;

  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  nr = reserve_all (w, runs);
  w->full_from = (uint64_t) io_size (w->below);
  write_new (w, 50, 1);
  w->full_from = 0;
  lock_acquire (w->d->base.lock);
  while (nr-- > 0)
    qcow2_unreserve_locked (w->d->base.img, &runs[nr]);
  lock_release (w->d->base.lock);
  check_contents (w);
  close_disk (w);
  assert_int_equal (host_idx_of (w, 50), garbage);
  assert_int_equal (refcount (w, used), 1);
  set_refcount (w, used, 1 + NR_SHARED);
}

/* The entry of an L1 table has no COPIED, so a write copies its L2 table, and no
 * root has the old one any more.  The copy is in memory only. */
static void
test_a_table_that_was_copied_in_memory_is_looked_at (void **state)
{
  struct world *w = *state;
  uint64_t at = l1_off (w), used = spoil (w);

  put (w, entry_off (w, shared[3]), 0);
  w->want[shared[3]] = 0;
  put (w, at, get (w, at) & ~COPIED);
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  write_new (w, 20, 1);
  run_due (w, DEDUP_JOB_GIVE_BACK, 12);
  run_due (w, DEDUP_JOB_SCAN, 12);
  assert_int_equal (w->nr_errors, 1);
  rest (w);
  check_contents (w);
  close_disk (w);
  assert_int_equal (refcount (w, used), 1);
  set_refcount (w, used, NR_SHARED);
}

/* Clusters that one entry each names, in more tables than are read at once, are all
 * kept, though their refcounts say that they are garbage. */
static void
test_each_of_many_tables_is_looked_at (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = MANY * PER_TABLE * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 10,
  };
  struct world w = { .sink = { count_error, &w } };
  uint64_t at[MANY];
  uint8_t buf[CLUSTER], want[CLUSTER];
  struct fault f = { 0 };
  unsigned i;

  assert_int_equal (io_memory_new (0, &w.below), 0);
  w.io = w.below;
  assert_int_equal (dedup_create (w.io, &p, &f), 0);
  open_disk (&w, true);
  for (i = 0; i < MANY; i++) {
    fill (buf, 1000 + i);
    assert_int_equal (dedup_write (w.d, 0, buf, i * PER_TABLE, 1), 0);
  }
  close_disk (&w);
  for (i = 0; i < MANY; i++) {
    at[i] = host_idx_of (&w, i * PER_TABLE);
    assert_int_equal (refcount (&w, at[i]), 2);
    set_refcount (&w, at[i], 1);
  }
  open_disk (&w, true);
  rest (&w);
  assert_int_equal (w.nr_errors, 1);
  for (i = 0; i < MANY; i++) {  /* they take what is free by now */
    fill (buf, 5000 + i);
    assert_int_equal (dedup_write (w.d, 0, buf, i * PER_TABLE + 1, 1), 0);
  }
  for (i = 0; i < MANY; i++) {
    fill (want, 1000 + i);
    assert_int_equal (dedup_read (w.d, 0, buf, i * PER_TABLE * CLUSTER, CLUSTER),
                      0);
    assert_memory_equal (buf, want, CLUSTER);
  }
  close_disk (&w);
  for (i = 0; i < MANY; i++)
    assert_int_equal (refcount (&w, at[i]), 1);
  io_close (w.io);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_what_entries_name_is_no_garbage),
    TEST (test_nothing_is_freed_if_a_table_cannot_be_read),
    TEST (test_a_close_before_that_leaves_garbage),
    TEST (test_tables_are_not_read_where_there_is_no_garbage),
    cmocka_unit_test (test_each_of_many_tables_is_looked_at),
    cmocka_unit_test_setup_teardown (test_garbage_is_freed_on_a_device,
                                     setup_device, teardown),
    TEST (test_a_writer_without_space_finds_garbage),
    TEST (test_a_table_that_was_copied_in_memory_is_looked_at),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
