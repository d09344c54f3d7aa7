/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests of defragmentation: which units readers mark, which clusters move,
 * what happens meanwhile, and what happens if space or a readable cluster is
 * missing.
 *
 * The disk is scattered by rewriting all of it in a random order.  Contents
 * are compared with a plain array after each test, when the image is open, and
 * again when it was closed and checked.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "defragment.h"
#include "loop.h"

#define CLUSTER 4096
#define MIB (1u << 20)
#define UNITS 8                 /* of a MiB */
#define NR (UNITS * MIB / CLUSTER)
#define PER_UNIT (MIB / CLUSTER)

static struct io_store *io;
static struct io_ops ops;       /* of the store below, changed by tests */
static struct dedup_pool *pool;
static struct srv_disk disk;
static struct srv_defragment job;
static struct srv_space space;
static uint64_t want[NR];       /* a cluster's contents: a number, 0: zeroes */
static uint64_t next_number;
static bool dedup;

/* What the byte store does, by test; returns as io_faulty_cb. */
static int (*trouble) (enum io_call call, uint64_t host_off, uint64_t len);
static uint64_t host_left, host_size;   /* 0: the host does not tell */

/* --- A world ------------------------------------------------------------ */

static int
ask (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return trouble ? trouble (call, host_off, len) : 0;
}

static bool
tell_space (struct io_store *s, uint64_t *left, uint64_t *all)
{
  *left = host_left;
  *all = host_size;
  return host_size > 0;
}

static void
open_session (bool writable)
{
  struct dedup_open_params p = {
    .path = "scattered", .writable = writable, .dedup = dedup, .verify = true,
    .max_incarnations = 0, .cache_bytes = 1 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (io, &p, &pool, &f) < 0)
    fail_msg ("%s", f.msg);
  srv_disk_init (&disk, pool, QCOW2_ROOT_ACTIVE, writable, &space);
  assert_int_equal (srv_scattered_init (&disk.scattered, pool), 0);
  job = (struct srv_defragment) { .disk = &disk };
  while (writable && dedup_due (pool, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (pool, DEDUP_JOB_SCAN), 0);
}

static void
close_session (void)
{
  srv_disk_destroy (&disk);
  dedup_free (pool);
}

static void
make_world (uint64_t device_bytes, bool with_dedup)
{
  struct qcow2_create_params p = { .virtual_size = UNITS * MIB,
                                   .cluster_bits = 12, .refcount_order = 4 };
  struct io_store *mem;
  struct fault f = { 0 };

  trouble = NULL;
  host_left = host_size = 0;
  dedup = with_dedup;
  memset (want, 0, sizeof want);
  assert_int_equal (device_bytes ? io_memory_new_device (device_bytes, 0, &mem)
                    : io_memory_new (0, &mem), 0);
  ops = *mem->ops;
  ops.host_space = tell_space;
  mem->ops = &ops;
  assert_int_equal (io_faulty_new (mem, ask, NULL, &io), 0);
  if (qcow2_create (io, &p, &f) < 0)
    fail_msg ("%s", f.msg);
  open_session (true);
}

static void
compare_all (void)
{
  static uint64_t words[NR][CLUSTER / 8];
  size_t i, k;

  assert_int_equal (srv_pread (&disk, words, 0, UNITS * MIB), 0);
  for (i = 0; i < NR; i++)
    for (k = 0; k < CLUSTER / 8; k++)
      if (words[i][k] != (want[i] ? want[i] + k : 0))
        fail_msg ("cluster %zu holds %lu", i, (unsigned long) words[i][k]);
}

static void
print_problem (void *opaque, bool is_leak, const char *line)
{
  print_error ("%s: %s\n", is_leak ? "leak" : "problem", line);
}

/* Closes the disk, checks the image, and reads it again. */
static void
end_world (void)
{
  struct qcow2_check_params p = { .problem = print_problem };
  struct dedup_check_result r;
  struct fault f = { 0 };

  trouble = NULL;
  compare_all ();
  assert_int_equal (dedup_finish (pool), 0);
  close_session ();
  open_session (false);
  compare_all ();
  assert_int_equal (dedup_check (pool, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.image.errors +
                    r.store_errors, 0);
  close_session ();
  io_close (io);
}

/* --- Work --------------------------------------------------------------- */

static void
put (size_t idx, uint64_t number)
{
  uint64_t words[CLUSTER / 8], k;

  for (k = 0; k < CLUSTER / 8; k++)
    words[k] = number + k;
  want[idx] = number;
  assert_int_equal (srv_pwrite (&disk, words, idx * CLUSTER, CLUSTER, false),
                    0);
}

static uint64_t
new_number (void)
{
  return ++next_number << 20;
}

/* As often as it takes for all that was freed to be usable. */
static void
commit (void)
{
  int i;

  for (i = 0; i < 4; i++)
    assert_int_equal (dedup_run (pool, DEDUP_JOB_COMMIT), 0);
}

/* Writes new data to all clusters from FIRST on, in a random order. */
static void
scatter (size_t first, size_t nr)
{
  static size_t order[NR];
  static unsigned seed = 3;
  size_t i, k, t;

  for (i = 0; i < nr; i++)
    order[i] = first + i;
  for (i = nr; i > 1; i--) {
    k = (size_t) rand_r (&seed) % i;
    t = order[k];
    order[k] = order[i - 1];
    order[i - 1] = t;
  }
  for (i = 0; i < nr; i++)
    put (order[i], new_number ());
  commit ();
}

static uint64_t
place (size_t idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (pool), QCOW2_ROOT_ACTIVE,
                               idx * CLUSTER, CLUSTER, &e, 1), 1);
  return e.kind == QCOW2_DATA ? e.host_off / CLUSTER : 0;
}

