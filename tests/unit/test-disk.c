/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the dedup room as a whole, on a byte store in memory: data that was
 * written is read back, equal content is stored once, a reopened disk continues
 * where it was, and a crash at any write leaves a prefix of the operations.
 *
 * The seed of the random parts is printed; DISK_TEST_SEED takes it back.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "dedup.h"
#include "checked.h"

#define CLUSTER 4096
#define NR 512            /* guest clusters */
#define MAX_OPS 4000

static uint64_t rng;

static uint64_t
rnd (uint64_t n)
{
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return rng % n;
}

static uint64_t
first_seed (void)
{
  const char *s = getenv ("DISK_TEST_SEED");

  return s ? strtoull (s, NULL, 0) : 0x9e3779b97f4a7c15u;
}

/* Content ID: 0 is zeroes, others fill the cluster recognizably. */
static void
fill (uint8_t *p, uint64_t id)
{
  size_t i;
  uint64_t v;

  for (i = 0; i < CLUSTER / 8; i++) {
    v = id ? id * 0x100000001b3u + i * (id | 1) : 0;
    if (i == 0)
      v = id;
    memcpy (p + 8 * i, &v, 8);
  }
}

static uint64_t
identify (const uint8_t *p)
{
  uint8_t want[CLUSTER];
  uint64_t id;

  memcpy (&id, p, 8);
  fill (want, id);
  assert_memory_equal (p, want, CLUSTER);
  return id;
}

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("DISK_TEST_VERBOSE"))
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { print_line, NULL };

