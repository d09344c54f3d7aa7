/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that an open image goes on beside places where a write of a lost connection
 * may still land (io_tainted): new data, tables and areas of the journal and the index
 * go elsewhere, and the configuration, which cannot, is written all the same.
 *
 * Breaks if: a tainted place is written, a write fails because of one, or what was
 * written is not read back, also after another open.
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
#include "bitset.h"
#include "due-jobs.h"
#include "image.h"
#include "pool.h"

#define CLUSTER 4096u
#define NR 4000u               /* guest clusters */
#define MAX_TAINTS 64

static struct {
  uint64_t off, len;
} taints[MAX_TAINTS];
static unsigned nr_taints, refused, forgotten;
static struct io_ops ops;
static int (*memory_pwritev) (struct io_store *s, const struct iovec *iov,
                              int iovcnt, uint64_t host_off);

static void
taint (uint64_t off, uint64_t len)
{
  assert_true (nr_taints < MAX_TAINTS);
  taints[nr_taints].off = off;
  taints[nr_taints++].len = len;
}

static bool
is_tainted (struct io_store *s, uint64_t off, uint64_t len)
{
  for (unsigned i = 0; i < nr_taints; i++)
    if (off < taints[i].off + taints[i].len && taints[i].off < off + len)
      return true;
  return false;
}

static int
forget_taint (struct io_store *s, uint64_t off, uint64_t len)
{
  for (unsigned i = 0; i < nr_taints; i++)
    if (taints[i].len > 0 && off <= taints[i].off &&
        taints[i].off + taints[i].len <= off + len) {
      taints[i].len = 0;
      forgotten++;
    }
  return 0;
}

static int
guarded_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                 uint64_t host_off)
{
  uint64_t len = 0;

  for (int i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  if (is_tainted (s, host_off, len)) {
    refused++;
    return -ESTALE;
  }
  return memory_pwritev (s, iov, iovcnt, host_off);
}

static struct io_store *
new_store (void)
{
  struct io_store *s;

  assert_int_equal (io_memory_new (0, &s), 0);
  ops = *s->ops;
  memory_pwritev = ops.pwritev;
  ops.pwritev = guarded_pwritev;
  ops.tainted = is_tainted;
  ops.forget_taint = forget_taint;
  s->ops = &ops;
  nr_taints = refused = forgotten = 0;
  return s;
}

static struct dedup_pool *
open_disk (struct io_store *io)
{
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 4 << 20,
  };
  struct fault f = { 0 };
  struct dedup_pool *d;

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static void
fill (uint8_t buf[CLUSTER], uint64_t id)
{
  for (unsigned i = 0; i < CLUSTER / 8; i++)
    memcpy (buf + i * 8, &id, 8);
}

static void
write_all (struct dedup_pool *d, uint64_t first_id)
{
  uint8_t buf[CLUSTER];

  for (uint64_t i = 0; i < NR; i++) {
    fill (buf, first_id + i);
    assert_int_equal (dedup_write (d, 0, buf, i, 1), 0);
    if (i % 64 == 0) {
      assert_int_equal (dedup_flush (d), 0);
      run_due_jobs (d);
    }
  }
  assert_int_equal (dedup_flush (d), 0);
}

static void
check_all (struct dedup_pool *d, uint64_t first_id)
{
  uint8_t buf[CLUSTER], want[CLUSTER];

  for (uint64_t i = 0; i < NR; i++) {
    fill (want, first_id + i);
    assert_int_equal (dedup_read (d, 0, buf, i * CLUSTER, CLUSTER), 0);
    assert_memory_equal (buf, want, CLUSTER);
  }
}

/* Taints one cluster in sixteen of those that are free, in the file and behind its
 * end, the oldest area of the journal, which is used again soon, and both slots of the
 * configuration. */
static void
taint_some (struct dedup_pool *d)
{
  const struct dedup_journal_area *a = &d->store.config->areas[0];
  struct qcow2_image *img = dedup_image (d);
  const uint64_t end = qcow2_host_frontier (img);

  taint (d->store.ext.config_off, DEDUP_BLOCK_SIZE);
  taint (d->store.ext.config_off + d->store.ext.config_size / 2, DEDUP_BLOCK_SIZE);
  taint (a->host_off + 7 * DEDUP_BLOCK_SIZE, DEDUP_BLOCK_SIZE);
  for (unsigned i = 0; i < 40; i++)
    taint ((end + 1 + 16 * i) * CLUSTER, CLUSTER);
  lock_acquire (qcow2_lock (img));
  for (uint64_t idx = 0; idx < end && nr_taints < MAX_TAINTS; idx += 16) {
    idx = qcow2_bitset_next (img->alloc.free, idx);
    if (idx != QCOW2_BITSET_NONE)
      taint (idx * CLUSTER, CLUSTER);
    else
      break;
  }
  lock_release (qcow2_lock (img));
}

static void
test_tainted_places_are_left_alone (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 5, .journal_areas = 2,
  };
  struct io_store *io = new_store ();
  struct qcow2_check_params cp = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };
  struct dedup_pool *d;
  uint64_t id = 1;

  assert_int_equal (dedup_create (io, &p, &f), 0);
  d = open_disk (io);
  write_all (d, id);
  taint_some (d);
  for (unsigned i = 0; i < 4; i++) {
    id += 100000;
    write_all (d, id);
    assert_int_equal (dedup_run (d, DEDUP_JOB_CHECKPOINT), 0);
  }
  assert_int_equal (refused, 0);
  assert_int_equal (forgotten, 2);
  check_all (d, id);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);

  nr_taints = 0;
  d = open_disk (io);
  check_all (d, id);
  assert_int_equal (dedup_check (d, &cp, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.errors + r.store_errors, 0);
  write_all (d, id + 100000);
  check_all (d, id + 100000);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_tainted_places_are_left_alone),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