static size_t
runs (size_t first, size_t nr)
{
  size_t i, n = 1;

  for (i = first + 1; i < first + nr; i++)
    n += place (i) != place (i - 1) + 1;
  return n;
}

static void
read_all_in_sequence (uint32_t request)
{
  static char buf[MIB];
  uint64_t off;

  for (off = 0; off < UNITS * MIB; off += request)
    assert_int_equal (srv_pread (&disk, buf, off, request), 0);
}

static void
mark_all (void)
{
  size_t i;

  for (i = 0; i < UNITS; i++)
    srv_scattered_mark (&disk.scattered, i);
}

/* Does what there is to do; how many pieces it looked at. */
static unsigned
defragment (void)
{
  unsigned pieces = 0;
  uint64_t before;
  int r;

  do {
    before = job.done;
    r = srv_defragment_step (&job);
    pieces += job.done > before;
    assert_true (pieces < 10000);
  } while (r == 1);
  assert_int_equal (r, 0);
  commit ();
  return pieces;
}

static uint64_t
nr_moved (void)
{
  struct dedup_stats s;

  dedup_get_stats (pool, &s);
  return s.clusters_moved;
}

/* --- What is marked ----------------------------------------------------- */

static void
what_is_read_in_sequence_is_defragmented (void **state)
{
  struct dedup_stats s;

  make_world (0, true);
  scatter (0, NR);
  assert_true (runs (0, NR) > NR / 2);
  read_all_in_sequence (128 << 10);
  assert_int_equal (disk.scattered.nr_marked, UNITS);
  dedup_get_stats (pool, &s);
  assert_int_equal (s.stored, NR);
  assert_int_equal (defragment (), UNITS);
  assert_int_equal (nr_moved (), NR);
  dedup_get_stats (pool, &s);
  assert_int_equal (s.stored, NR);      /* what clients wrote */
  assert_int_equal (s.pieces_moved, UNITS);
  assert_true (runs (0, NR) <= UNITS);
  assert_int_equal (disk.scattered.nr_marked, 0);
  end_world ();
}

static void
what_was_moved_is_not_marked_again (void **state)
{
  make_world (0, true);
  scatter (0, NR);
  read_all_in_sequence (128 << 10);
  defragment ();
  read_all_in_sequence (128 << 10);
  assert_int_equal (disk.scattered.nr_marked, 0);
  assert_int_equal (defragment (), 0);
  scatter (2 * PER_UNIT, PER_UNIT);
  read_all_in_sequence (128 << 10);
  assert_int_equal (disk.scattered.nr_marked, 1);
  assert_true (srv_scattered_is_marked (&disk.scattered, 2));
  defragment ();
  assert_int_equal (nr_moved (), NR + PER_UNIT);
  end_world ();
}

static void
what_lies_in_sequence_is_not_marked (void **state)
{
  size_t i;

  make_world (0, true);
  for (i = 0; i < NR; i++)
    put (i, new_number ());
  read_all_in_sequence (MIB);
  assert_int_equal (disk.scattered.nr_marked, 0);
  /* Nor are holes what makes a reader slow. */
  for (i = 0; i < NR; i += 2) {
    assert_int_equal (srv_trim (&disk, i * CLUSTER, CLUSTER, false), 0);
    want[i] = 0;
  }
  defragment ();
  assert_int_equal (nr_moved (), 0);
  end_world ();
}

