/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the round trips that opening an image takes where the store is far away, and
 * tests that a rehearsal spares most of them.
 *
 * A round trip here is a call that has to wait: for parts that are read side by side one,
 * and for all that was announced before (io_will_need) one more.  What was announced is
 * kept until it is read, as io/nbd-ahead.c does.  No time is measured.
 *
 * Breaks if: an open that reads one part after the other takes longer for an image with
 * more tables, areas or disks; or if it changes a clean image.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "checked.h"
#include "due-jobs.h"
#include "image.h"
#include "lease.h"
#include "pool.h"
#include "preview.h"
#include "ranges.h"

#define CLUSTER 4096u

/* --- A store that is far away ------------------------------------------------ */

static struct io_ops ops;
static const struct io_ops *memory_ops;
static struct io_ranges announced;
static bool under_way;          /* what was announced has not been waited for */
static unsigned rounds, changes;
static unsigned delay_us;       /* of each call that waits */

static void
wait_once (void)
{
  rounds++;
  if (delay_us)
    usleep (delay_us);
}

/* Returns whether the part was read ahead; it is dropped then. */
static bool
was_announced (uint64_t host_off, uint64_t len)
{
  struct io_range gap;

  if (len == 0)
    return true;
  if (io_ranges_gap (&announced, host_off, host_off + len, &gap))
    return false;
  assert_int_equal (io_ranges_remove (&announced, host_off, host_off + len), 0);
  if (under_way)
    wait_once ();
  under_way = false;
  return true;
}

static int
far_preadv (struct io_store *s, const struct iovec *iov, int iovcnt, uint64_t host_off)
{
  uint64_t len = 0;

  for (int i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  if (!was_announced (host_off, len))
    wait_once ();
  return memory_ops->preadv (s, iov, iovcnt, host_off);
}

static void
far_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  bool all = true;

  for (size_t i = 0; i < nr; i++) {
    const struct iovec iov = { v[i].buf, v[i].len };

    all = was_announced (v[i].host_off, v[i].len) && all;
    v[i].result = memory_ops->preadv (s, &iov, 1, v[i].host_off);
  }
  if (!all)
    wait_once ();
}

static bool
far_will_need (struct io_store *s, const struct io_part *v, size_t nr, bool around)
{
  for (size_t i = 0; i < nr; i++)
    if (v[i].len > 0)
      assert_int_equal (io_ranges_add (&announced, v[i].host_off,
                                       v[i].host_off + v[i].len), 0);
  under_way = true;
  return true;
}

static int
far_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt, uint64_t host_off)
{
  changes++;
  wait_once ();
  return memory_ops->pwritev (s, iov, iovcnt, host_off);
}

static int
far_sync (struct io_store *s)
{
  changes++;
  wait_once ();
  return 0;
}

static bool
far_lacks_space (struct io_store *s)
{
  return true;
}

static struct io_store *
new_store (void)
{
  struct io_store *s;

  assert_int_equal (io_memory_new (0, &s), 0);
  memory_ops = s->ops;
  ops = *s->ops;
  ops.preadv = far_preadv;
  ops.read_many = far_read_many;
  ops.will_need = far_will_need;
  ops.pwritev = far_pwritev;
  ops.sync = far_sync;
  ops.lacks_space = far_lacks_space;
  s->ops = &ops;
  return s;
}

/* --- Images ------------------------------------------------------------------ */

static size_t
choose_cache (const struct qcow2_image *img)
{
  return 4 << 20;
}

static struct dedup_open_params
params (void)
{
  return (struct dedup_open_params) {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .choose_cache = choose_cache,
  };
}

