/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the index as a library, without an image: on plain storage in memory or
 * in a file, against a plain model, through freezes, merges, conversions,
 * closes and crashes.
 *
 * Breaks if: a lookup gives another value than the last one entered, or none
 * where there is one; an area is freed that the durable manifest lists; a table
 * is listed before it is durable; the mark passes entries that no table has; or a
 * walk gives an older entry of a value a lower rank than the youngest one has.
 *
 * INDEX_SEED=n INDEX_STEPS=n
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "../index-model.h"
#include "splitmix.h"

static uint64_t rng;

static uint64_t
env (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s ? strtoull (s, NULL, 0) : otherwise;
}

static uint64_t
choose (void *opaque, uint64_t n)
{
  return splitmix64 (&rng) % n;
}

static uint64_t
choose_lowest (void *opaque, uint64_t n)
{
  return 0;
}

/* How often each kind of work is done, of 1000 times. */
static const unsigned usual[MODEL_NR_WORKS] = {
  [MODEL_PUT] = 600, [MODEL_DELETE] = 120, [MODEL_FREEZE] = 20,
  [MODEL_STEP_START] = 40, [MODEL_STEP_WORK] = 40, [MODEL_STEP_FINISH] = 40,
  [MODEL_IDLE] = 4, [MODEL_LOAD] = 8, [MODEL_REOPEN] = 2, [MODEL_CRASH] = 4,
  [MODEL_CHECK] = 100, [MODEL_DOUBT] = 1, [MODEL_LIMIT] = 1,
  [MODEL_NO_SPACE] = 2, [MODEL_SPACE] = 4, [MODEL_REAP] = 20,
};

static enum model_work
choose_work (const unsigned *weights)
{
  uint64_t sum = 0, n;
  unsigned i;

  for (i = 0; i < MODEL_NR_WORKS; i++)
    sum += weights[i];
  n = choose (NULL, sum);
  for (i = 0; n >= weights[i]; i++)
    n -= weights[i];
  return (enum model_work) i;
}

static void
run (struct model *m, const unsigned *weights, uint64_t steps)
{
  uint64_t i;

  m->choose = choose;
  for (i = 0; i < steps; i++) {
    model_do (m, choose_work (weights));
    if (i % 500 == 0)
      model_check_all (m);
  }
  model_check_all (m);
}

static void
test_runs_against_a_model (void **state)
{
  const uint64_t steps = env ("INDEX_STEPS", 20000);
  unsigned order, i;

  for (order = 4; order < 7; order++) {
    struct model *m = malloc (sizeof *m);

    assert_non_null (m);
    model_init (m, order, 0);
    run (m, usual, steps);
    for (i = 0; i < MODEL_NR_WORKS; i++)
      assert_true (usual[i] == 0 || m->done[i] > 0);
    model_free (m);
    free (m);
  }
}

static void
test_a_limit_forgets_the_oldest (void **state)
{
  unsigned weights[MODEL_NR_WORKS];
  struct model *m = malloc (sizeof *m);

  assert_non_null (m);
  memcpy (weights, usual, sizeof weights);
  weights[MODEL_LIMIT] = 0;
  model_init (m, 4, 6);
  m->may_lose = true;
  run (m, weights, env ("INDEX_STEPS", 20000) / 2);
  model_free (m);
  free (m);
}

static void
load_all (struct model *m)
{
  while (dedup_index_due (m->x) & DEDUP_INDEX_LOAD)
    model_do (m, MODEL_LOAD);
}

static struct dedup_index_figures
figures (struct model *m)
{
  struct dedup_index_figures f;
  LOCK_FOR_SCOPE (&m->lock);

  dedup_index_figures_locked (m->x, &f);
  return f;
}

/* The bound holds whether or not the host has space for the last list: see
 * test_a_bound_holds_on_a_host_without_space. */
static void
test_a_bound_on_memory_forgets_the_oldest (void **state)
{
  unsigned weights[MODEL_NR_WORKS];
  struct model *m = malloc (sizeof *m);

  assert_non_null (m);
  memcpy (weights, usual, sizeof weights);
  weights[MODEL_MEMORY] = 1;
  model_init (m, 4, 0);
  run (m, weights, env ("INDEX_STEPS", 20000) / 2);
  if (m->memory == 0)
    model_do (m, MODEL_MEMORY);
  while (m->done[MODEL_PUT] % 2000 != 0)
    model_do (m, MODEL_PUT);
  load_all (m);
  assert_true (figures (m).memory_bytes <= m->memory);
  model_free (m);
  free (m);
}

