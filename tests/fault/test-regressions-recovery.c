/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests a recovery that is interrupted when it has written some tables and
 * others not.  If the last block of the journal rots then, nothing else in the
 * journal has a record of it: the replay would end before it, and older changes
 * would meet newer tables (found by tests/crash: a cluster leaked).
 *
 * Breaks if: a table is written by a recovery before the configuration says
 * that all records are durable; the image is not refused then, or not for
 * that; or it is refused, or changed, where no table was written yet.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "regress.h"
#include "../io-copy.h"

#define NR_WRITTEN 40

static const struct shape small = { .name = "small", .order = 6,
                                    .journal_areas = 4 };

/* IDs of what is there after the first flush and after the second. */
static uint64_t
old_id (uint64_t idx)
{
  return 100 + idx;
}

static uint64_t
new_id (uint64_t idx)
{
  return idx % 4 ? 300 + idx : old_id (idx + 1);   /* some are duplicates */
}

/* An image that was not closed; both flushes are in its journal. */
static struct io_store *
crashed_image (void)
{
  struct world *w = world_open (&small);
  struct io_store *io;
  uint64_t i;

  for (i = 0; i <= NR_WRITTEN; i++)
    assert_int_equal (write_id (w->d, i, old_id (i)), 0);
  assert_int_equal (dedup_flush (w->d), 0);
  for (i = 0; i < NR_WRITTEN; i++)
    assert_int_equal (write_id (w->d, i, new_id (i)), 0);
  assert_int_equal (dedup_flush (w->d), 0);
  io = copy_of (w->image.mem);
  finish_clean (w);
  return io;
}

/* Where is the last block of the journal? */
static uint64_t
last_block (struct io_store *io)
{
  struct dedup_pool *d = must_open (&small, io, false);
  const struct dedup_config *c = d->store.config;
  uint64_t seq = c->checkpoint - 1, at = 0;
  uint32_t i;

  for (i = 0; i < c->nr_areas; i++)
    if (seq - c->areas[i].first_seq < c->areas[i].nr_blocks)
      at = c->areas[i].host_off + (seq - c->areas[i].first_seq) *
        DEDUP_BLOCK_SIZE;
  dedup_free (d);
  assert_true (at != 0);
  return at;
}

static void
rot (struct io_store *io, uint64_t host_off)
{
  uint8_t b;

  assert_int_equal (io_pread (io, &b, 1, host_off), 0);
  b ^= 1;
  assert_int_equal (io_pwrite (io, &b, 1, host_off), 0);
}

struct cut {
  uint64_t nr_writes, after;     /* those that come after fail */
};

static int
cut_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct cut *c = opaque;

  return call == IO_PWRITE && ++c->nr_writes > c->after ? -EIO : 0;
}

/* Refused, for its journal: true.  Else it is as it was between the flushes, or
 * at the second, where the journal was not needed any more. */
static bool
refused_or_as_before (struct io_store *io)
{
  struct dedup_open_params p;
  struct dedup_pool *d = NULL;
  struct fault f = { 0 };
  uint64_t i;

  open_params (&small, &p);
  if (dedup_open (io, &p, &d, &f) < 0) {
    assert_int_equal (f.kind, FAULT_CORRUPT);
    return true;
  }
  for (i = 0; i < NR_WRITTEN && read_id (d, i) == new_id (i); i++)
    ;
  for (; i < NR_WRITTEN; i++)
    assert_int_equal (read_id (d, i), old_id (i));
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  assert_clean (&small, io);
  return false;
}

/* Recover until AFTER writes; false: it came to its end. */
static bool
recover_until (struct io_store *io, uint64_t after, bool *refused)
{
  struct cut cut = { .after = after };
  struct dedup_open_params p;
  struct dedup_pool *d = NULL;
  struct io_store *faulty;
  struct fault f = { 0 };
  int r;

  open_params (&small, &p);
  assert_int_equal (io_faulty_new (copy_of (io), cut_cb, &cut, &faulty), 0);
  r = dedup_open (faulty, &p, &d, &f);
  cut.after = UINT64_MAX;
  dedup_free (d);
  rot (faulty, last_block (io));
  if (r == 0) {
    io_close (faulty);
    return false;
  }
  *refused = refused_or_as_before (faulty);
  io_close (faulty);
  return true;
}

static void
test_a_recovery_cut_off_and_the_last_block_rots (void **state)
{
  struct io_store *io = crashed_image ();
  uint64_t n = 0, nr_refused = 0;
  bool refused;

  for (; recover_until (io, n, &refused); n++)
    nr_refused += refused;
  assert_in_range (nr_refused, 3, n - 1);   /* and not without a reason */
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_recovery_cut_off_and_the_last_block_rots),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
