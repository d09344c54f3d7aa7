/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests what an image with disks has in its journal: records that name places
 * in the file, whichever root was written to.  And what it is like to close such
 * an image while work is left.
 *
 * A crash is a close that writes nothing; the memory keeps what was written.
 *
 * Breaks if: a record names a guest cluster of a root although tables may be
 * lent, or the other way round; such a journal is not replayed as it was
 * written; data that never reached the disk is linked; or an image that was
 * closed with work left is taken for a crashed one, or for a clean one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "pool.h"

#define CLUSTER 4096u
#define NR 2048u                /* clusters of the disk: four L2 tables */
#define MAX_LOG 4096u

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  struct log_sink sink;
  char log[MAX_LOG];            /* the lines since the last open */
  uint64_t model[NR];           /* contents; 0: zeroes */
};

/* --- the world ---------------------------------------------------------- */

static void
log_cb (void *opaque, enum log_level level, const char *line)
{
  struct world *w = opaque;
  const size_t len = strlen (w->log);

  if (level != LOG_DEBUG)
    snprintf (w->log + len, sizeof w->log - len, "%s\n", line);
}

static void
open_disk (struct world *w, bool dedup)
{
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = dedup, .verify = true,
    .max_incarnations = -1, .cache_bytes = 4 << 20, .log = &w->sink,
  };
  struct fault f = { 0 };

  w->log[0] = '\0';
  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static int
setup (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 5 },
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->sink = (struct log_sink) { log_cb, w };
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_disk (w, true);
  *state = w;
  return 0;
}

static void
fill (uint8_t buf[CLUSTER], uint64_t content)
{
  uint64_t word;

  for (size_t i = 0; i < CLUSTER; i += sizeof word) {
    word = content ? content * UINT64_C (0x9e3779b97f4a7c15) + i : 0;
    memcpy (buf + i, &word, sizeof word);
  }
}

static void
write_one (struct world *w, uint64_t guest_idx, uint64_t content)
{
  uint8_t buf[CLUSTER];

  fill (buf, content);
  assert_int_equal (dedup_write (w->d, 0, buf, guest_idx, 1), 0);
  w->model[guest_idx] = content;
}

static void
unmap (struct world *w, uint64_t guest_idx, uint64_t nr)
{
  assert_int_equal (dedup_unmap (w->d, 0, guest_idx, nr, DEDUP_TRIM), 0);
  memset (w->model + guest_idx, 0, nr * sizeof *w->model);
}

/* New data, duplicates, data again, and unmaps that cross from one L2 table into
 * the next; FIRST is the first number of the contents. */
static void
work (struct world *w, uint64_t first)
{
  for (uint64_t i = 0; i < 300; i++)
    write_one (w, (first + i * 7) % NR, first + i);
  for (uint64_t i = 0; i < 50; i++)
    write_one (w, (first + i * 11 + 3) % NR, first + i);
  unmap (w, 500, 30);
  write_one (w, 3, first + 1000);
  unmap (w, 3, 1);
  write_one (w, 4, first + 1001);
}

static void
assert_model (struct world *w)
{
  uint8_t got[CLUSTER], want[CLUSTER];

  for (uint64_t i = 0; i < NR; i++) {
    assert_int_equal (dedup_read (w->d, 0, got, i * CLUSTER, CLUSTER), 0);
    fill (want, w->model[i]);
    if (memcmp (got, want, CLUSTER) != 0)
      fail_msg ("cluster %u is not as it was written", (unsigned) i);
  }
}

static void
flush (struct world *w)
{
  assert_int_equal (dedup_flush (w->d), 0);
}

static int
begin_disks (struct world *w)
{
  int r;

  pthread_mutex_lock (&w->d->upkeep.maintenance);
  r = dedup_begin_disks (&w->d->upkeep);
  pthread_mutex_unlock (&w->d->upkeep.maintenance);
  return r;
}

static void
set_work_left (struct world *w, bool left)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  w->d->store.work_left = left;
}

static void
crash (struct world *w, bool dedup)
{
  dedup_free (w->d);
  open_disk (w, dedup);
}

static bool
bit_48 (struct world *w)
{
  uint8_t b[8];

  assert_int_equal (io_pread (w->io, b, sizeof b, 72), 0);
  return b[1] & 1;
}