static void
small_and_random_readers_mark_nothing (void **state)
{
  static char buf[32 << 10];
  unsigned seed = 11, i;

  make_world (0, true);
  scatter (0, NR);
  read_all_in_sequence (8 << 10);
  for (i = 0; i < 20000; i++)
    assert_int_equal (srv_pread (&disk, buf, (uint64_t) rand_r (&seed) % NR *
                                 CLUSTER, CLUSTER), 0);
  /* Larger ones, each in another unit than the one before. */
  for (i = 0; i < 2000; i++)
    assert_int_equal (srv_pread (&disk, buf, (i * 5 % UNITS) * MIB +
                                 (i * 7 % 32) * sizeof buf, sizeof buf), 0);
  assert_int_equal (disk.scattered.nr_marked, 0);
  end_world ();
}

static void
without_marks_nothing_is_done (void **state)
{
  make_world (0, true);
  scatter (0, NR);
  srv_scattered_destroy (&disk.scattered);   /* defragment=off */
  read_all_in_sequence (MIB);
  assert_int_equal (nr_moved (), 0);
  assert_int_equal (srv_scattered_init (&disk.scattered, pool), 0);
  assert_int_equal (defragment (), 0);
  end_world ();
}

static unsigned nr_lines;

static void
count_line (void *opaque, enum log_level level, const char *line)
{
  nr_lines += strstr (line, "defragmented: 8 pieces, 8388608 bytes; 0 ") != NULL;
}

/* The loop runs a step only while one is due. */
static void
one_line_of_the_log_tells_what_was_done (void **state)
{
  const struct log_sink log = { .write = count_line };

  make_world (0, true);
  scatter (0, NR);
  job.log = &log;
  job.path = "scattered";
  mark_all ();
  nr_lines = 0;
  while (srv_defragment_is_due (&job))
    assert_true (srv_defragment_step (&job) >= 0);
  assert_int_equal (nr_lines, 1);
  commit ();
  end_world ();
}

static void
marks_are_taken_once_each_all_around (void **state)
{
  struct srv_scattered *g = &disk.scattered;
  uint64_t unit;

  make_world (0, true);
  srv_scattered_mark (g, UNITS);        /* past the end: nothing */
  srv_scattered_mark (g, UNITS - 1);
  srv_scattered_mark (g, 4);
  srv_scattered_mark (g, 4);
  assert_int_equal (g->nr_marked, 2);
  assert_true (srv_scattered_take (g, &unit) && unit == 4);
  srv_scattered_mark (g, 3);
  assert_true (srv_scattered_take (g, &unit) && unit == UNITS - 1);
  assert_true (srv_scattered_take (g, &unit) && unit == 3);
  assert_false (srv_scattered_take (g, &unit));
  assert_int_equal (g->nr_marked, 0);
  end_world ();
}

/* A unit is a cluster at least, and there is a bound on their number. */
static void
marks_take_bounded_memory (void **state)
{
  static const unsigned bits[] = { 9, 16, 21 };
  struct qcow2_create_params p = { .refcount_order = 4 };
  struct dedup_open_params op = { .path = "large", .cache_bytes = 1 << 20 };
  struct srv_scattered g;
  struct dedup_pool *large;
  struct io_store *mem;
  struct fault f = { 0 };
  size_t i;

  for (i = 0; i < 3; i++) {
    p.cluster_bits = bits[i];
    p.virtual_size = bits[i] == 16 ? UINT64_C (1) << 46 : 64 * MIB;
    assert_int_equal (io_memory_new (0, &mem), 0);
    if (qcow2_create (mem, &p, &f) < 0 || dedup_open (mem, &op, &large, &f) < 0)
      fail_msg ("%s", f.msg);
    assert_int_equal (srv_scattered_init (&g, large), 0);
    assert_true (g.unit_bits >= bits[i] && g.unit_bits >= 20);
    assert_true (g.nr_units <= SRV_SCATTERED_MAX_UNITS);
    assert_true (g.nr_units << g.unit_bits >= p.virtual_size);
    srv_scattered_mark (&g, g.nr_units - 1);
    assert_int_equal (g.nr_marked, 1);
    srv_scattered_destroy (&g);
    dedup_free (large);
    io_close (mem);
  }
}

/* --- What moves --------------------------------------------------------- */

