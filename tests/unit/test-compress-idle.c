/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests compression of what was written plain: all that shrinks is compressed, what is
 * shared stays shared, and guests see nothing of it.
 *
 * On a byte store in memory.
 *
 * Breaks if: a guest cluster changes; a plain cluster is linked where its compressed copy
 * could be, or stays in use; what does not shrink is tried again; data is forgotten, or
 * stored twice for a clone; rot gets an entry; or a crash at any step loses something.
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
#include "image.h"
#include "pool.h"
#include "splitmix.h"
#include "third-random.h"

#define CLUSTER 4096u
#define NR 1500u                /* guest clusters */
#define HARD (UINT64_C (1) << 40)   /* in an id: data that does not shrink */
#define REGION 256u             /* that have a mark in common */

static uint64_t rng;

struct world {
  struct io_store *io;
  struct dedup_pool *pool;
  bool off;                     /* new data is not compressed later ... */
  bool keep;                    /* ... but at once; else not at all */
  uint64_t next_id;
  uint64_t ids[2][NR];          /* of the active disk, and one more */
  unsigned roots[2];            /* ... their numbers; 0: there is none more */
};

static int
try_open (struct world *w, bool writable, struct fault *f)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = true,
    .compress = w->off && !w->keep ? DEDUP_COMPRESS_OFF : DEDUP_COMPRESS_KEEP,
    .compress_later = !w->off,
    .max_incarnations = -1, .cache_bytes = 1 << 20,
  };

  return dedup_open (w->io, &p, &w->pool, f);
}