static struct dedup_pool *
open_disk (struct io_store *io)
{
  const struct dedup_open_params p = params ();
  struct fault f = { 0 };
  struct dedup_pool *d;

  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

/* Makes an image with NR clusters, whose index is in runs and in the journal, in a place
 * with room for a lease. */
static struct io_store *
new_image (uint64_t nr)
{
  const struct dedup_create_params c = {
    .image.virtual_size = nr * CLUSTER, .image.cluster_bits = 12,
    .image.refcount_order = 4, .hash = DEDUP_HASH_SHA256, .order = 6,
  };
  struct io_store *s = new_store ();
  struct fault f = { 0 };
  struct dedup_pool *d;
  uint64_t buf[CLUSTER / 8];

  if (dedup_create (s, &c, &f) < 0)
    fail_msg ("create: %s", f.msg);
  d = open_disk (s);
  for (uint64_t i = 0; i < nr; i++) {
    for (unsigned k = 0; k < CLUSTER / 8; k++)
      buf[k] = i + 1;
    assert_int_equal (dedup_write (d, 0, (uint8_t *) buf, i, 1), 0);
    if (i % 256 == 0)
      run_due_jobs (d);
  }
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  assert_int_equal (io_truncate (s, (uint64_t) io_size (s) + IO_LEASE_BYTES), 0);
  return s;
}

static void
forget_all (void)
{
  io_ranges_free (&announced);
  announced = (struct io_ranges) { 0 };
  under_way = false;
  rounds = changes = 0;
}

/* Returns the round trips of an open, which must not change the clean image. */
static unsigned
count_open (struct io_store *s)
{
  struct dedup_pool *d;
  unsigned n;

  rounds = changes = 0;
  d = open_disk (s);
  n = rounds;
  assert_int_equal (changes, 0);
  dedup_free (d);
  return n;
}

/* --- Tests ------------------------------------------------------------------- */

/* Steps that depend on each other, each a round trip: the first bytes of the header, its
 * cluster, L1 table, refcount table, snapshot table, the anchor's L1 table, the snapshot
 * table once more (the guard), the two slots of the configuration, the journal's entries
 * of the index (two batches side by side), the tables of the areas, and the block of the
 * journal behind its end.  Tables that are more than a store keeps of what it reads ahead
 * take some more. */
#define STEPS 14

static void
an_open_takes_as_many_round_trips_as_its_steps_depend_on_each_other (void **state)
{
  struct io_store *small = new_image (1000), *large;
  unsigned few, many;

  forget_all ();
  few = count_open (small);
  io_close (small);
  large = new_image (30000);
  forget_all ();
  many = count_open (large);
  print_message ("%u and %u round trips\n", few, many);
  assert_in_range (few, 1, STEPS);
  assert_in_range (many, 1, STEPS);
  forget_all ();
  io_close (large);
}

struct rehearsal {
  bool over;                   /* atomic */
  int r;
};

static void
rehearse (void *opaque, struct io_store *s)
{
  struct rehearsal *h = opaque;
  const struct dedup_open_params p = params ();
  struct dedup_pool *d = NULL;
  struct fault f = { 0 };

  h->r = dedup_open (s, &p, &d, &f);
  if (h->r == 0)
    dedup_free (d);
  __atomic_store_n (&h->over, true, __ATOMIC_RELEASE);
}

/* What is read twice is announced once: the snapshot table, and parts of the header. */
static void
after_a_rehearsal_it_takes_few (void **state)
{
  struct io_store *s = new_image (30000);
  struct rehearsal h = { 0 };
  struct io_preview *v;
  unsigned n;

  forget_all ();
  delay_us = 600;               /* far away */
  v = io_preview_start (s, rehearse, &h);
  assert_non_null (v);
  while (!__atomic_load_n (&h.over, __ATOMIC_ACQUIRE))
    usleep (1000);
  delay_us = 0;
  assert_int_equal (h.r, 0);
  assert_int_equal (changes, 0);
  forget_all ();
  io_preview_end (v, s);
  n = count_open (s);
  print_message ("%u round trips\n", n);
  assert_in_range (n, 1, 4);
  forget_all ();
  io_close (s);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test
    (an_open_takes_as_many_round_trips_as_its_steps_depend_on_each_other),
    cmocka_unit_test (after_a_rehearsal_it_takes_few),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