/* Opens an index whose filters take more than the bound, on a host that has no
 * space for the list without the oldest tables: that list is owed.  Lookups ask
 * the oldest tables until it is durable, as a crash may bring them back, but
 * their filters are not loaded. */
static void
bound_without_space (uint32_t max_incarnations)
{
  struct model *m = malloc (sizeof *m);
  const uint64_t bound = dedup_index_least_memory (4, max_incarnations > 0, 0);
  unsigned i;

  assert_non_null (m);
  model_init (m, 4, max_incarnations);
  m->choose = choose_lowest;
  for (i = 0; i < 5 * MODEL_KEYS; i++)   /* half of the keys only once */
    model_put (m, i < MODEL_KEYS ? i : i % (MODEL_KEYS / 2));
  load_all (m);
  assert_true (figures (m).memory_bytes > bound);
  model_close (m);
  model_copy (m->plain.io, m->durable);
  m->memory = bound;
  m->no_space = true;
  model_open (m);
  assert_true (m->owed);
  load_all (m);
  assert_true (figures (m).memory_bytes <= bound);
  model_check_all (m);           /* nothing is lost yet */
  m->may_lose = true;
  model_pay (m);
  load_all (m);
  assert_true (figures (m).memory_bytes <= bound);
  assert_true (figures (m).forgotten > MODEL_KEYS / 2);
  model_check_all (m);
  model_free (m);
  free (m);
}

static void
test_a_bound_holds_on_a_host_without_space (void **state)
{
  bound_without_space (0);
  bound_without_space (1000);    /* tables are incarnations */
}

/* The same on a real file, closed and opened again. */
static void
test_a_plain_file_will_do (void **state)
{
  char path[] = "/tmp/index-alone-XXXXXX";
  static struct plain p;
  struct dedup_index_params params = {
    .name = "file", .store_id = 9, .area_unit = PLAIN_UNIT,
    .values = { .end = model_end, .slot = model_slot },
  };
  struct fault f = { 0 };
  struct dedup_index *x;
  struct lock lock;
  uint32_t i, hits = 0;

  close (mkstemp (path));
  assert_int_equal (io_file_open (path, IO_FILE_WRITE, IO_LOCK_NONE, &p.io, &f),
                    0);
  lock_init (&lock);
  p.manifest = (struct dedup_index_manifest) { .order = 6, .next_id = 1 };
  params.lock = &lock;
  params.storage = plain_storage (&p);
  assert_int_equal (dedup_index_open (&params, &p.manifest, &x), 0);
  for (i = 0; i < 2000; i++) {
    struct dedup_entry spilled[DEDUP_MAX_SPILLED];
    const struct dedup_hash h = model_hash (i);
    size_t k, nr = 0;

    lock_acquire (&lock);
    if (dedup_index_fit_locked (x, 1) == DEDUP_SET_ASIDE_FIRST)
      assert_int_equal (dedup_index_set_aside_locked (x, i, spilled, &nr), 0);
    for (k = 0; k < nr; k++)
      dedup_index_insert_locked (x, &spilled[k].hash, spilled[k].value);
    dedup_index_insert_locked (x, &h, i + 1);
    lock_release (&lock);
    assert_int_equal (dedup_index_freeze (x), 0);
  }
  dedup_index_close (x);
  params.mark = p.mark;
  assert_int_equal (dedup_index_open (&params, &p.manifest, &x), 0);
  for (i = 0; i < p.mark; i++) {      /* what the log need not have any more */
    struct dedup_probe q = { .hash = model_hash (i) };
    struct dedup_index_view *v;

    lock_acquire (&lock);
    v = dedup_index_view_locked (x);
    lock_release (&lock);
    dedup_index_probe (v, &q, 1);
    dedup_index_view_put (x, v);
    hits += q.found == DEDUP_HIT && q.value == i + 1;
  }
  assert_true (p.mark > 1500);
  assert_int_equal (hits, p.mark);
  dedup_index_close (x);
  lock_destroy (&lock);
  io_close (p.io);
  unlink (path);
}

/* --- Ranks ------------------------------------------------------------------ */

#define VALUES 300u

/* Enters the hash number I for one of VALUES values, each of which gets another
 * hash every now and then. */
