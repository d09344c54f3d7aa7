/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests index-memory= against a plain model: blocks that are written again and
 * again are never stored twice, however much other data comes; a block that was
 * written once, long ago, is forgotten, a recent one is not; and the index
 * never takes more memory than it may.  This holds through closes, crashes,
 * merges, and with tables of every kind.
 *
 * Breaks if: a hit does not renew its entry, or hints hide it; merges mix old
 * entries with young ones; young entries are dropped; or something takes memory
 * that is not counted.
 *
 * WINDOW_SEED=n
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "pool.h"
#include "index-private.h"
#include "splitmix.h"

#define BITS 9
#define CLUSTER (1u << BITS)

/* Where things are: homes of hot blocks, places where half of them are written
 * to, homes of cold blocks, the stream's. */
#define HOT 20
#define COLD 200
#define COLD_AT (2 * HOT)
#define STREAM_AT (COLD_AT + COLD)
#define NR 8192

static uint64_t rng;

static uint64_t
rnd (uint64_t n)
{
  return splitmix64 (&rng) % n;
}

struct kind {
  unsigned order;
  uint32_t max_incarnations;
  bool verify;
};

struct world {
  const struct kind *kind;
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t bound, most;
  uint64_t contents[NR];
  uint64_t next;                 /* contents that never was */
  uint64_t renewed, forgotten;
};

static int
try_open (struct world *w, uint64_t bound, struct fault *f)
{
  struct dedup_open_params p = { .path = "memory", .writable = true,
    .dedup = true, .verify = w->kind->verify, .max_incarnations = -1,
    .index_memory = bound, .cache_bytes = 8 << 20 };

  return dedup_open (w->io, &p, &w->d, f);
}

static void
open_world (struct world *w, uint64_t bound)
{
  struct fault f = { 0 };

  if (try_open (w, bound, &f) < 0)
    fail_msg ("open: %s", f.msg);
  w->bound = bound;
}

static struct world *
make_world (const struct kind *kind)
{
  struct dedup_create_params c = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = BITS,
               .refcount_order = 4 },
    .order = kind->order, .journal_areas = 4,
    .max_incarnations = kind->max_incarnations,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->kind = kind;
  w->next = 1;
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &c, &f) < 0)
    fail_msg ("%s", f.msg);
  return w;
}

static void
leave_session (struct world *w, bool crash)
{
  struct dedup_stats s;

  dedup_get_stats (w->d, &s);
  w->renewed += s.renewed;
  w->forgotten += s.forgotten;
  assert_int_equal (crash ? dedup_flush (w->d) : dedup_finish (w->d), 0);
  dedup_free (w->d);
}

static void
fill (uint8_t *p, uint64_t contents)
{
  memset (p, 0, CLUSTER);
  memcpy (p, &contents, sizeof contents);
}

/* How many clusters that stored. */
static uint64_t
put (struct world *w, uint64_t at, uint64_t contents)
{
  const uint64_t before = w->d->writer.counts.stored;
  uint8_t buf[CLUSTER];

  fill (buf, contents);
  assert_int_equal (dedup_write (w->d, 0, buf, at, 1), 0);
  w->contents[at] = contents;
  return w->d->writer.counts.stored - before;
}

static void
check_memory (struct world *w)
{
  struct dedup_stats s;

  dedup_get_stats (w->d, &s);
  if (w->bound && s.index_memory_bytes > w->bound)
    fail_msg ("%" PRIu64 " bytes of %" PRIu64, s.index_memory_bytes,
              w->bound);
  w->most = MAX_OF (w->most, s.index_memory_bytes);
}

static void
run_jobs (struct world *w, unsigned jobs)
{
  unsigned job;

  for (job = 1; job <= DEDUP_JOB_MERGE; job <<= 1)
    if (jobs & job) {
      assert_int_equal (dedup_run (w->d, job), 0);
      check_memory (w);
    }
}

static void
work (struct world *w)
{
  unsigned urgent;

  dedup_due (w->d, &urgent);
  run_jobs (w, urgent);
}

