/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests images on a device with unknown bytes: the engine never needs zeroes
 * where it puts data, and stays within the size of the device. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "pool.h"
#include "upkeep-private.h"

#define DEVICE (UINT64_C (24) << 20)
#define CLUSTER 4096u
#define STALE 0xa5

static const struct dedup_create_params params = {
  .image = { .virtual_size = 8 << 20, .cluster_bits = 12,
             .refcount_order = 4 },
};

static struct dedup_pool *
open_disk (struct io_store *io)
{
  struct dedup_open_params p = { .path = "device", .writable = true,
                                 .dedup = true, .verify = true,
                                 .max_incarnations = -1,
                                 .cache_bytes = 1 << 20 };
  struct fault f = { 0 };
  struct dedup_pool *d;

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static struct io_store *
new_device (uint64_t size)
{
  struct io_store *io;

  assert_int_equal (io_memory_new_device (size, STALE, &io), 0);
  return io;
}

static int
write_one (struct dedup_pool *d, uint64_t guest_idx, uint64_t content)
{
  uint64_t buf[CLUSTER / 8];

  for (size_t i = 0; i < CLUSTER / 8; i++)
    buf[i] = content * UINT64_C (0x9e3779b97f4a7c15) + i;
  return dedup_write (d, 0, buf, guest_idx, 1);
}

static void
assert_reads (struct dedup_pool *d, uint64_t guest_idx, uint64_t content)
{
  uint64_t buf[CLUSTER / 8];

  assert_int_equal (dedup_read (d, 0, buf, guest_idx * CLUSTER, CLUSTER), 0);
  for (size_t i = 0; i < CLUSTER / 8; i++)
    assert_int_equal (buf[i], content == 0 ? 0 :
                      content * UINT64_C (0x9e3779b97f4a7c15) + i);
}

/* Bytes of the areas that are neither a block of this journal nor zero. */
static size_t
stale_bytes (struct dedup_pool *d, struct io_store *io)
{
  const struct dedup_config *c = d->store.config;
  uint8_t block[DEDUP_BLOCK_SIZE];
  size_t n = 0;

  for (uint32_t i = 0; i < c->nr_areas; i++)
    for (uint32_t k = 0; k < c->areas[i].nr_blocks; k++) {
      assert_int_equal (io_pread (io, block, sizeof block,
                                  c->areas[i].host_off +
                                  (uint64_t) k * sizeof block), 0);
      if (memcmp (block, "DDUPJRNL", 8) == 0)
        continue;
      for (size_t j = 0; j < sizeof block; j++)
        n += block[j] != 0;
    }
  return n;
}

static void
test_new_journal_areas_are_zeroed (void **state)
{
  struct io_store *io = new_device (DEVICE);
  struct fault f = { 0 };
  struct dedup_pool *d;
  uint64_t i;
  uint32_t before;

  assert_int_equal (dedup_create (io, &params, &f), 0);
  d = open_disk (io);
  assert_int_equal (stale_bytes (d, io), 0);
  before = d->store.config->nr_areas;
  for (i = 0; i < 5000 && d->store.config->nr_areas < before + 2; i++) {
    assert_int_equal (write_one (d, i % 64, i + 1), 0);
    assert_int_equal (dedup_flush (d), 0);
    pthread_mutex_lock (&d->upkeep.maintenance);
    assert_int_equal (dedup_journal_extend (&d->upkeep), 0);
    pthread_mutex_unlock (&d->upkeep.maintenance);
  }
  assert_true (d->store.config->nr_areas >= before + 2);
  assert_int_equal (stale_bytes (d, io), 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

/* What was not written reads as zero, in new L2 tables too; and the end of the
 * device is a full disk, whatever is on it. */
static void
test_device_is_filled_to_its_end (void **state)
{
  const uint64_t nr = params.image.virtual_size / CLUSTER;
  struct io_store *io = new_device ((5 << 20) + 1536);
  struct fault f = { 0 };
  struct dedup_pool *d;
  uint64_t i, full;
  int r = 0;

  assert_int_equal (dedup_create (io, &params, &f), 0);
  d = open_disk (io);
  for (i = 0; i < nr; i++)
    assert_reads (d, i, 0);
  for (full = 0; full < nr && r == 0; full += r == 0)
    r = write_one (d, full, full + 1);
  assert_int_equal (r, -ENOSPC);
  assert_true (full > 500);
  assert_int_equal (dedup_flush (d), 0);
  for (i = 0; i < nr; i++)
    assert_reads (d, i, i < full ? i + 1 : 0);
  dedup_free (d);                          /* a crash */
  d = open_disk (io);
  for (i = 0; i < nr; i++)
    assert_reads (d, i, i < full ? i + 1 : 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

/* A full device of which clients overwrite a little and flush: there is nothing
 * to write zeroes to ahead of them, and no job is due again and again for that. */
static void
test_full_device_keeps_no_job_busy (void **state)
{
  struct io_store *io = new_device (5 << 20);
  struct fault f = { 0 };
  struct dedup_pool *d;
  unsigned urgent, i;
  int r = 0;

  assert_int_equal (dedup_create (io, &params, &f), 0);
  d = open_disk (io);
  for (i = 0; r == 0; i++)
    r = write_one (d, i, i + 1);
  assert_int_equal (r, -ENOSPC);
  while (dedup_due (d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (d, DEDUP_JOB_SCAN), 0);
  assert_int_equal (dedup_unmap (d, 0, 0, 100, DEDUP_TRIM), 0);
  for (i = 0; i < 4; i++)        /* what is free becomes spare */
    assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
  for (i = 0; i < 300; i++) {
    assert_int_equal (write_one (d, 200 + i % 8, 10000 + i), 0);
    assert_int_equal (dedup_flush (d), 0);
    for (unsigned k = 0; k < 3; k++)
      if (dedup_due (d, &urgent) && urgent & DEDUP_JOB_COMMIT)
        assert_int_equal (dedup_run (d, DEDUP_JOB_COMMIT), 0);
    (void) dedup_due (d, &urgent);
    assert_false (urgent & DEDUP_JOB_COMMIT);
  }
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

/* Without a store, too (a table that is made is written whole). */
static void
test_plain_image_on_stale_bytes (void **state)
{
  struct io_store *io = new_device (DEVICE);
  struct fault f = { 0 };
  struct dedup_pool *d;
  uint64_t i;

  assert_int_equal (qcow2_create (io, &params.image, &f), 0);
  d = open_disk (io);                      /* adopts it */
  for (i = 0; i < 2000; i += 7)
    assert_int_equal (write_one (d, i, i + 1), 0);
  assert_int_equal (dedup_flush (d), 0);
  dedup_free (d);
  d = open_disk (io);
  for (i = 0; i < 2000; i++)
    assert_reads (d, i, i % 7 == 0 ? i + 1 : 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

static void
test_device_that_is_too_small_is_refused (void **state)
{
  struct io_store *io = new_device (64 << 10);
  struct fault f = { 0 };

  assert_int_equal (dedup_create (io, &params, &f), -ENOSPC);
  assert_non_null (strstr (f.msg, "too small"));
  assert_int_equal (io_size (io), 64 << 10);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_new_journal_areas_are_zeroed),
    cmocka_unit_test (test_device_is_filled_to_its_end),
    cmocka_unit_test (test_full_device_keeps_no_job_busy),
    cmocka_unit_test (test_plain_image_on_stale_bytes),
    cmocka_unit_test (test_device_that_is_too_small_is_refused),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
