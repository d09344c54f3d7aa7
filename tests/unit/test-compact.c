/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests compaction: clusters with much dead compressed data are emptied and freed, and
 * guests see nothing of it.
 *
 * On a byte store in memory.
 *
 * Breaks if: a guest cluster changes; dead space stays, or data goes back to where it
 * was; the index leads to the old place; data that has rotted gets a new entry; what
 * snapshots and clones share is copied; a crash at any step loses something; or what is
 * foretold of the work is not what it is.
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
#include "compact-plan.h"
#include "entries.h"
#include "image.h"
#include "op.h"
#include "pool.h"
#include "splitmix.h"
#include "third-random.h"
#include "value.h"

#define CLUSTER 4096u
#define NR 1500u                /* guest clusters */
#define MAX_STEPS 100000

static uint64_t rng;

struct world {
  struct io_store *io;
  struct dedup_pool *pool;
  bool off;                     /* new data is not compressed */
  bool ends;                    /* compactions count lost ends of sectors */
  uint64_t next_id;
  uint64_t ids[2][NR];          /* of the active disk, and one more */
  unsigned roots[2];            /* ... their numbers; 0: there is none more */
};

static int
try_open (struct world *w, bool writable, struct fault *f)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = true,
    .compress = w->off ? DEDUP_COMPRESS_OFF : DEDUP_COMPRESS_KEEP,
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

static void
write_again (struct world *w, unsigned share)
{
  unsigned g;

  for (g = 0; g < NR; g++)
    if (splitmix64 (&rng) % 100 < share)
      write_id (w, 0, g, w->next_id++);
  run_jobs (w);
}

/* Fills the disk, some data twice, and writes SHARE of 100 again. */
static void
age (struct world *w, unsigned share)
{
  unsigned g;

  for (g = 0; g < NR; g++) {
    write_id (w, 0, g, g % 10 == 9 ? w->ids[0][g - 5] : w->next_id++);
    if (g % 100 == 99)
      run_jobs (w);
  }
  write_again (w, share);
}

/* Fills the disk with data that is there three times, and writes 60 of 100 again, with
 * nothing new. */
static void
age_shared (struct world *w)
{
  unsigned g;

  for (g = 0; g < NR; g++) {
    write_id (w, 0, g, g < NR / 3 ? w->next_id++ : w->ids[0][g - NR / 3]);
    if (g % 100 == 99)
      run_jobs (w);
  }
  for (g = 0; g < NR / 3; g++)
    if (splitmix64 (&rng) % 100 < 60) {
      write_id (w, 0, g, 1);
      write_id (w, 0, g + NR / 3, 2);
      write_id (w, 0, g + 2 * (NR / 3), 3);
    }
  run_jobs (w);
}

/* Returns whether age has written guest cluster G again. */
static bool
is_rewritten (const struct world *w, unsigned g)
{
  return w->ids[0][g] > NR - NR / 10;   /* a tenth was no new data */
}

static struct qcow2_pool_usage
usage (struct world *w)
{
  struct qcow2_pool_usage u;

  assert_int_equal (qcow2_pool_usage (w->pool->base.img, NULL, &u), 0);
  return u;
}

static struct dedup_compact *
begin (struct world *w, size_t few)
{
  const struct dedup_compact_params p = {
    .max_packed = few, .max_clusters = few, .ends = w->ends,
  };
  struct dedup_compact *c;

  assert_int_equal (dedup_compact_begin (w->pool, &p, &c), 0);
  return c;
}

/* Compacts with room for FEW of all, 0: for many. */
static struct dedup_compact_figures
compact (struct world *w, size_t few)
{
  struct dedup_compact *c = begin (w, few);
  struct dedup_compact_figures f;
  int r;

  while ((r = dedup_compact_step (c)) == 1)
    ;
  assert_int_equal (r, 0);
  dedup_compact_figures (c, &f);
  dedup_compact_end (c);
  assert_int_equal (w->pool->writer.nr_emptying, 0);
  return f;
}

/* What is dead at most: a tenth, and what the run that is open has not filled yet in the
 * cluster where it ends, and in one that a piece crosses into. */
static void
assert_compact (struct world *w)
{
  const struct qcow2_pool_usage u = usage (w);

  if (qcow2_usage_dead (&u) > u.packed_bytes / 10 + 2 * CLUSTER)
    fail_msg ("%llu of %llu bytes are dead",
              (unsigned long long) qcow2_usage_dead (&u),
              (unsigned long long) u.packed_bytes);
}