/* Hot blocks: even ones go elsewhere, odd ones where they are already. */
static void
put_hot (struct world *w, uint64_t i)
{
  const uint64_t hot = i % HOT, at = hot % 2 ? hot : HOT + rnd (HOT);

  if (put (w, at, w->contents[hot]) != 0)
    fail_msg ("hot block %" PRIu64 " was stored again", hot);
}

static void
put_stream (struct world *w)
{
  const uint64_t room = NR - STREAM_AT;

  put (w, STREAM_AT + w->next % room, w->next);
  w->next++;
}

static void
stream (struct world *w, uint64_t nr, bool restless)
{
  uint64_t i;

  for (i = 0; i < nr; i++) {
    put_stream (w);
    if (i % 8 == 0)
      put_hot (w, i / 8);
    if (i % 16 == 0)
      work (w);
    if (restless && rnd (1500) == 0) {
      leave_session (w, rnd (2));
      open_world (w, w->bound);
    }
  }
}

static void
assert_contents (struct world *w)
{
  uint8_t want[CLUSTER], got[CLUSTER];
  uint64_t i;

  for (i = 0; i < NR; i++) {
    fill (want, w->contents[i]);
    assert_int_equal (dedup_read (w->d, 0, got, i * CLUSTER, CLUSTER), 0);
    assert_memory_equal (got, want, CLUSTER);
  }
}

static void
end_world (struct world *w)
{
  struct qcow2_check_params p = { .problem = NULL };
  struct dedup_check_result r;
  struct fault f = { 0 };
  struct dedup_open_params o = { .path = "memory", .dedup = true,
    .verify = true, .max_incarnations = -1, .cache_bytes = 8 << 20 };

  assert_contents (w);
  leave_session (w, false);
  assert_int_equal (dedup_open (w->io, &o, &w->d, &f), 0);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.store_errors, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
}

static uint64_t
least (const struct kind *k)
{
  return dedup_index_least_memory (k->order, k->max_incarnations > 0, dedup_hints_size (NR));
}

/* Entries that tables hold in this bound, more or less. */
static void
check_memory_limit (const struct kind *kind, uint64_t bound)
{
  struct world *w = make_world (kind);
  uint64_t i, again;

  open_world (w, bound);
  for (i = 0; i < HOT; i++)
    put (w, i, w->next++);
  for (i = 0; i < COLD; i++)
    put (w, COLD_AT + i, w->next++);
  stream (w, 18000, true);
  /* The last of the stream are known, the cold ones are not. */
  for (i = 1, again = 0; i <= 300; i++)
    again += put (w, STREAM_AT + rnd (500), w->next - i);
  assert_int_equal (again, 0);
  for (i = 0, again = 0; i < COLD; i++)
    again += put (w, STREAM_AT + 1000 + i, w->contents[COLD_AT + i]);
  assert_int_equal (again, COLD);
  for (i = 0; i < HOT; i++)
    put_hot (w, i);
  assert_true (w->most > bound / 2);
  assert_true (w->bound == bound);
  end_world (w);
}

static void
test_hot_blocks_stay_and_cold_ones_go (void **state)
{
  const struct kind k = { 5, 0, true };

  check_memory_limit (&k, least (&k));
  check_memory_limit (&k, least (&k) * 5 / 4);
}

static void
test_an_exact_index_forgets_as_well (void **state)
{
  const struct kind k = { 5, 0, false };

  check_memory_limit (&k, least (&k));
}

static void
test_incarnations_are_bounded_as_well (void **state)
{
  const struct kind k = { 5, 1000, true };

  check_memory_limit (&k, least (&k));
}

/* An index that grew without a bound, with a large bottom and with
 * incarnations above it, gets one: at once, a part at a time. */