static void
open_image (struct world *w)
{
  struct fault f = { 0 };

  if (try_open (w, true, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static struct world *
new_world (void)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 5 },
    .order = 8, .journal_areas = 4, .compress = DEDUP_COMPRESS_ZSTD,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->next_id = 1;
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_image (w);
  return w;
}

static void
assert_contents (struct world *w)
{
  uint8_t got[CLUSTER], want[CLUSTER];
  unsigned g, root;

  for (root = 0; root <= (w->roots[1] != 0); root++)
    for (g = 0; g < NR; g++) {
      fill_third_random (want, CLUSTER, w->ids[root][g]);
      assert_int_equal (dedup_read (w->pool, w->roots[root], got,
                                    g * CLUSTER, CLUSTER), 0);
      if (memcmp (got, want, CLUSTER) != 0)
        fail_msg ("guest cluster %u of root %u is not as it was written", g,
                  root);
    }
}

static void
check_closed (struct world *w)
{
  struct qcow2_check_params q = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
  assert_int_equal (try_open (w, false, &f), 0);
  assert_int_equal (dedup_check (w->pool, &q, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.store_errors, 0);
  assert_contents (w);
  dedup_free (w->pool);
}

static void
free_world (struct world *w)
{
  check_closed (w);
  io_close (w->io);
  free (w);
}

static void
run_jobs (struct world *w)
{
  unsigned i, due;

  assert_int_equal (dedup_flush (w->pool), 0);
  for (i = 0; i < 40; i++) {
    due = dedup_due (w->pool, NULL) & ~(DEDUP_JOB_CLEAN | DEDUP_JOB_MERGE_IDLE |
                                        DEDUP_JOB_GIVE_BACK);
    if (due == 0 || (due == DEDUP_JOB_COMMIT && i > 6))
      break;
    assert_int_equal (dedup_run (w->pool, due & -due), 0);
  }
}

static void
write_id (struct world *w, unsigned root, unsigned g, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill_third_random (buf, CLUSTER, id);
  assert_int_equal (dedup_write (w->pool, w->roots[root], buf, g, 1), 0);
  w->ids[root][g] = id;
}

/* Fills guest clusters of a disk, of ten the last with the same data as the fifth, and one
 * of 7 with data that does not shrink. */
static void
fill (struct world *w, unsigned root, unsigned from, unsigned to)
{
  unsigned g;

  for (g = from; g < to; g++) {
    if (g % 10 == 9)
      write_id (w, root, g, w->ids[root][g - 5]);
    else
      write_id (w, root, g, w->next_id++ * 2 + (g % 7 == 6) * HARD);
    if (g % 100 == 99)
      run_jobs (w);
  }
  run_jobs (w);
}

static struct qcow2_pool_usage
usage (struct world *w)
{
  struct qcow2_pool_usage u;

  assert_int_equal (qcow2_pool_usage (w->pool->base.img, NULL, &u), 0);
  return u;
}

static struct dedup_compress_work *
begin (struct world *w)
{
  const struct dedup_compress_params p = { .all = w->off };
  struct dedup_compress_work *c;

  assert_int_equal (dedup_compress_begin (w->pool, &p, &c), 0);
  return c;
}

static struct dedup_compress_figures
compress_unread (struct world *w)
{
  struct dedup_compress_work *c = begin (w);
  struct dedup_compress_figures f;
  int r;

  while ((r = dedup_compress_step (c)) == 1)
    ;
  assert_int_equal (r, 0);
  dedup_compress_figures (c, &f);
  dedup_compress_end (c);
  return f;
}

/* Runs until the end, and then the jobs that free what was left. */
static struct dedup_compress_figures
compress (struct world *w)
{
  const struct dedup_compress_figures f = compress_unread (w);

  assert_contents (w);
  run_jobs (w);
  return f;
}

/* Counts the distinct contents of the disk that shrink, and those that do not. */
static void
count_contents (const struct world *w, unsigned root, uint64_t *soft, uint64_t *hard)
{
  unsigned g, k;

  *soft = *hard = 0;
  for (g = 0; g < NR; g++) {
    for (k = 0; k < g && w->ids[root][k] != w->ids[root][g]; k++)
      ;
    if (k == g && w->ids[root][g] != 0)
      ++*(w->ids[root][g] & HARD ? hard : soft);
  }
}

/* All that shrinks is compressed, each content once, and nothing else is stored. */
static void
assert_compressed (struct world *w, unsigned root)
{
  const struct qcow2_pool_usage u = usage (w);
  uint64_t soft, hard;

  count_contents (w, root, &soft, &hard);
  assert_int_equal (u.packed, soft);
  assert_int_equal (u.stored_bytes - u.packed_bytes, hard * CLUSTER);
  assert_true (u.packed_bytes < soft * CLUSTER * 45 / 100);     /* a third, and the ends
                                                                 * of sectors and runs */
}

static void
writes_are_plain_until_it_runs (void **state)
{
  struct world *w = new_world ();
  struct dedup_compress_figures f;
  uint64_t soft, hard;

  fill (w, 0, 0, NR);
  count_contents (w, 0, &soft, &hard);
  assert_int_equal (usage (w).packed, 0);
  assert_int_equal (usage (w).stored_bytes, (soft + hard) * CLUSTER);
  f = compress (w);
  assert_int_equal (f.doubtful, 0);
  assert_int_equal (f.read_bytes, NR * CLUSTER);
  assert_int_equal (f.found_bytes, f.read_bytes);
  assert_int_equal (f.compressed_bytes + f.too_large * CLUSTER, f.read_bytes);
  assert_compressed (w, 0);
  free_world (w);
}

/* Data that is written again is found, compressed, and takes nothing. */
static void
what_is_equal_links_the_compressed_data (void **state)
{
  struct world *w = new_world ();
  struct qcow2_pool_usage before, after;
  unsigned g;

  fill (w, 0, 0, NR - 300);
  compress (w);
  before = usage (w);
  for (g = NR - 300; g < NR; g++)
    write_id (w, 0, g, w->ids[0][g - NR / 2]);
  after = usage (w);
  assert_int_equal (after.stored_bytes, before.stored_bytes);
  assert_int_equal (after.packed, before.packed);
  assert_compressed (w, 0);
  free_world (w);
}

/* What did not shrink is tried again only near what was written since. */
static void
nothing_is_tried_for_ever (void **state)
{
  struct world *w = new_world ();
  struct dedup_compress_figures f;
  uint64_t hard = 0;
  unsigned g;

  assert_true (dedup_compress_due (w->pool));   /* what is there from before */
  fill (w, 0, 0, NR);
  compress (w);
  assert_false (dedup_compress_due (w->pool));
  f = compress (w);
  assert_int_equal (f.read_bytes, 0);
  write_id (w, 0, 2 * REGION + 7, w->next_id++);
  assert_true (dedup_compress_due (w->pool));
  f = compress (w);
  for (g = 2 * REGION; g < 3 * REGION; g++)
    hard += (w->ids[0][g] & HARD) != 0;
  assert_int_equal (f.too_large, hard);
  assert_int_equal (f.compressed_bytes, CLUSTER);
  assert_false (dedup_compress_due (w->pool));
  assert_compressed (w, 0);
  check_closed (w);
  open_image (w);                               /* nothing says what was tried */
  f = compress (w);
  assert_true (f.too_large > hard);
  assert_int_equal (f.compressed_bytes, 0);
  free_world (w);
}

/* What a run that was ended did not get to is for the next one, which is due when
 * something was written. */
static void
an_ended_run_forgets_nothing (void **state)
{
  struct world *w = new_world ();
  struct dedup_compress_work *c;
  unsigned i;

  fill (w, 0, 0, NR);
  c = begin (w);
  for (i = 0; i < 8; i++)
    assert_int_equal (dedup_compress_step (c), 1);
  dedup_compress_end (c);
  assert_false (dedup_compress_due (w->pool));
  write_id (w, 0, NR - 1, w->next_id++);
  assert_true (dedup_compress_due (w->pool));
  compress (w);
  assert_compressed (w, 0);
  free_world (w);
}

static void
clients_go_on_meanwhile (void **state)
{
  struct world *w = new_world ();
  struct dedup_compress_work *c;
  unsigned k, n = 0;
  int r;

  fill (w, 0, 0, NR);
  c = begin (w);
  do {
    r = dedup_compress_step (c);
    for (k = 0; k < 4; k++) {
      const unsigned g = splitmix64 (&rng) % NR;

      if (splitmix64 (&rng) % 3)
        write_id (w, 0, g, w->ids[0][splitmix64 (&rng) % NR]);
      else
        write_id (w, 0, g, w->next_id++);
    }
    if (n++ % 8 == 0)
      run_jobs (w);
  } while (r == 1);
  assert_int_equal (r, 0);
  dedup_compress_end (c);
  assert_contents (w);
  while (dedup_compress_due (w->pool))
    compress (w);
  run_jobs (w);
  assert_int_equal (usage (w).stored_bytes % CLUSTER, 0);
  free_world (w);
}

static void
a_crash_at_any_step_loses_nothing (void **state)
{
  struct world *w = new_world ();
  struct dedup_compress_work *c;
  unsigned steps, i, crashes = 0;
  int r = 1;

  fill (w, 0, 0, NR);
  for (steps = 1; r == 1; steps += 5) {
    c = begin (w);
    for (i = 0, r = 1; i < steps && r == 1; i++)
      r = dedup_compress_step (c);
    assert_true (r >= 0);
    dedup_compress_end (c);
    if (steps % 2)
      assert_int_equal (dedup_flush (w->pool), 0);
    dedup_free (w->pool);       /* as a crash */
    open_image (w);
    assert_contents (w);
    crashes++;
    for (i = 0; i < 20; i++)
      write_id (w, 0, splitmix64 (&rng) % NR, w->next_id++);
    assert_int_equal (dedup_flush (w->pool), 0);
  }
  assert_true (crashes > 3);
  free_world (w);
}

/* What clones and snapshots share is compressed once, for all of them, whether their
 * references are counted or not: nothing is stored twice. */
static void
what_clones_share_is_compressed_once (void **state)
{
  struct world *w;
  struct fault fault = { 0 };
  unsigned a, b, s, g, settled;

  for (settled = 0; settled < 2; settled++) {
    w = new_world ();
    assert_int_equal (dedup_disk_create (w->pool, "a", NR * CLUSTER, &a, &fault), 0);
    w->roots[1] = a;
    fill (w, 1, 0, NR);
    assert_int_equal (dedup_disk_clone (w->pool, a, "b", true, &b, &fault), 0);
    assert_int_equal (dedup_disk_clone (w->pool, a, "a@s", false, &s, &fault), 0);
    for (g = 0; g < NR; g += 3)
      write_id (w, 0, g, w->ids[1][g]);   /* one more reference, in another table */
    if (settled)
      assert_int_equal (dedup_disks_settle (w->pool), 0);
    compress (w);
    assert_compressed (w, 1);
    w->roots[1] = b;
    assert_contents (w);
    w->roots[1] = s;
    assert_contents (w);
    assert_int_equal (dedup_disks_settle (w->pool), 0);
    check_closed (w);
    open_image (w);
    assert_compressed (w, 1);
    assert_int_equal (dedup_disk_delete (w->pool, a, &fault), 0);
    assert_int_equal (dedup_disk_delete (w->pool, b, &fault), 0);
    assert_int_equal (dedup_disks_settle (w->pool), 0);
    w->roots[1] = a;            /* the snapshot, when it is opened again */
    free_world (w);
  }
}

/* Data that was written and not compressed when it was cloned is due in the clone, too. */
static void
a_clone_has_the_marks_of_its_source (void **state)
{
  struct world *w = new_world ();
  struct fault fault = { 0 };
  unsigned a, b;

  assert_int_equal (dedup_disk_create (w->pool, "a", NR * CLUSTER, &a, &fault), 0);
  w->roots[1] = a;
  compress (w);                 /* takes all marks */
  fill (w, 1, 0, NR);
  assert_int_equal (dedup_disk_clone (w->pool, a, "b", true, &b, &fault), 0);
  assert_int_equal (dedup_disk_delete (w->pool, a, &fault), 0);
  assert_int_equal (dedup_disks_settle (w->pool), 0);
  w->roots[1] = b;
  compress (w);
  assert_compressed (w, 1);
  w->roots[1] = a;              /* when it is opened again */
  free_world (w);
}

/* Bytes that have rotted get no new entry, so that a scrub finds them. */
static void
rot_is_not_compressed (void **state)
{
  struct world *w = new_world ();
  const struct dedup_scrub_params p = { .restart = true };
  struct dedup_compress_figures f;
  struct dedup_scrub_figures s;
  struct dedup_scrub *sc;
  struct qcow2_extent ext;
  int r;

  fill (w, 0, 0, NR);
  assert_int_equal (qcow2_map (w->pool->base.img, 0, 17 * CLUSTER, CLUSTER, &ext, 1),
                    1);
  assert_int_equal (io_pwrite (w->io, "rot", 3, ext.host_off), 0);
  f = compress_unread (w);
  assert_int_equal (f.doubtful, 1);
  assert_int_equal (dedup_scrub_begin (w->pool, &p, &sc), 0);
  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  dedup_scrub_figures (sc, &s);
  dedup_scrub_end (sc);
  assert_int_equal (r, 0);
  assert_int_equal (s.different, 1);
  write_id (w, 0, 17, w->next_id++);
  free_world (w);
}

/* An image that was written without compression is compressed as a whole. */
static void
all_of_a_plain_image_is_compressed (void **state)
{
  struct world *w = new_world ();

  fill (w, 0, 0, NR);
  check_closed (w);
  w->off = true;
  w->keep = true;
  open_image (w);
  compress (w);
  assert_compressed (w, 0);
  free_world (w);
}

static void
it_needs_compression_of_new_data (void **state)
{
  const struct dedup_compress_params all = { .all = true }, p = { .all = false };
  struct world *w = new_world ();
  struct dedup_compress_work *c, *other;

  fill (w, 0, 0, NR);
  c = begin (w);
  assert_int_equal (dedup_compress_begin (w->pool, &all, &other), -EBUSY);
  dedup_compress_end (c);
  check_closed (w);
  w->off = w->keep = true;
  open_image (w);
  assert_int_equal (dedup_compress_begin (w->pool, &p, &c), -ENOTSUP);
  assert_false (dedup_compress_due (w->pool));
  check_closed (w);
  w->keep = false;
  open_image (w);
  assert_int_equal (dedup_compress_begin (w->pool, &all, &c), -ENOTSUP);
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (writes_are_plain_until_it_runs),
    cmocka_unit_test (what_is_equal_links_the_compressed_data),
    cmocka_unit_test (nothing_is_tried_for_ever),
    cmocka_unit_test (an_ended_run_forgets_nothing),
    cmocka_unit_test (clients_go_on_meanwhile),
    cmocka_unit_test (a_crash_at_any_step_loses_nothing),
    cmocka_unit_test (what_clones_share_is_compressed_once),
    cmocka_unit_test (a_clone_has_the_marks_of_its_source),
    cmocka_unit_test (rot_is_not_compressed),
    cmocka_unit_test (all_of_a_plain_image_is_compressed),
    cmocka_unit_test (it_needs_compression_of_new_data),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