static void
dead_space_comes_back (void **state)
{
  static const size_t few[] = { 0, 4, 37 };
  struct dedup_compact_figures f;
  struct qcow2_pool_usage before, after;
  struct world *w;
  unsigned i;

  for (i = 0; i < 3; i++) {
    w = new_world ();
    age (w, 50);
    before = usage (w);
    assert_true (qcow2_usage_dead (&before) > before.packed_bytes / 5);
    f = compact (w, few[i]);
    assert_true (f.clusters > 50 && f.moved_bytes > 100 * CLUSTER);
    assert_int_equal (f.left + f.doubtful, 0);
    assert_contents (w);
    run_jobs (w);
    after = usage (w);
    assert_compact (w);
    assert_true (after.packed_bytes < before.packed_bytes);
    assert_int_equal (after.packed, before.packed);     /* all are shared still */
    free_world (w);
  }
}

/* A second compaction finds nothing to do, and what is written again is found. */
static void
the_index_leads_to_the_new_places (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact_figures f, again;
  struct qcow2_pool_usage before, after;
  unsigned g;

  age (w, 50);
  f = compact (w, 0);
  run_jobs (w);
  again = compact (w, 0);
  assert_true (f.moved_bytes > 0);
  assert_int_equal (again.moved_bytes, 0);
  run_jobs (w);
  before = usage (w);
  for (g = 0; g < 300; g++)
    write_id (w, 0, g, w->ids[0][NR - 1 - g]);
  after = usage (w);
  assert_true (after.stored_bytes <= before.stored_bytes);
  assert_true (after.packed <= before.packed);
  free_world (w);
}

/* Each operation of one cluster loses the end of a sector; none is dead.  What is moved
 * together loses one.  That is 6 % of all here, where all data has nearly the
 * same length; it counts as 13 %. */
static void
lost_ends_of_sectors_come_back (void **state)
{
  static const size_t few[] = { 0, 4, 37 };
  struct dedup_compact_figures f;
  struct qcow2_pool_usage before, after;
  struct world *w;
  unsigned i;

  for (i = 0; i < 3; i++) {
    w = new_world ();
    age (w, 0);
    before = usage (w);
    f = compact (w, few[i]);
    assert_int_equal (f.moved_bytes, 0);
    w->ends = true;
    f = compact (w, few[i]);
    assert_true (f.moved_bytes > NR / 3 * CLUSTER);
    run_jobs (w);
    after = usage (w);
    assert_int_equal (after.packed, before.packed);
    if (few[i] == 0 && after.packed_bytes >= before.packed_bytes / 20 * 19)
      fail_msg ("%llu bytes of %llu are left", (unsigned long long) after.packed_bytes,
                (unsigned long long) before.packed_bytes);
    free_world (w);
  }
}