static void
test_a_bound_on_a_large_index (void **state)
{
  const struct kind k = { 4, 0, true };
  struct world *w = make_world (&k);
  struct dedup_stats before, after;
  unsigned urgent;
  uint64_t i;

  open_world (w, 0);
  for (i = 0; i < HOT; i++)
    put (w, i, w->next++);
  for (i = 0; i < 7000; i++) {
    if (i == 1000)
      w->d->store.index->manifest->max_incarnations = 1000;
    if (i == 2000)
      w->d->store.index->manifest->max_incarnations = 0;
    put_stream (w);
    if (i % 16 == 0 && i < 2000)
      work (w);
    else if (i % 16 == 0) {              /* incarnations stay */
      dedup_due (w->d, &urgent);
      run_jobs (w, urgent & ~DEDUP_JOB_MERGE);
    }
  }
  dedup_get_stats (w->d, &before);
  assert_true (before.nr_incarnations > 5 && before.nr_runs > 1);
  assert_true (before.index_memory_bytes > least (&k));
  leave_session (w, false);
  open_world (w, least (&k));
  while (dedup_due (w->d, NULL) & DEDUP_JOB_FILTERS)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FILTERS), 0);
  check_memory (w);
  dedup_get_stats (w->d, &after);
  assert_true (after.index_entries < before.index_entries);
  assert_true (after.index_entries > before.index_entries / 8);
  for (i = 0; i < HOT; i++)              /* they may be forgotten, once */
    put (w, HOT + i, w->contents[i]);
  for (i = 0; i < HOT; i++)
    put (w, i, w->contents[HOT + i]);
  stream (w, 9000, false);
  assert_true (w->d->writer.counts.renewed > 0);
  end_world (w);
}

/* Incarnations from before become runs within the bound: nothing that it has
 * room for is lost, and what is older goes before what is younger. */
static void
test_conversions_stay_within_the_bound (void **state)
{
  const struct kind k = { 9, 1000, true };
  const uint64_t runs_only = dedup_index_least_memory (9, false, dedup_hints_size (NR));
  struct world *w = make_world (&k);
  struct dedup_stats s;
  uint64_t i, entries, again;

  open_world (w, 0);
  while (w->d->store.index->manifest->nr_incarnations < 14) {
    put_stream (w);
    run_jobs (w, dedup_due (w->d, NULL) & DEDUP_JOB_FREEZE);
  }
  leave_session (w, false);
  w->kind = &(const struct kind) { 9, 0, true };
  open_world (w, runs_only);
  w->d->store.index->manifest->max_incarnations = 0;
  dedup_get_stats (w->d, &s);
  entries = s.index_entries;
  assert_int_equal (s.nr_incarnations, 14);
  __atomic_store_n (&w->d->store.index->merge_due, true, __ATOMIC_RELAXED);
  while (dedup_due (w->d, NULL) & DEDUP_JOB_MERGE)
    run_jobs (w, DEDUP_JOB_MERGE);
  dedup_get_stats (w->d, &s);
  assert_int_equal (s.nr_incarnations, 0);
  assert_int_equal (s.index_entries, entries);
  dedup_hints_wipe (w->d->writer.hints);
  for (i = 1, again = 0; i <= 4000; i++)
    again += put (w, COLD_AT + rnd (COLD), w->next - i);
  assert_int_equal (again, 0);
  end_world (w);
}

/* Too small a bound is refused, in a sentence, with nothing changed. */
static void
test_a_bound_that_is_too_small_is_refused (void **state)
{
  const struct kind k = { 6, 0, true };
  struct world *w = make_world (&k);
  struct fault f = { 0 };
  char number[32];

  assert_int_equal (try_open (w, least (&k) - 1, &f), -EINVAL);
  snprintf (number, sizeof number, "%" PRIu64, least (&k));
  assert_non_null (strstr (f.msg, number));
  open_world (w, least (&k));
  stream (w, 10, false);
  end_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_hot_blocks_stay_and_cold_ones_go),
    cmocka_unit_test (test_an_exact_index_forgets_as_well),
    cmocka_unit_test (test_incarnations_are_bounded_as_well),
    cmocka_unit_test (test_a_bound_on_a_large_index),
    cmocka_unit_test (test_conversions_stay_within_the_bound),
    cmocka_unit_test (test_a_bound_that_is_too_small_is_refused),
  };
  const char *seed = getenv ("WINDOW_SEED");

  rng = seed ? strtoull (seed, NULL, 0) : (uint64_t) time (NULL);
  printf ("WINDOW_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