static struct dedup_pool *
open_disk (struct io_store *io, bool writable)
{
  struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20, .log = &sink,
  };
  struct fault f = { 0 };
  struct dedup_pool *d = NULL;

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static struct io_store *
create_disk (unsigned order, unsigned max_incarnations)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = order, .max_incarnations = max_incarnations,
    .journal_areas = 4,
  };
  struct fault f = { 0 };
  struct io_store *io;

  assert_int_equal (io_memory_new (0, &io), 0);
  if (dedup_create (io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  return io;
}

static void
report (void *opaque, bool is_leak, const char *line)
{
  print_message ("%s: %s\n", is_leak ? "leak" : "problem", line);
}

static void
check_clean_image (struct io_store *io, uint64_t *garbage)
{
  struct qcow2_check_params p = { .problem = report };
  struct dedup_check_result r;
  struct fault f = { 0 };
  struct dedup_pool *d = open_disk (io, false);
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  assert_true (s.has_store);
  assert_false (s.needs_recovery);
  if (dedup_check (d, &p, &r, &f) < 0)
    fail_msg ("check: %s", f.msg);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  assert_int_equal (r.store_errors, 0);
  if (garbage)
    *garbage = r.image.garbage;
  dedup_free (d);
}

static void
write_ids (struct dedup_pool *d, uint64_t idx, const uint64_t *ids, size_t nr)
{
  uint8_t *buf = malloc (nr * CLUSTER);
  size_t i;

  for (i = 0; i < nr; i++)
    fill (buf + i * CLUSTER, ids[i]);
  assert_int_equal (dedup_write (d, 0, buf, idx, nr), 0);
  free (buf);
}

static void
read_all (struct dedup_pool *d, uint64_t ids[NR])
{
  uint8_t *buf = malloc (NR * CLUSTER);
  size_t i;

  assert_int_equal (dedup_read (d, 0, buf, 0, NR * CLUSTER), 0);
  for (i = 0; i < NR; i++)
    ids[i] = identify (buf + i * CLUSTER);
  free (buf);
}

/* Run what is urgent, sometimes what is merely due. */
static void
background (struct dedup_pool *d, bool all)
{
  unsigned urgent, due = dedup_due (d, &urgent), job;

  for (job = 1; job <= DEDUP_JOB_MERGE; job <<= 1)
    if ((all ? due : urgent) & job)
      assert_int_equal (dedup_run (d, job), 0);
}

/* --- tests ---------------------------------------------------------------- */

static void
test_equal_content_is_stored_once (void **state)
{
  struct io_store *io = create_disk (0, 0);
  struct dedup_pool *d = open_disk (io, true);
  uint64_t ids[64], got[NR], i;
  struct dedup_stats s;

  for (i = 0; i < 64; i++)
    ids[i] = 1 + i % 16;
  write_ids (d, 0, ids, 64);
  write_ids (d, 100, ids, 64);
  dedup_get_stats (d, &s);
  assert_int_equal (s.stored, 16);
  assert_int_equal (s.linked, 112);
  read_all (d, got);
  for (i = 0; i < 64; i++) {
    assert_int_equal (got[i], ids[i]);
    assert_int_equal (got[100 + i], ids[i]);
  }
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  check_clean_image (io, NULL);
  d = open_disk (io, true);
  write_ids (d, 200, ids, 64);
  dedup_get_stats (d, &s);
  assert_int_equal (s.stored, 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  check_clean_image (io, NULL);
  io_close (io);
}

static void
test_unmapped_clusters_read_zero_and_are_freed (void **state)
{
  struct io_store *io = create_disk (0, 0);
  struct dedup_pool *d = open_disk (io, true);
  uint64_t ids[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, got[NR];
  size_t i;

  write_ids (d, 0, ids, 8);
  write_ids (d, 8, ids, 4);
  assert_int_equal (dedup_unmap (d, 0, 0, 4, DEDUP_TRIM), 0);
  assert_int_equal (dedup_unmap (d, 0, 4, 4, DEDUP_ZERO), 0);
  read_all (d, got);
  for (i = 0; i < 8; i++)
    assert_int_equal (got[i], 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (got[8 + i], 1 + i);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  check_clean_image (io, NULL);
  io_close (io);
}

/* --- a random workload, and its model ---------------------------------------- */

struct op {
  uint64_t idx, nr;
  uint64_t ids[16];
};

struct workload {
  struct op ops[MAX_OPS];
  size_t nr_ops;
  size_t done_at[MAX_OPS];     /* length of the log when it was completed */
  size_t flushed_at[MAX_OPS];  /* of the flush after it, SIZE_MAX: none */
};

static uint64_t next_id;

static void
random_op (struct op *op)
{
  size_t i;

  op->nr = 1 + rnd (16);
  op->idx = rnd (NR - op->nr);
  for (i = 0; i < op->nr; i++)
    switch (rnd (4)) {
    case 0: op->ids[i] = 0; break;
    case 1: op->ids[i] = 1 + rnd (60); break;
    default: op->ids[i] = 1000 + next_id++; break;
    }
  if (rnd (6) == 0)
    memset (op->ids, 0, sizeof op->ids);
}

static void
apply_op (uint64_t model[NR], const struct op *op)
{
  memcpy (model + op->idx, op->ids, op->nr * sizeof op->ids[0]);
}

static void
run_op (struct dedup_pool *d, const struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++)
    if (op->ids[i] != 0)
      break;
  if (i == op->nr && rnd (2))
    assert_int_equal (dedup_unmap (d, 0, op->idx, op->nr,
                                   rnd (2) ? DEDUP_TRIM : DEDUP_ZERO), 0);
  else
    write_ids (d, op->idx, op->ids, op->nr);
}

static void
test_random_work_matches_a_model (void **state)
{
  static const unsigned incarnations[] = { 0, 1, 3 };
  unsigned round;

  for (round = 0; round < 3; round++) {
    struct io_store *io = create_disk (5, incarnations[round]);
    struct dedup_pool *d = open_disk (io, true);
    uint64_t model[NR] = { 0 }, got[NR], garbage;
    struct dedup_stats s;
    struct op op;
    size_t i;

    for (i = 0; i < 3000; i++) {
      random_op (&op);
      run_op (d, &op);
      apply_op (model, &op);
      if (rnd (8) == 0)
        background (d, rnd (4) == 0);
      if (rnd (20) == 0)
        assert_int_equal (dedup_flush (d), 0);
      if (rnd (100) == 0) {
        read_all (d, got);
        assert_memory_equal (got, model, sizeof model);
      }
      if (rnd (400) == 0) {
        assert_int_equal (dedup_finish (d), 0);
        dedup_free (d);
        check_clean_image (io, NULL);
        d = open_disk (io, true);
      }
    }
    dedup_get_stats (d, &s);
    assert_true (s.nr_incarnations + s.nr_runs > 0);
    if (incarnations[round])
      assert_true (s.nr_incarnations <= incarnations[round]);
    assert_int_equal (dedup_finish (d), 0);
    dedup_free (d);
    check_clean_image (io, &garbage);
    assert_int_equal (garbage, 0);
    d = open_disk (io, false);
    read_all (d, got);
    assert_memory_equal (got, model, sizeof model);
    dedup_free (d);
    io_close (io);
  }
}

/* --- crashes --------------------------------------------------------------------- */

static size_t
log_length (struct io_store *rec)
{
  const struct io_record *log;

  return io_recording_log (rec, &log);
}

/* The image as it may stand after a crash at record K: all before the last
 * sync, and of the rest what chance wills. */
static struct io_store *
crash_state (struct io_store *base, struct io_store *rec, size_t k)
{
  const struct io_record *log;
  struct io_store *io;
  size_t nr = io_recording_log (rec, &log), synced = 0, i;
  unsigned lose = (unsigned) rnd (4);
  int64_t size = io_size (base);
  uint8_t *copy;

  assert_true (k <= nr);
  for (i = 0; i < k; i++)
    if (log[i].call == IO_SYNC)
      synced = i;
  assert_int_equal (io_memory_new ((uint64_t) size, &io), 0);
  copy = malloc ((size_t) size);
  assert_int_equal (io_pread (base, copy, (size_t) size, 0), 0);
  assert_int_equal (io_pwrite (io, copy, (size_t) size, 0), 0);
  free (copy);
  for (i = 0; i < k; i++) {
    if (i >= synced && lose && rnd (4) < lose)
      continue;
    if (log[i].call == IO_PWRITE)
      assert_int_equal (io_pwrite (io, log[i].data, log[i].len,
                                   log[i].host_off), 0);
    else if (log[i].call == IO_DISCARD)
      assert_int_equal (io_discard (io, log[i].host_off, log[i].len), 0);
    else if (log[i].call == IO_TRUNCATE)
      assert_int_equal (io_truncate (io, log[i].host_off), 0);
  }
  return io;
}

/* Is GOT the model after some prefix that has the flushed operations? */
static bool
is_prefix (const struct workload *w, const uint64_t got[NR], size_t k)
{
  uint64_t model[NR] = { 0 };
  size_t least = 0, most = 0, i;

  for (i = 0; i < w->nr_ops; i++) {
    if (w->flushed_at[i] <= k)
      least = i + 1;
    if (i == 0 || w->done_at[i - 1] < k)
      most = i + 1;
  }
  for (i = 0; ; i++) {
    if (i >= least && memcmp (got, model, sizeof model) == 0)
      return true;
    if (i == most)
      return false;
    apply_op (model, &w->ops[i]);
  }
}

static void
crash_once (struct io_store *base, struct io_store *rec,
            const struct workload *w, size_t k)
{
  struct io_store *io = crash_state (base, rec, k);
  struct dedup_pool *d;
  uint64_t got[NR], again[NR], ids[4] = { 5, 6, 777777, 7 };

  d = open_disk (io, false);
  read_all (d, got);
  dedup_free (d);
  if (!is_prefix (w, got, k))
    fail_msg ("crash at record %zu: no prefix", k);
  d = open_disk (io, true);
  read_all (d, again);
  assert_memory_equal (again, got, sizeof got);
  write_ids (d, 17, ids, 4);
  memcpy (again + 17, ids, sizeof ids);
  read_all (d, got);
  assert_memory_equal (again, got, sizeof got);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  check_clean_image (io, NULL);
  io_close (io);
}

static void
test_a_crash_leaves_a_prefix (void **state)
{
  const char *scale = getenv ("CRASH_STATES");
  size_t states = scale ? strtoul (scale, NULL, 0) : 400, i, k, open_at;
  struct workload *w = calloc (1, sizeof *w);
  struct io_store *base = create_disk (5, 2), *below, *rec;
  struct dedup_pool *d;
  int64_t size = io_size (base);
  uint8_t *copy = malloc ((size_t) size);

  assert_int_equal (io_memory_new ((uint64_t) size, &below), 0);
  assert_int_equal (io_pread (base, copy, (size_t) size, 0), 0);
  assert_int_equal (io_pwrite (below, copy, (size_t) size, 0), 0);
  free (copy);
  assert_int_equal (io_recording_new (below, &rec), 0);
  d = open_disk (rec, true);
  open_at = 0;
  w->nr_ops = 600;
  for (i = 0; i < w->nr_ops; i++) {
    random_op (&w->ops[i]);
    run_op (d, &w->ops[i]);
    w->done_at[i] = log_length (rec);
    w->flushed_at[i] = SIZE_MAX;
    if (rnd (6) == 0)
      background (d, rnd (3) == 0);
    if (rnd (8) == 0) {
      assert_int_equal (dedup_flush (d), 0);
      w->flushed_at[i] = log_length (rec);
    }
    if (rnd (120) == 0) {
      assert_int_equal (dedup_finish (d), 0);
      w->flushed_at[i] = log_length (rec);
      dedup_free (d);
      d = open_disk (rec, true);
    }
  }
  dedup_free (d);
  for (i = 0; i < states; i++) {
    k = open_at + rnd (log_length (rec) - open_at + 1);
    crash_once (base, rec, w, k);
  }
  io_close (rec);
  io_close (base);
  free (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_equal_content_is_stored_once),
    cmocka_unit_test (test_unmapped_clusters_read_zero_and_are_freed),
    cmocka_unit_test (test_random_work_matches_a_model),
    cmocka_unit_test (test_a_crash_leaves_a_prefix),
  };

  rng = first_seed ();
  print_message ("DISK_TEST_SEED=%llu\n", (unsigned long long) rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
