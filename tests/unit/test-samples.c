/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the samples of the past that the store keeps: they are there after a crash and a
 * close, thinned out with age, and never cost anything else: neither a configuration
 * that needs their place, nor a torn, rotten or foreign copy of them makes an image
 * worse.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pool.h"
#include "samples.h"
#include "wire.h"

#define CLUSTER 4096u
#define COPY_OFF 49152u         /* in a slot of 65536 bytes */
#define YEAR (UINT64_C (365) * 86400)

static struct io_store *io;
static struct dedup_pool *pool;

static void
reopen (bool writable)
{
  const struct dedup_open_params p = {
    .path = "memory", .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (io, &p, &pool, &f) < 0)
    fail_msg ("%s", f.msg);
}

static int
make_image (void **state)
{
  const struct dedup_create_params c = {
    .image = { .virtual_size = 256 * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 4, .journal_areas = 4,
  };
  struct fault f = { 0 };

  assert_int_equal (io_memory_new (0, &io), 0);
  assert_int_equal (dedup_create (io, &c, &f), 0);
  reopen (true);
  return 0;
}

static int
free_image (void **state)
{
  dedup_free (pool);
  io_close (io);
  return 0;
}

static void
close_and_reopen (bool writable)
{
  if (dedup_writable (pool))
    assert_int_equal (dedup_finish (pool), 0);
  dedup_free (pool);
  reopen (writable);
}

static int
add_at (uint64_t time)
{
  const struct dedup_sample s = {
    .time = time, .logical_bytes = time * 3, .stored_bytes = time * 2,
    .free_bytes = UINT64_MAX,
  };

  return dedup_sample_add (pool, &s);
}

/* --- What there is -------------------------------------------------------- */

struct seen {
  unsigned nr;
  uint64_t times[DEDUP_MAX_SAMPLES + 1];
};

static int
see_cb (void *opaque, const struct dedup_sample *s)
{
  struct seen *seen = opaque;

  assert_in_range (seen->nr, 0, DEDUP_MAX_SAMPLES);
  assert_int_equal (s->logical_bytes, s->time * 3);
  assert_int_equal (s->stored_bytes, s->time * 2);
  assert_int_equal (s->free_bytes, UINT64_MAX);
  seen->times[seen->nr++] = s->time;
  return 0;
}

static struct seen
look (void)
{
  struct seen seen = { 0 };

  assert_int_equal (dedup_samples (pool, see_cb, &seen), 0);
  return seen;
}

static void
expect (unsigned nr, uint64_t first, uint64_t last)
{
  const struct seen seen = look ();

  assert_int_equal (seen.nr, nr);
  if (nr > 0) {
    assert_int_equal (seen.times[0], first);
    assert_int_equal (seen.times[nr - 1], last);
  }
}

static int
stop_cb (void *opaque, const struct dedup_sample *s)
{
  return ++*(int *) opaque == 2 ? 7 : 0;
}

static void
samples_are_there_after_a_close (void **state)
{
  int nr = 0;

  expect (0, 0, 0);
  assert_int_equal (add_at (100), 0);
  assert_int_equal (add_at (200), 0);
  assert_int_equal (add_at (200), -EINVAL);
  assert_int_equal (add_at (150), -EINVAL);
  assert_int_equal (add_at (300), 0);
  expect (3, 100, 300);
  close_and_reopen (true);
  expect (3, 100, 300);
  assert_int_equal (add_at (400), 0);
  close_and_reopen (false);
  expect (4, 100, 400);
  assert_int_equal (add_at (500), -EROFS);
  assert_int_equal (dedup_samples (pool, stop_cb, &nr), 7);
  assert_int_equal (nr, 2);
}

static void
samples_are_there_after_a_crash (void **state)
{
  uint8_t buf[CLUSTER] = { 1 };

  assert_int_equal (dedup_write (pool, 0, buf, 0, 1), 0);
  assert_int_equal (add_at (100), 0);
  assert_int_equal (dedup_flush (pool), 0);
  dedup_free (pool);
  reopen (true);
  expect (1, 100, 100);
}

/* A sample a minute for two years, by fewer calls where nothing happens. */
static void
distances_grow_with_age (void **state)
{
  struct dedup_sample_list *l = calloc (1, sizeof *l);
  const uint64_t end = 2 * YEAR;
  uint64_t t;
  uint32_t i;

  for (t = 1; t < end; t += 600) {
    const struct dedup_sample s = { .time = t };

    assert_true (dedup_sample_list_add (l, &s));
  }
  assert_int_equal (l->nr, DEDUP_MAX_SAMPLES);
  assert_int_equal (l->v[0].time, 1);
  assert_int_equal (l->v[l->nr - 1].time, t - 600);
  for (i = 1; i < l->nr; i++) {
    const uint64_t gap = l->v[i].time - l->v[i - 1].time;

    assert_true (gap > 0);
    assert_true (gap <= 1200 + (end - l->v[i].time) / 20);
  }
  free (l);
}

/* --- Damage --------------------------------------------------------------- */

static uint64_t
copy_off (unsigned odd)
{
  return pool->store.ext.config_off +
    (odd ? pool->store.ext.config_size / 2 : 0) + COPY_OFF;
}

static void
flip (uint64_t host_off)
{
  uint8_t byte;

  assert_int_equal (io_pread (io, &byte, 1, host_off), 0);
  byte ^= 0x10;
  assert_int_equal (io_pwrite (io, &byte, 1, host_off), 0);
}

/* The third sample is in the second slot, and the second one still in the first. */
static void
a_copy_that_is_not_whole_is_not_used (void **state)
{
  uint64_t off;

  assert_int_equal (add_at (100), 0);
  assert_int_equal (add_at (200), 0);
  assert_int_equal (add_at (300), 0);
  for (off = 0; off < 64 + 3 * 32; off += 7) {
    flip (copy_off (1) + off);
    close_and_reopen (true);
    if (off < 40 || off >= 64)  /* reserved bytes count, too, but may be any */
      expect (2, 100, 200);
    flip (copy_off (1) + off);
    close_and_reopen (true);
    expect (3, 100, 300);
  }
  flip (copy_off (1));
  flip (copy_off (0));
  close_and_reopen (true);
  expect (0, 0, 0);
  assert_int_equal (add_at (400), 0);
  expect (1, 400, 400);
}

static void
a_copy_of_another_store_is_not_used (void **state)
{
  assert_int_equal (add_at (100), 0);
  pool->store.config->store_id++;
  free (pool->samples);
  pool->samples = NULL;
  expect (0, 0, 0);
  pool->store.config->store_id--;
}

static void
too_many_are_not_believed (void **state)
{
  be32 nr = be32_make (UINT32_MAX);

  assert_int_equal (add_at (100), 0);
  assert_int_equal (io_pwrite (io, &nr, sizeof nr, copy_off (1) + 24), 0);
  close_and_reopen (true);
  expect (0, 0, 0);
}

/* --- The configuration ---------------------------------------------------- */

/* Fails if the place of the samples in a slot was written. */
static void
expect_zeroes (unsigned odd)
{
  uint8_t buf[16384];

  assert_int_equal (io_pread (io, buf, sizeof buf, copy_off (odd)), 0);
  for (size_t i = 0; i < sizeof buf; i++)
    assert_int_equal (buf[i], 0);
}

static void
a_long_configuration_is_not_written_over (void **state)
{
  struct dedup_config *c = pool->store.config;
  const uint32_t nr = c->index.nr_incarnations;

  expect_zeroes (0);
  expect_zeroes (1);
  c->index.nr_incarnations = 1023;      /* 40 KiB */
  c->index.nr_limbo = 64;
  c->index.nr_segments = 150;           /* 8 KiB */
  assert_int_equal (add_at (100), -EBUSY);
  expect_zeroes (0);
  expect_zeroes (1);
  c->index.nr_incarnations = nr;
  c->index.nr_limbo = c->index.nr_segments = 0;
  expect (1, 100, 100);                 /* kept in memory */
  assert_int_equal (add_at (200), 0);
  close_and_reopen (true);
  expect (2, 100, 200);
}

static void
a_long_configuration_in_the_slot_is_not_written_over (void **state)
{
  const uint64_t slot = copy_off (1) - COPY_OFF;
  be32 before, length = be32_make (COPY_OFF + 1);

  assert_int_equal (io_pread (io, &before, sizeof before, slot + 12), 0);
  assert_int_equal (io_pwrite (io, &length, sizeof length, slot + 12), 0);
  assert_int_equal (add_at (100), -EBUSY);
  expect_zeroes (1);
  assert_int_equal (io_pwrite (io, &before, sizeof before, slot + 12), 0);
  assert_int_equal (add_at (200), 0);
}

static void
what_is_owed_may_need_the_place (void **state)
{
  pool->store.owed.any = true;
  assert_int_equal (add_at (100), -EBUSY);
  pool->store.owed.any = false;
  expect_zeroes (1);
}

static void
both_slots_stay_as_they_are (void **state)
{
  static uint8_t before[2][COPY_OFF], after[COPY_OFF];
  unsigned odd, i;

  for (odd = 0; odd < 2; odd++)
    assert_int_equal (io_pread (io, before[odd], COPY_OFF,
                                copy_off (odd) - COPY_OFF), 0);
  for (i = 0; i < 600; i++)
    assert_int_equal (add_at (100 + i), 0);
  for (odd = 0; odd < 2; odd++) {
    assert_int_equal (io_pread (io, after, COPY_OFF, copy_off (odd) - COPY_OFF),
                      0);
    assert_memory_equal (before[odd], after, COPY_OFF);
  }
  close_and_reopen (true);
  expect (DEDUP_MAX_SAMPLES, 100, 699);
}

static void
a_job_is_not_waited_for (void **state)
{
  pthread_mutex_lock (&pool->upkeep.maintenance);
  assert_int_equal (add_at (100), -EAGAIN);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  assert_int_equal (add_at (100), 0);
}

static void
nothing_is_written_after_a_failure (void **state)
{
  assert_int_equal (dedup_fail (&pool->store.gate, -EIO, "a test"), -EIO);
  assert_int_equal (add_at (100), -EROFS);
  expect_zeroes (1);
}

int
main (void)
{
#define TEST(f) cmocka_unit_test_setup_teardown (f, make_image, free_image)
  const struct CMUnitTest tests[] = {
    TEST (samples_are_there_after_a_close),
    TEST (samples_are_there_after_a_crash),
    cmocka_unit_test (distances_grow_with_age),
    TEST (a_copy_that_is_not_whole_is_not_used),
    TEST (a_copy_of_another_store_is_not_used),
    TEST (too_many_are_not_believed),
    TEST (a_long_configuration_is_not_written_over),
    TEST (a_long_configuration_in_the_slot_is_not_written_over),
    TEST (what_is_owed_may_need_the_place),
    TEST (both_slots_stay_as_they_are),
    TEST (a_job_is_not_waited_for),
    TEST (nothing_is_written_after_a_failure),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