/* Closes the disk, without work left, and checks the image. */
static int
teardown (void **state)
{
  struct dedup_open_params p = { .path = "test", .verify = true,
                                 .max_incarnations = -1,
                                 .cache_bytes = 4 << 20 };
  struct qcow2_check_params q = { 0 };
  struct dedup_check_result r;
  struct world *w = *state;
  struct fault f = { 0 };

  set_work_left (w, false);
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  assert_false (bit_48 (w));
  assert_int_equal (dedup_open (w->io, &p, &w->d, &f), 0);
  assert_int_equal (dedup_check (w->d, &q, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
  return 0;
}

/* --- what the journal has ------------------------------------------------ */

struct seen {
  unsigned nr[256];             /* records by type */
  struct dedup_record last;     /* record of new data */
};

static int
see_block (void *opaque, const struct dedup_journal_block *b)
{
  struct seen *seen = opaque;
  struct dedup_record rec;
  size_t pos = 0;

  while (pos < b->len) {
    int n = dedup_record_decode (b->records + pos, b->len - pos, &rec);

    assert_true (n > 0);
    pos += (size_t) n;
    seen->nr[rec.type]++;
    if (dedup_record_is_new_data (&rec))
      seen->last = rec;
  }
  return 0;
}

/* Reads all that a replay would read. */
static void
look (struct world *w, struct seen *seen)
{
  const struct dedup_journal_place place =
    dedup_config_place (w->d->store.config);
  uint64_t next;

  memset (seen, 0, sizeof *seen);
  assert_int_equal (dedup_journal_read (w->io, &place,
                                        w->d->store.config->checkpoint,
                                        UINT64_MAX, see_block, seen, &next), 0);
}

static void
assert_only_places (const struct seen *seen)
{
  assert_int_equal (seen->nr[DEDUP_REC_HASH], 0);
  assert_int_equal (seen->nr[DEDUP_REC_WRITE], 0);
  assert_int_equal (seen->nr[DEDUP_REC_L2], 0);
}

static void
assert_no_places (const struct seen *seen)
{
  for (unsigned t = DEDUP_REC_ENTRY; t < DEDUP_REC_NONE; t++)
    assert_int_equal (seen->nr[t], 0);
}

/* --- records -------------------------------------------------------------- */

static void
test_without_disks_no_record_names_a_place (void **state)
{
  struct world *w = *state;
  struct seen seen;

  work (w, 1);
  flush (w);
  look (w, &seen);
  assert_no_places (&seen);
  assert_true (seen.nr[DEDUP_REC_HASH] > 0 && seen.nr[DEDUP_REC_L2] > 0);
  assert_false (w->d->store.config->has_disks);
  crash (w, false);
  assert_model (w);
  work (w, 5001);
  flush (w);
  look (w, &seen);
  assert_no_places (&seen);
  assert_true (seen.nr[DEDUP_REC_WRITE] > 0);
}

static void
test_with_disks_all_records_name_places (void **state)
{
  struct world *w = *state;
  struct seen seen;

  work (w, 1);
  assert_int_equal (begin_disks (w), 0);
  work (w, 10001);
  flush (w);
  look (w, &seen);
  assert_only_places (&seen);
  assert_true (seen.nr[DEDUP_REC_HASHAT] > 0);
  assert_true (seen.nr[DEDUP_REC_ENTRY] > 0);
  crash (w, false);
  assert_non_null (strstr (w->log, "recovered after a crash"));
  assert_model (w);
  work (w, 20001);              /* in later sessions, too */
  flush (w);
  look (w, &seen);
  assert_only_places (&seen);
  assert_true (seen.nr[DEDUP_REC_WRITEAT] > 0);
  crash (w, true);
  assert_model (w);
}

/* The log store is built from HASHAT as it is from HASH. */
static void
test_a_replay_fills_the_index (void **state)
{
  struct world *w = *state;
  struct seen seen;

  assert_int_equal (begin_disks (w), 0);
  for (uint64_t i = 0; i < 100; i++)
    write_one (w, i, 1 + i);
  flush (w);
  crash (w, true);
  for (uint64_t i = 0; i < 100; i++)
    write_one (w, 300 + i, 1 + i);
  flush (w);
  look (w, &seen);
  assert_int_equal (seen.nr[DEDUP_REC_HASHAT], 0);
  assert_int_equal (seen.nr[DEDUP_REC_REFLIST], 100);
  assert_int_equal (seen.nr[DEDUP_REC_ENTRY], 100);
  assert_model (w);
}

/* A crash before the checkpoint of begin-disks.c. */
static void
test_records_of_both_kinds_are_replayed_in_order (void **state)
{
  struct world *w = *state;
  struct seen seen;

  work (w, 1);
  w->d->store.config->has_disks = true;
  pthread_mutex_lock (&w->d->upkeep.maintenance);
  assert_int_equal (dedup_config_commit (&w->d->store), 0);
  pthread_mutex_unlock (&w->d->upkeep.maintenance);
  lock_acquire (w->d->base.lock);
  qcow2_begin_disks_locked (w->d->base.img);
  lock_release (w->d->base.lock);
  work (w, 10001);
  flush (w);
  look (w, &seen);
  assert_true (seen.nr[DEDUP_REC_HASH] > 0 && seen.nr[DEDUP_REC_HASHAT] > 0);
  crash (w, true);
  assert_model (w);
  assert_int_equal (begin_disks (w), 0);
  write_one (w, 9, 77);
  flush (w);
  look (w, &seen);
  assert_only_places (&seen);
}

/* The data of the last write is not on the disk: it did not happen.  Its block
 * is the last one, so none knows that it was durable. */
static void
lose_data (struct world *w, bool dedup, enum dedup_record_type type)
{
  uint8_t junk[CLUSTER];
  struct seen seen;

  assert_int_equal (begin_disks (w), 0);
  crash (w, dedup);
  write_one (w, 600, 8);
  flush (w);
  write_one (w, 601, 9);
  w->model[601] = 0;
  flush (w);
  look (w, &seen);
  assert_int_equal (seen.last.type, type);
  memset (junk, 0x5a, sizeof junk);
  assert_int_equal (io_pwrite (w->io, junk, sizeof junk,
                               seen.last.host_idx * CLUSTER), 0);
  crash (w, dedup);
  assert_model (w);
}

static void
test_lost_data_that_was_hashed (void **state)
{
  lose_data (*state, true, DEDUP_REC_HASHAT);
}

static void
test_lost_data_that_was_not (void **state)
{
  lose_data (*state, false, DEDUP_REC_WRITEAT);
}

/* --- work left ------------------------------------------------------------ */

static void
test_a_close_with_work_left_is_no_crash (void **state)
{
  struct world *w = *state;

  assert_int_equal (begin_disks (w), 0);
  work (w, 1);
  set_work_left (w, true);
  assert_int_equal (dedup_finish (w->d), 0);
  assert_true (bit_48 (w));
  dedup_free (w->d);
  open_disk (w, true);
  assert_null (strstr (w->log, "crash"));
  assert_non_null (strstr (w->log, "clones"));
  assert_true (w->d->store.went_on);
  assert_true (bit_48 (w));
  assert_model (w);

  crash (w, true);              /* before anything was changed */
  assert_true (bit_48 (w));
  assert_false (w->d->store.went_on);
  work (w, 3001);
  flush (w);
  crash (w, true);
  assert_non_null (strstr (w->log, "recovered after a crash"));
  assert_false (w->d->store.went_on);
  assert_model (w);
}

/* The configuration says "work left", but later blocks are there. */
static void
test_writes_behind_a_close_with_work_left (void **state)
{
  struct world *w = *state;

  assert_int_equal (begin_disks (w), 0);
  work (w, 1);
  set_work_left (w, true);
  assert_int_equal (dedup_finish (w->d), 0);
  assert_false (w->d->store.gate.bit_raised);
  work (w, 3001);
  flush (w);
  crash (w, true);
  assert_non_null (strstr (w->log, "recovered after a crash"));
  assert_false (w->d->store.went_on);
  assert_model (w);
}

static void
test_the_idle_job_waits_for_the_work (void **state)
{
  struct world *w = *state;

  assert_int_equal (begin_disks (w), 0);
  work (w, 1);
  set_work_left (w, true);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_CLEAN);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_CLEAN), 0);
  assert_true (bit_48 (w));
  assert_false (w->d->store.config->flags & DEDUP_CONFIG_WORK_LEFT);
  set_work_left (w, false);
  assert_true (dedup_due (w->d, NULL) & DEDUP_JOB_CLEAN);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_CLEAN), 0);
  assert_false (bit_48 (w));
  dedup_free (w->d);
  open_disk (w, true);
  assert_false (w->d->store.work_left);
  assert_model (w);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_without_disks_no_record_names_a_place),
    TEST (test_with_disks_all_records_name_places),
    TEST (test_a_replay_fills_the_index),
    TEST (test_records_of_both_kinds_are_replayed_in_order),
    TEST (test_lost_data_that_was_hashed),
    TEST (test_lost_data_that_was_not),
    TEST (test_a_close_with_work_left_is_no_crash),
    TEST (test_writes_behind_a_close_with_work_left),
    TEST (test_the_idle_job_waits_for_the_work),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