/* Every second cluster of the first half has the bytes of one in the second.
 */
static void
shared_clusters_stay (void **state)
{
  static uint64_t before[NR];
  struct dedup_stats s;
  uint64_t stored;
  size_t i;

  make_world (0, true);
  scatter (0, NR);
  for (i = 0; i < NR / 2; i += 2)
    put (NR / 2 + i, want[i]);
  commit ();
  for (i = 0; i < NR; i++)
    before[i] = place (i);
  dedup_get_stats (pool, &s);
  stored = s.stored;
  read_all_in_sequence (MIB);
  defragment ();
  for (i = 0; i < NR; i++)
    assert_int_equal (place (i), before[i]);
  dedup_get_stats (pool, &s);
  assert_int_equal (s.stored, stored);
  /* Nor do those between them move: there would be as many runs. */
  assert_int_equal (s.clusters_moved, 0);
  end_world ();
}

/* A backup that reads shared data each night must not make a clean image one
 * that needs recovery. */
static void
a_clean_image_of_shared_clusters_is_not_touched (void **state)
{
  size_t i;

  make_world (0, true);
  scatter (0, NR / 2);
  for (i = 0; i < NR / 2; i++)
    put (NR / 2 + i, want[i]);
  assert_int_equal (dedup_finish (pool), 0);
  close_session ();
  open_session (true);
  read_all_in_sequence (MIB);
  assert_true (disk.scattered.nr_marked > 0);
  while (srv_defragment_step (&job) == 1)
    ;
  assert_int_equal (nr_moved (), 0);
  assert_int_equal (dedup_due (pool, NULL) & DEDUP_JOB_CLEAN, 0);
  end_world ();
}

/* With few shared ones among them, the others move. */
static void
clusters_between_shared_ones_move (void **state)
{
  static uint64_t before[NR];
  size_t i;

  make_world (0, true);
  scatter (0, NR);
  for (i = 0; i < NR / 2; i += 16)
    put (NR / 2 + i, want[i]);
  commit ();
  for (i = 0; i < NR; i++)
    before[i] = place (i);
  read_all_in_sequence (MIB);
  defragment ();
  for (i = 0; i < NR; i++)
    assert_true ((place (i) == before[i]) == (i % 16 == 0));
  assert_int_equal (nr_moved (), NR - NR / 16);
  end_world ();
}

/* Holes between clusters are left out. */
static void
clusters_between_holes_move (void **state)
{
  size_t i;

  make_world (0, true);
  scatter (0, NR);
  for (i = 0; i < NR; i++)
    if (i % 4) {
      assert_int_equal (srv_trim (&disk, i * CLUSTER, CLUSTER, false), 0);
      want[i] = 0;
    }
  commit ();
  read_all_in_sequence (MIB);
  defragment ();
  assert_int_equal (nr_moved (), NR / 4);
  for (i = 4; i < PER_UNIT; i += 4)
    assert_int_equal (place (i), place (i - 4) + 1);
  end_world ();
}

static void
without_deduplication_data_moves_too (void **state)
{
  make_world (0, false);
  scatter (0, NR);
  read_all_in_sequence (MIB);
  defragment ();
  assert_int_equal (nr_moved (), NR);
  end_world ();
}

/* The moved bytes are found by the index where they are now. */
static void
moved_data_is_shared_afterwards (void **state)
{
  struct dedup_stats s;
  uint64_t linked;
  size_t i;

  make_world (0, true);
  scatter (0, NR);
  read_all_in_sequence (MIB);
  defragment ();
  dedup_get_stats (pool, &s);
  linked = s.linked;
  for (i = 0; i < PER_UNIT; i++)
    put (i, want[PER_UNIT + i]);
  dedup_get_stats (pool, &s);
  assert_int_equal (s.linked - linked, PER_UNIT);
  end_world ();
}

/* --- While it moves ----------------------------------------------------- */

/* The first write of a whole piece is the moved data: write the same bytes to
 * another place of the disk then, which shares the old cluster. */
static int
share_meanwhile (enum io_call call, uint64_t host_off, uint64_t len)
{
  if (call == IO_PWRITE && len == MIB) {
    trouble = NULL;
    put (5 * PER_UNIT, want[17]);
  }
  return 0;
}

