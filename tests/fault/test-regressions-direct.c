/* SPDX-License-Identifier: BSD-3-Clause */
/* Bugs of disks without a store, and of refcounts made anew, that failing
 * calls found (test-every-io-fails), each with the test that would have; and
 * one of persistent bitmaps.
 */
#include "regress.h"

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
  struct dedup_disk *d;
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

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_failed_sync_is_final_even_if_it_says_no_space),
    cmocka_unit_test (test_what_cannot_be_read_is_not_called_corrupt),
    cmocka_unit_test (test_marks_of_bitmaps_are_written_in_each_session),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
