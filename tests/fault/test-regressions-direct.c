/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests bugs of disks without a store, and of rebuilding refcounts, that
 * failing calls found (test-every-io-fails), and one bug of persistent bitmaps.
 *
 * Breaks if: a flush returns 0 for what is lost, an I/O error is called
 * corruption, a bitmap is trusted that misses writes, or a flush without memory
 * forgets references it has to count down, or counts them down twice.
 */
#include "regress.h"
#include "image.h"

#include <errno.h>
#include <string.h>

static const struct shape v2 = { .name = "v2", .base = BASE_QEMU,
                                 .direct = true, .snapshot = true,
                                 .options = "compat=0.10" };
static const struct shape dirty = { .name = "dirty", .base = BASE_QEMU,
                                    .direct = true, .dirty = true,
                                    .options = "refcount_bits=1,"
                                    "lazy_refcounts=on" };

/* ENOSPC from a sync was taken for a full disk, which waits for space: the
 * flush was tried again, and returned 0 for what the host had lost. */
static void
test_a_failed_sync_is_final_even_if_it_says_no_space (void **state)
{
  unsigned long n = 0;
  struct world *w;
  bool hit;

  do {
    w = world_open (&v2);
    assert_int_equal (write_id (w->d, 0, 4711), 0);
    assert_int_equal (write_id (w->d, 100, 4712), 0);
    fail_call (w, IO_SYNC, ++n, ENOSPC);
    if (dedup_flush (w->d) != 0) {
      assert_int_equal (dedup_flush (w->d), -EIO);
      assert_int_equal (write_id (w->d, 3, 12), -EROFS);
      assert_true (dedup_finish (w->d) < 0);
      assert_int_equal (read_id (w->d, 0), 4711);
    }
    hit = w->hit;
    world_free (w);
  } while (hit);
  assert_true (n > 2);
}

/* A table that could not be read was told as an image in which more is wrong
 * than refcounts, to be given to qemu-img check -r all. */
static void
test_what_cannot_be_read_is_not_called_corrupt (void **state)
{
  struct plan none = { 0 };
  struct dedup_open_params p;
  unsigned long n = 0, refused = 0;
  struct dedup_pool *d;
  struct world *w;
  bool hit;
  int r;

  stage_init (&dirty);
  open_params (&dirty, &p);
  do {
    struct fault f = { 0 };

    w = world_new (&dirty, &none);
    w->armed = true;
    fail_call (w, IO_PREAD, ++n, EIO);
    d = NULL;
    r = dedup_open (w->image.io, &p, &d, &f);
    hit = w->hit;
    if (r < 0) {
      refused++;
      assert_int_equal (r, -EIO);
      assert_int_equal (f.kind, FAULT_IO);
      assert_null (strstr (f.msg, "check -r all"));
    }
    dedup_free (d);
    world_free (w);
  } while (hit);
  assert_true (refused > 5);
}

/* The mark of a bitmap was lost with a failed sync, but still in the host's
 * cache; so the next session wrote none, and after a power cut the bitmap
 * said that it could be relied on. */
static void
test_marks_of_bitmaps_are_written_in_each_session (void **state)
{
  static const struct shape marked = { .name = "marked", .base = BASE_QEMU,
                                       .order = 4, .journal_areas = 4,
                                       .bitmaps = true,
                                       .options = "compat=1.1" };
  struct world *w = world_open (&marked);
  uint64_t got[NR];

  fail_call (w, IO_SYNC, 1, EIO);
  assert_true (write_id (w->d, 7, 4711) < 0);
  assert_true (w->hit);
  world_close (w);
  w->d = must_open (&marked, w->image.io, true);
  assert_int_equal (write_id (w->d, 8, 4712), 0);
  assert_int_equal (dedup_finish (w->d), 0);
  read_disk (w, w->d, got, "closed");
  assert_int_equal (got[8], 4712);
  judge_bitmaps (w, w->image.power, got, "after a power cut");
  world_free (w);
}

/* --- counting down ------------------------------------------------------- */

/* Refcounts in slices of 256, of which there are several: three times the
 * clusters of other shapes, a quarter as large.  Of compressed ones that lie in
 * two host clusters, one or another ends a slice and begins the next. */
static const struct shape wide = { .name = "wide", .base = BASE_QEMU,
                                   .direct = true,
                                   .options = "compat=0.10,cluster_size=1k "
                                   "raw raw" };
static const struct shape packed = { .name = "packed", .base = BASE_QEMU,
                                     .direct = true,
                                     .options = "compat=0.10,cluster_size=1k "
                                     "-c raw raw" };

/* Everything was dropped and nothing is flushed; of the tables, little more
 * than what is changed stays in memory. */
static struct world *
ready_to_count_down (const struct shape *s)
{
  struct plan none = { 0 };
  struct world *w = world_new (s, &none);
  uint64_t size;

  w->d = must_open (s, w->image.io, true);
  w->armed = true;
  w->d->base.img->cache.budget = 1;
  size = qcow2_geometry (w->d->base.img)->virtual_size;
  assert_int_equal (dedup_unmap (w->d, 0, 0, size >> w->d->base.cluster_bits,
                                 DEDUP_TRIM), 0);
  assert_true (w->d->base.img->unlogged.nr > 1000);
  return w;
}

/* Flushes; in the first one the N-th read finds no memory.  Adds up how often
 * the count-down was cut short, and how often inside a run. */
static void
flush_with_fault (struct world *w, unsigned long n, unsigned long *cut,
                  unsigned long *inside)
{
  const struct qcow2_unlogged *x = &w->d->base.img->unlogged;
  const size_t all = x->nr, bytes = all * sizeof *x->drops;
  CLEANUP_FREE struct qcow2_run *before = malloc (bytes);
  int r;

  memcpy (before, x->drops, bytes);
  fail_call (w, IO_PREAD, n, ENOMEM);
  r = dedup_flush (w->d);
  assert_int_equal (r, w->hit ? -ENOMEM : 0);
  *cut += x->nr > 0 && x->nr < all;
  *inside += x->nr > 0 && x->drops[0].count < before[all - x->nr].count;
  assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (x->nr, 0);
}

static void
count_down_with_faults (const struct shape *s, unsigned long *cut,
                        unsigned long *inside)
{
  unsigned long n = 0;
  bool hit;

  stage_init (s);
  do {
    struct world *w = ready_to_count_down (s);

    flush_with_fault (w, ++n, cut, inside);
    hit = w->hit;
    finish_clean (w);
  } while (hit);
}

/* A flush without memory to load refcounts forgot the run that it was about to
 * count down: leaks after a close that called itself clean.  What is left of
 * the run has to stay, and no more: the rest would come free twice. */
static void
test_a_count_down_cut_short_goes_on_where_it_was (void **state)
{
  unsigned long cut = 0, inside = 0;

  count_down_with_faults (&wide, &cut, &inside);
  assert_true (cut > 0);
  cut = inside = 0;
  count_down_with_faults (&packed, &cut, &inside);
  assert_true (inside > 0);     /* else qemu-img packs otherwise by now */
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_failed_sync_is_final_even_if_it_says_no_space),
    cmocka_unit_test (test_what_cannot_be_read_is_not_called_corrupt),
    cmocka_unit_test (test_marks_of_bitmaps_are_written_in_each_session),
    cmocka_unit_test (test_a_count_down_cut_short_goes_on_where_it_was),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