static void
a_cluster_that_is_shared_meanwhile_stays_for_the_other (void **state)
{
  uint64_t old;

  make_world (0, true);
  scatter (0, NR);
  old = place (17);
  trouble = share_meanwhile;
  assert_int_equal (srv_defragment_piece (&disk, 0, PER_UNIT), PER_UNIT);
  assert_null (trouble);
  assert_true (place (17) != old);
  assert_int_equal (place (5 * PER_UNIT), old);
  commit ();
  end_world ();
}

/* --- Where something is missing ----------------------------------------- */

static uint64_t bad_off;

static int
bad_sector (enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PREAD && host_off <= bad_off && bad_off - host_off < len
    ? -EIO : 0;
}

static void
a_piece_that_cannot_be_read_stays (void **state)
{
  make_world (0, true);
  scatter (0, NR);
  mark_all ();
  bad_off = place (3 * PER_UNIT + 5) * CLUSTER;
  trouble = bad_sector;
  defragment ();
  assert_int_equal (nr_moved (), NR - PER_UNIT);
  assert_int_equal (place (3 * PER_UNIT + 5), bad_off / CLUSTER);
  end_world ();
}

static int
no_space_for_data (enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PWRITE && len == MIB ? -ENOSPC : 0;
}

static uint64_t
in_use (void)
{
  struct qcow2_image *img = dedup_image (pool);
  LOCK_FOR_SCOPE (qcow2_lock (img));

  return qcow2_in_use_locked (img);
}

static void
a_host_without_space_changes_nothing (void **state)
{
  uint64_t used;
  size_t before;

  make_world (0, true);
  scatter (0, NR);
  before = runs (0, NR);
  used = in_use ();
  read_all_in_sequence (MIB);
  trouble = no_space_for_data;
  assert_int_equal (defragment (), UNITS);
  assert_int_equal (nr_moved (), 0);
  assert_int_equal (runs (0, NR), before);
  assert_int_equal (in_use (), used);   /* what was reserved is free again */
  end_world ();
}

static void
a_host_that_is_short_of_space_is_spared (void **state)
{
  make_world (0, true);
  scatter (0, NR);
  host_size = UINT64_C (1) << 40;
  host_left = UINT64_C (1) << 30;       /* less than that and a piece */
  mark_all ();
  assert_int_equal (defragment (), UNITS);
  assert_int_equal (nr_moved (), 0);
  host_left += MIB;
  mark_all ();
  defragment ();
  assert_int_equal (nr_moved (), NR);
  end_world ();
}

/* There are free clusters enough for all of a piece, but no run of them. */
static void
a_device_without_a_free_run_is_left (void **state)
{
  make_world (18 * MIB, true);
  scatter (0, NR);
  scatter (0, NR);
  mark_all ();
  defragment ();
  print_message ("%u of %u clusters of a small device moved\n",
                 (unsigned) nr_moved (), NR);
  assert_true (nr_moved () < NR);
  scatter (0, NR);                      /* and clients have space */
  end_world ();
}

static uint64_t
never (const void *opaque)
{
  return 0;
}

static struct srv_jobs jobs;

static void
start_job (void)
{
  if (!srv_jobs_has (&jobs, &srv_job_defragment))
    assert_int_equal (srv_jobs_start (&jobs, NULL, &srv_job_defragment, &job,
                                      NULL, true, NULL), 0);
}

static void
start_always (void *opaque, unsigned due, const struct srv_moment *m)
{
  start_job ();
}

static void
start_if_due (void *opaque, unsigned due, const struct srv_moment *m)
{
  if (m->idle && srv_defragment_is_due (&job))
    start_job ();
}

static struct srv_loop *
start_loop (struct srv_loop_params *p)
{
  struct srv_loop *loop;

  jobs = (struct srv_jobs) { .path = "scattered", .space = &space };
  srv_jobs_init (&jobs);
  p->pool = pool;
  assert_int_equal (srv_loop_start (p, &loop), 0);
  return loop;
}

static void
stop_loop (struct srv_loop *loop)
{
  srv_loop_stop (loop);
  srv_jobs_stop (&jobs);
  srv_jobs_destroy (&jobs);
}

static bool
is_clean (void)
{
  return !(dedup_due (pool, NULL) & DEDUP_JOB_CLEAN);
}

static int
no_reads (enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PREAD ? -EIO : 0;
}

/* A table of the index that cannot be read keeps the steps from running.  It must
 * not keep the image from becoming clean. */