static void
enter (struct dedup_index *x, struct lock *lock, uint32_t i)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  const struct dedup_hash h = model_hash (i);
  size_t k, nr = 0;
  LOCK_FOR_SCOPE (lock);

  if (dedup_index_fit_locked (x, 1) == DEDUP_SET_ASIDE_FIRST)
    assert_int_equal (dedup_index_set_aside_locked (x, i, spilled, &nr), 0);
  for (k = 0; k < nr; k++)
    dedup_index_insert_locked (x, &spilled[k].hash, spilled[k].value);
  dedup_index_insert_locked (x, &h, i % VALUES + 1);
}

/* Walks all entries.  Among those of a value with the lowest rank must be the one
 * that was entered last: NEXT is the number of the next hash.  (An entry that found
 * no place in its log store may get a rank that is too low, of which the owner takes
 * care; here none does, as each value waits for 300 entries.) */
static void
check_ranks (struct dedup_index *x, uint32_t next)
{
  static struct dedup_walked v[DEDUP_WALK_ENTRIES];
  unsigned lowest[VALUES], last_rank[VALUES];
  struct dedup_index_walk *w;
  size_t nr, i;
  uint32_t k;
  int r;

  memset (lowest, 0xff, sizeof lowest);
  memset (last_rank, 0xff, sizeof last_rank);
  assert_int_equal (dedup_index_walk_begin (x, 1, VALUES + 1, &w), 0);
  while ((r = dedup_index_walk_next (w, v, &nr)) == 1)
    for (i = 0; i < nr; i++) {
      const size_t at = v[i].entry.value - 1;
      /* The number of the hash that was entered last for this value. */
      const uint32_t last = next - 1 - (next - 1 + VALUES - (uint32_t) at) %
        VALUES;
      const struct dedup_hash h = model_hash (last);

      lowest[at] = MIN_OF (lowest[at], v[i].rank);
      if (dedup_hash_equal (&h, &v[i].entry.hash))
        last_rank[at] = MIN_OF (last_rank[at], v[i].rank);
    }
  assert_int_equal (r, 0);
  assert_false (dedup_index_walk_lossy (w));
  dedup_index_walk_end (w);
  for (k = 0; k < MIN_OF (next, VALUES); k++)
    assert_int_equal (last_rank[k], lowest[k]);
}

/* The output of a merge that is under way holds entries of all its inputs, old
 * ones too, and the inputs still answer for the other hashes. */
static void
test_a_walk_ranks_what_is_being_merged_alike (void **state)
{
  static struct plain p;
  struct dedup_index_params params = {
    .name = "ranks", .store_id = 9, .area_unit = PLAIN_UNIT,
    .values = { .end = model_end, .slot = model_slot },
  };
  unsigned in_merges = 0;
  struct dedup_index *x;
  struct lock lock;
  uint32_t i;

  memset (&p, 0, sizeof p);
  assert_int_equal (io_memory_new (0, &p.io), 0);
  lock_init (&lock);
  p.manifest = (struct dedup_index_manifest) { .order = 5, .next_id = 1 };
  params.lock = &lock;
  params.storage = plain_storage (&p);
  assert_int_equal (dedup_index_open (&params, &p.manifest, &x), 0);
  for (i = 0; i < 30000; i++) {
    struct dedup_index_step *s;

    enter (x, &lock, i);
    assert_int_equal (dedup_index_freeze (x), 0);
    if (i % 50 != 0)
      continue;
    if (dedup_index_step_start (x, 0, &s) == 1)
      assert_int_equal (dedup_index_step_finish (s, dedup_index_step_work (s)),
                        0);
    for (size_t k = 0; k < p.manifest.nr_segments; k++)
      if (p.manifest.segments[k].merge != 0 && !p.manifest.segments[k].output) {
        in_merges++;
        break;
      }
    check_ranks (x, i + 1);
  }
  assert_true (in_merges > 10);
  dedup_index_close (x);
  lock_destroy (&lock);
  io_close (p.io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_runs_against_a_model),
    cmocka_unit_test (test_a_limit_forgets_the_oldest),
    cmocka_unit_test (test_a_bound_on_memory_forgets_the_oldest),
    cmocka_unit_test (test_a_bound_holds_on_a_host_without_space),
    cmocka_unit_test (test_a_plain_file_will_do),
    cmocka_unit_test (test_a_walk_ranks_what_is_being_merged_alike),
  };

  rng = env ("INDEX_SEED", (uint64_t) time (NULL));
  printf ("INDEX_SEED=%llu\n", (unsigned long long) rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