static void
a_crash_at_any_step_loses_nothing (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact *c;
  unsigned steps, i, crashes = 0;
  int r = 1;

  age (w, 50);
  for (steps = 1; r == 1; steps += 3) {
    c = begin (w, 30);
    for (i = 0, r = 1; i < steps && r == 1; i++)
      r = dedup_compact_step (c);
    assert_true (r >= 0);
    dedup_compact_end (c);
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

static void
clients_go_on_meanwhile (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact *c;
  unsigned k, n = 0;
  int r;

  age (w, 50);
  c = begin (w, 40);
  do {
    r = dedup_compact_step (c);
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
  dedup_compact_end (c);
  assert_contents (w);
  free_world (w);
}

/* Nothing is copied that a clone and its source share, until one of them has it
 * alone. */
static void
what_clones_share_stays (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact_figures f;
  struct qcow2_pool_usage before, after;
  struct fault fault = { 0 };
  unsigned g, a, b;

  assert_int_equal (dedup_disk_create (w->pool, "a", NR * CLUSTER, &a, &fault),
                    0);
  w->roots[1] = a;
  for (g = 0; g < NR; g++)
    write_id (w, 1, g, w->next_id++);
  for (g = 0; g < NR; g += 2)
    write_id (w, 1, g, w->next_id++);
  run_jobs (w);
  assert_int_equal (dedup_disk_clone (w->pool, a, "b", true, &b, &fault), 0);
  before = usage (w);
  f = compact (w, 0);
  assert_int_equal (f.clusters, 0);
  assert_int_equal (f.moved_bytes, 0);
  assert_true (f.shared_dead_bytes > before.packed_bytes / 5);
  assert_true (f.shared_dead_bytes <= f.packed_dead_bytes);
  after = usage (w);
  assert_int_equal (after.stored_bytes, before.stored_bytes);
  assert_int_equal (dedup_disk_delete (w->pool, b, &fault), 0);
  assert_int_equal (dedup_disks_settle (w->pool), 0);
  f = compact (w, 0);
  assert_int_equal (f.left, 0);
  assert_int_equal (f.shared_dead_bytes, 0);
  assert_true (f.moved_bytes > NR / 4 * CLUSTER);
  run_jobs (w);
  assert_compact (w);
  free_world (w);
}

/* What a disk has beside data of a snapshot is not moved either: it would take more
 * space, and no cluster would be free.  Other clusters are emptied. */
static void
what_lies_beside_shared_data_stays (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact_figures f;
  struct qcow2_pool_usage before, after;
  struct fault fault = { 0 };
  uint64_t entries[NR / 2];
  unsigned g, a, b;

  assert_int_equal (dedup_disk_create (w->pool, "a", NR * CLUSTER, &a, &fault),
                    0);
  w->roots[1] = a;
  for (g = 0; g < NR; g++)
    write_id (w, 1, g, w->next_id++);
  for (g = 0; g < NR / 2; g++)  /* data that stays in use, of the active disk, too */
    write_id (w, 0, g, w->ids[1][2 * g + 1]);
  for (g = 0; g < NR; g += 2)
    write_id (w, 1, g, w->next_id++);
  run_jobs (w);
  assert_int_equal (dedup_disk_clone (w->pool, a, "a@b", false, &b, &fault), 0);
  assert_int_equal (dedup_disks_settle (w->pool), 0);
  for (g = 0; g < NR / 2; g++)
    entries[g] = get_entry (w->pool, g);

  f = compact (w, 0);
  assert_int_equal (f.clusters + f.moved_bytes, 0);
  assert_true (f.shared_dead_bytes > 0);
  for (g = NR / 2; g < NR; g++)
    write_id (w, 0, g, w->next_id++);
  for (g = NR / 2; g < NR; g += 2)
    write_id (w, 0, g, w->next_id++);
  run_jobs (w);
  before = usage (w);
  f = compact (w, 0);
  assert_true (f.moved_bytes > NR / 8 * CLUSTER);
  assert_true (f.moved_bytes <= NR / 2 * CLUSTER);
  run_jobs (w);
  after = usage (w);
  assert_true (after.stored_bytes < before.stored_bytes);
  assert_true (qcow2_usage_dead (&after) <=
               f.shared_dead_bytes + after.packed_bytes / 10 + 2 * CLUSTER);
  for (g = 0; g < NR / 2; g++)
    assert_int_equal (get_entry (w->pool, g), entries[g]);
  free_world (w);
}

/* Bytes that have rotted get no new entry: a scrub finds them before and after. */
static void
rot_is_not_moved (void **state)
{
  struct world *w = new_world ();
  struct dedup_compact_figures f;
  struct dedup_scrub_figures s;
  struct dedup_scrub *sc;
  const struct dedup_scrub_params p = { .restart = true };
  struct qcow2_extent a, b;
  uint8_t buf[2 * CLUSTER];
  uint64_t off_a, off_b, len_a, len_b;
  unsigned g;
  int r;

  age (w, 50);
  /* Data that nobody shares, in a cluster that has little else in use, and a neighbour
   * whose bytes fit. */
  for (g = 1; g + 1 < NR; g++) {
    if (g % 5 == 4 || is_rewritten (w, g) || !is_rewritten (w, g - 1) ||
        !is_rewritten (w, g + 1))
      continue;
    assert_int_equal (qcow2_map (w->pool->base.img, 0, g * CLUSTER, CLUSTER, &a,
                                 1), 1);
    assert_int_equal (qcow2_map (w->pool->base.img, 0, (g + 1) * CLUSTER,
                                 CLUSTER, &b, 1), 1);
    qcow2_compressed_extent (w->pool->base.img, a.entry, &off_a, &len_a);
    qcow2_compressed_extent (w->pool->base.img, b.entry, &off_b, &len_b);
    if (len_b <= len_a)
      break;
  }
  assert_true (g + 1 < NR);
  assert_int_equal (io_pread (w->io, buf, len_b, off_b), 0);
  assert_int_equal (io_pwrite (w->io, buf, len_b, off_a), 0);
  f = compact (w, 0);
  assert_int_equal (f.doubtful, 1);
  run_jobs (w);
  assert_int_equal (dedup_scrub_begin (w->pool, &p, &sc), 0);
  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  dedup_scrub_figures (sc, &s);
  dedup_scrub_end (sc);
  assert_int_equal (r, 0);
  assert_true (s.different >= 1);
  for (g = 0; g < NR; g++)
    write_id (w, 0, g, w->next_id++);
  free_world (w);
}

static void
it_needs_compression_of_new_data (void **state)
{
  const struct dedup_compact_params p = { .percent = 0 };
  struct world *w = new_world ();
  struct dedup_compact *c, *other;

  age (w, 50);
  c = begin (w, 0);
  assert_int_equal (dedup_compact_begin (w->pool, &p, &other), -EBUSY);
  dedup_compact_end (c);
  check_closed (w);
  w->off = true;
  open_image (w);
  assert_int_equal (dedup_compact_begin (w->pool, &p, &c), -ENOTSUP);
  free_world (w);
}

struct foretold {
  uint64_t handled, total;
};

/* Compacts an image of which half was written over, so that PERCENT may stay dead.
 * Returns what was foretold when half of the work was done, and in *ALL what it was. */
static struct foretold
foretold_at_half (unsigned percent, bool shared, uint64_t *all)
{
  const struct dedup_compact_params p = { .percent = percent };
  struct foretold *v = calloc (MAX_STEPS, sizeof *v), at_half;
  struct world *w = new_world ();
  struct dedup_compact_figures f;
  struct dedup_compact *c;
  size_t n = 0, i = 0;
  int r;

  assert_non_null (v);
  if (shared)
    age_shared (w);
  else
    age (w, 50);
  assert_int_equal (dedup_compact_begin (w->pool, &p, &c), 0);
  do {
    r = dedup_compact_step (c);
    run_jobs (w);
    dedup_compact_figures (c, &f);
    assert_true (n < MAX_STEPS);
    v[n++] = (struct foretold) { f.handled_bytes, f.to_move_bytes };
  } while (r == 1);
  assert_int_equal (r, 0);
  assert_int_equal (f.handled_bytes, f.moved_bytes);
  dedup_compact_end (c);
  free_world (w);
  while (v[i].handled < f.handled_bytes / 2)
    i++;
  at_half = v[i];
  free (v);
  *all = f.handled_bytes;
  return at_half;
}

/* Progress at half of what will have been moved is true within 5 %.  In 18 images like
 * these it was off by 2 % at the most.  Where much is shared, most clusters are emptied,
 * into free clusters that lie alone. */
static void
work_is_foretold (void **state)
{
  static const struct { unsigned percent; bool shared; } v[] = {
    { 0, false }, { 1, false }, { 3, false }, { 0, true }, { 1, true },
  };
  struct foretold f;
  uint64_t all;
  double off;
  unsigned i;

  for (i = 0; i < sizeof v / sizeof v[0]; i++) {
    f = foretold_at_half (v[i].percent, v[i].shared, &all);
    assert_true (all > 300 * CLUSTER);
    off = (double) f.handled / (double) f.total - (double) f.handled / (double) all;
    if (off > 0.05 || off < -0.05)
      fail_msg ("%llu bytes were moved in all, %llu had been foretold",
                (unsigned long long) all, (unsigned long long) f.total);
  }
}

/* Returns what is foretold for a file of 20,000 clusters from a sample of MAX, and the
 * size of the sample in *NR. */
static uint64_t
foretell (size_t max, unsigned percent, size_t *nr)
{
  struct dedup_plan plan;
  uint64_t seed = 17, k, moves;
  uint32_t crosses = 0;

  assert_int_equal (dedup_plan_init (&plan, max), 0);
  for (k = 0; k < 20000; k++) {
    const uint32_t live = (uint32_t) (splitmix64 (&seed) % 5 < 3 ? CLUSTER
                                      : 600 + splitmix64 (&seed) % 3000);
    const struct dedup_plan_cluster c = {
      .host_idx = k, .live = live, .refs = 4, .pieces = 3, .head = crosses,
      .tail = 300 * (splitmix64 (&seed) % 4 > 0), .stays = k % 10 == 0,
    };

    crosses = c.tail;
    if (dedup_plan_next (&plan))
      dedup_plan_add (&plan, &c);
  }
  *nr = plan.nr;
  moves = dedup_plan_moves (&plan, CLUSTER, percent, DEDUP_COMPACT_PASSES);
  dedup_plan_destroy (&plan);
  return moves;
}

/* The seed is fixed, and what is foretold from a tenth of the clusters differs by 1 to 5 %. */
static void
a_sample_foretells_as_all_would (void **state)
{
  size_t nr_all, nr;
  uint64_t all, few;
  unsigned percent;

  for (percent = 1; percent < 20; percent += 6) {
    all = foretell (20000, percent, &nr_all);
    few = foretell (2560, percent, &nr);
    assert_int_equal (nr_all, 20000);
    assert_true (nr >= 1280 && nr <= 2560);
    assert_true (all > 4000 && few * 10 > all * 9 && few * 10 < all * 11);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (dead_space_comes_back),
    cmocka_unit_test (the_index_leads_to_the_new_places),
    cmocka_unit_test (a_crash_at_any_step_loses_nothing),
    cmocka_unit_test (clients_go_on_meanwhile),
    cmocka_unit_test (what_clones_share_stays),
    cmocka_unit_test (what_lies_beside_shared_data_stays),
    cmocka_unit_test (rot_is_not_moved),
    cmocka_unit_test (it_needs_compression_of_new_data),
    cmocka_unit_test (work_is_foretold),
    cmocka_unit_test (a_sample_foretells_as_all_would),
    cmocka_unit_test (lost_ends_of_sectors_come_back),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