static void
steps_that_cannot_run_keep_no_job_waiting (void **state)
{
  struct srv_loop_params p = {
    .path = "scattered", .space = &space, .last_change_ns = never,
    .jobs = &jobs, .start_jobs = start_always,
  };
  struct srv_loop *loop;
  unsigned i;

  make_world (0, true);
  for (i = 0; i < 6; i++) {
    scatter (0, NR);
    if (dedup_due (pool, NULL) & DEDUP_JOB_FREEZE)
      assert_int_equal (dedup_run (pool, DEDUP_JOB_FREEZE), 0);
  }
  assert_int_equal (dedup_finish (pool), 0);
  close_session ();
  open_session (true);
  put (0, new_number ());
  commit ();
  assert_true (dedup_due (pool, NULL) & DEDUP_JOB_FILTERS);
  assert_false (is_clean ());
  trouble = no_reads;
  loop = start_loop (&p);
  for (i = 0; i < 200 && !is_clean (); i++)
    usleep (50000);
  assert_true (is_clean ());
  assert_true (dedup_due (pool, NULL) & DEDUP_JOB_FILTERS);
  stop_loop (loop);
  end_world ();
}

static unsigned nr_header_writes;       /* atomic */

/* Commits take longer than steps here. */
static int
count_header_writes (enum io_call call, uint64_t host_off, uint64_t len)
{
  if (call == IO_SYNC)
    usleep (50000);
  if (call == IO_PWRITE && host_off < CLUSTER)
    __atomic_add_fetch (&nr_header_writes, 1, __ATOMIC_RELAXED);
  return 0;
}

/* A commit that the steps have made urgent is no reason to clean up between two
 * steps: bit 48 is set once and cleared once. */
static void
the_image_is_cleaned_once_after_all_steps (void **state)
{
  struct srv_loop_params p = {
    .path = "scattered", .space = &space, .last_change_ns = never,
    .jobs = &jobs, .start_jobs = start_if_due,
  };
  struct srv_loop *loop;
  unsigned i;

  make_world (0, true);
  scatter (0, NR);
  close_session ();             /* recovered: the index is not exact, so */
  open_session (true);          /* commits do not keep the gate open */
  mark_all ();
  nr_header_writes = 0;
  trouble = count_header_writes;
  loop = start_loop (&p);
  for (i = 0; i < 200 && !(nr_moved () == NR && is_clean ()); i++)
    usleep (50000);
  stop_loop (loop);
  assert_int_equal (nr_moved (), NR);
  assert_true (is_clean ());
  assert_int_equal (nr_header_writes, 2);
  end_world ();
}

/* The file of a disk that is rewritten and defragmented again and again stays
 * within a bound. */
static void
what_moved_leaves_space_that_is_used_again (void **state)
{
  unsigned i;

  make_world (0, true);
  for (i = 0; i < 20; i++) {
    scatter (0, NR);
    mark_all ();
    defragment ();
  }
  assert_int_equal (nr_moved (), 20 * NR);
  print_message ("%lu MiB\n", (unsigned long) (io_size (io) / MIB));
  assert_true (io_size (io) < 5 * UNITS * MIB);
  end_world ();
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (what_is_read_in_sequence_is_defragmented),
    cmocka_unit_test (what_was_moved_is_not_marked_again),
    cmocka_unit_test (what_lies_in_sequence_is_not_marked),
    cmocka_unit_test (small_and_random_readers_mark_nothing),
    cmocka_unit_test (without_marks_nothing_is_done),
    cmocka_unit_test (one_line_of_the_log_tells_what_was_done),
    cmocka_unit_test (marks_are_taken_once_each_all_around),
    cmocka_unit_test (marks_take_bounded_memory),
    cmocka_unit_test (shared_clusters_stay),
    cmocka_unit_test (a_clean_image_of_shared_clusters_is_not_touched),
    cmocka_unit_test (clusters_between_shared_ones_move),
    cmocka_unit_test (clusters_between_holes_move),
    cmocka_unit_test (without_deduplication_data_moves_too),
    cmocka_unit_test (moved_data_is_shared_afterwards),
    cmocka_unit_test (a_cluster_that_is_shared_meanwhile_stays_for_the_other),
    cmocka_unit_test (a_piece_that_cannot_be_read_stays),
    cmocka_unit_test (a_host_without_space_changes_nothing),
    cmocka_unit_test (a_host_that_is_short_of_space_is_spared),
    cmocka_unit_test (a_device_without_a_free_run_is_left),
    cmocka_unit_test (steps_that_cannot_run_keep_no_job_waiting),
    cmocka_unit_test (the_image_is_cleaned_once_after_all_steps),
    cmocka_unit_test (what_moved_leaves_space_that_is_used_again),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
