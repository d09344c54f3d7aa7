/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the figures of the index, each against an independent count: writes
 * against a plain model of the disk, page reads against calls of the byte
 * store, false positives by asking each filter about hashes that are new.
 *
 * Breaks if: a counter counts twice, not at all, or something else; or a dead
 * entry is taken for a live one.
 */
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

static uint64_t rng;

static uint64_t
rnd (uint64_t n)
{
  return splitmix64 (&rng) % n;
}

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t nr_clusters;
  uint64_t *contents;            /* of each guest cluster; 0: zeroes */
  uint64_t next;                 /* contents that never was */
  uint64_t page_reads;           /* as the byte store saw them */
};

/* Lookups read single pages out of what the configuration lists. */
static int
watch_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  const struct dedup_index_manifest *c =
    w->d && w->d->store.index ? w->d->store.index->manifest : NULL;
  uint32_t i;

  if (c == NULL || call != IO_PREAD || len != DEDUP_PAGE_SIZE)
    return 0;
  for (i = 0; i < c->nr_segments; i++)
    w->page_reads += host_off >= c->segments[i].host_off &&
      host_off < c->segments[i].host_off + c->segments[i].size_bytes;
  /* Behind the first page and the filter's. */
  for (i = 0; i < c->nr_incarnations; i++)
    w->page_reads += host_off >= c->incarnations[i].host_off +
      2 * DEDUP_PAGE_SIZE &&
      host_off < c->incarnations[i].host_off + c->incarnations[i].size_bytes;
  return 0;
}

static void
make_world (struct world *w, unsigned order, uint32_t max_incarnations,
            uint64_t nr_clusters)
{
  struct dedup_create_params c = {
    .image = { .virtual_size = nr_clusters * CLUSTER, .cluster_bits = BITS,
               .refcount_order = 4 },
    .order = order, .journal_areas = 4, .max_incarnations = max_incarnations,
  };
  struct dedup_open_params p = { .path = "memory", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 8 << 20 };
  struct fault f = { 0 };

  memset (w, 0, sizeof *w);
  w->nr_clusters = nr_clusters;
  w->next = 1;
  w->contents = calloc (nr_clusters, sizeof *w->contents);
  assert_non_null (w->contents);
  assert_int_equal (io_memory_new (0, &w->io), 0);
  assert_int_equal (io_faulty_new (w->io, watch_cb, w, &w->io), 0);
  if (dedup_create (w->io, &c, &f) < 0 ||
      dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("%s", f.msg);
}

static void
end_world (struct world *w)
{
  struct dedup_pool *d = w->d;

  w->d = NULL;
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (w->io);
  free (w->contents);
}

static void
fill (uint8_t *p, uint64_t contents)
{
  memset (p, 0, CLUSTER);
  memcpy (p, &contents, sizeof contents);
}

static void
put (struct world *w, uint64_t at, uint64_t contents)
{
  uint8_t buf[CLUSTER];

  fill (buf, contents);
  assert_int_equal (dedup_write (w->d, 0, buf, at, 1), 0);
  w->contents[at] = contents;
}

static void
freeze (struct world *w)
{
  if (w->d->store.index->frozen)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FREEZE), 0);
  while (dedup_due (w->d, NULL) & DEDUP_JOB_FILTERS)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_FILTERS), 0);
}

/* Filters that say yes to a hash nobody has: those that were asked before the
 * first table that has it, which is none. */
static uint64_t
yes_in_vain (struct world *w, uint64_t contents)
{
  struct dedup_index_view *set = w->d->store.index->view;
  struct dedup_filter_key key;
  struct dedup_filter_place place;
  uint8_t buf[CLUSTER];
  struct dedup_hash h;
  uint16_t maybe;
  uint64_t n = 0;
  size_t i;

  fill (buf, contents);
  assert_int_equal (dedup_hash_compute (&w->d->base.hasher, buf, CLUSTER, &h), 0);
  dedup_filter_key (&h, &key);
  for (i = 0; i < set->nr_segments; i++) {
    dedup_segment_place (set->segments[i], &key, &place);
    n += dedup_filter_test (&place, 1, &maybe);
  }
  return n;
}

static void
check_lookups (unsigned order, uint32_t max_incarnations)
{
  const uint64_t nr = 1500;
  struct dedup_stats s, t;
  uint64_t i, vain = 0, reads, in_tables = 0;
  struct world w;

  make_world (&w, order, max_incarnations, 4 * nr);
  dedup_hints_free (w.d->writer.hints);           /* each block is looked up */
  w.d->writer.hints = NULL;
  for (i = 0; i < nr; i++) {
    put (&w, i, w.next++);
    freeze (&w);
  }
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.lookups.lookups, nr);
  assert_int_equal (s.lookups.hits, 0);
  assert_int_equal (s.stored, nr);
  assert_int_equal (s.linked, 0);
  assert_int_equal (s.lookups.hit_reads, 0);
  assert_int_equal (s.lookups.miss_reads, w.page_reads);

  reads = w.page_reads;
  for (i = 0; i < nr; i++)                 /* all of them are found */
    put (&w, nr + i, w.contents[i]);
  dedup_get_stats (w.d, &t);
  assert_int_equal (t.lookups.lookups, 2 * nr);
  assert_int_equal (t.lookups.hits, nr);
  assert_int_equal (t.stored, nr);
  assert_int_equal (t.linked, nr);
  assert_int_equal (t.mismatches, 0);
  assert_int_equal (t.lookups.hit_reads, w.page_reads - reads);
  assert_int_equal (t.lookups.miss_reads, s.lookups.miss_reads);
  in_tables = t.index_entries - t.log_store_entries;
  assert_true (in_tables > nr / 2 && t.lookups.hit_reads >= in_tables &&
               t.lookups.hit_reads < in_tables + in_tables / 8);

  reads = w.page_reads;
  for (i = 0; i < nr; i++) {
    vain += yes_in_vain (&w, w.next);
    put (&w, 2 * nr + i, w.next++);
    freeze (&w);
  }
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.lookups.lookups, 3 * nr);
  assert_int_equal (s.lookups.hits, nr);
  assert_int_equal (s.stored, 2 * nr);
  assert_int_equal (s.lookups.hit_reads, t.lookups.hit_reads);
  assert_int_equal (s.lookups.miss_reads - t.lookups.miss_reads,
                    w.page_reads - reads);
  if (max_incarnations == 0) {
    assert_int_equal (s.lookups.false_positives - t.lookups.false_positives,
                      vain);
    assert_true (vain > 0);
  }
  assert_true (s.lookups.miss_reads - t.lookups.miss_reads >=
               s.lookups.false_positives - t.lookups.false_positives);
  end_world (&w);
}

static void
test_lookups_in_runs_are_counted (void **state)
{
  check_lookups (5, 0);
}

static void
test_lookups_in_incarnations_are_counted (void **state)
{
  check_lookups (5, 1000);
}

/* What hints find is shared without a lookup; what an entry leads to that is
 * something else by now is a hit with other bytes. */
static void
test_hints_and_mismatches_are_counted (void **state)
{
  struct dedup_stats s;
  struct world w;
  uint64_t i, used = 0, stale;

  make_world (&w, 7, 0, 4096);
  for (i = 0; i < 200; i++)
    put (&w, i, w.next++);
  for (i = 0; i < 200; i++)
    put (&w, 1000 + i, w.contents[i]);
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.linked, 200);
  assert_int_equal (s.lookups.guessed + s.lookups.hits, 200);
  assert_int_equal (s.lookups.lookups, 400 - s.lookups.guessed);
  assert_true (s.lookups.guessed > 150);

  /* Both copies of 100 go; their clusters are used again. */
  stale = w.contents[0];
  for (i = 0; i < 100; i++) {
    put (&w, i, 0);
    put (&w, 1000 + i, 0);
  }
  dedup_hints_free (w.d->writer.hints);
  w.d->writer.hints = NULL;
  assert_int_equal (dedup_run (w.d, DEDUP_JOB_CHECKPOINT), 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (dedup_run (w.d, DEDUP_JOB_COMMIT), 0);
  for (i = 0; i < 400; i++)
    put (&w, 2000 + i, w.next++);
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.mismatches, 0);
  for (i = 0; i < 100; i++)
    put (&w, 3000 + i, stale + i);
  used = s.lookups.hits;
  dedup_get_stats (w.d, &s);
  assert_int_equal (s.lookups.hits - used, 100);
  assert_int_equal (s.mismatches, 100);
  end_world (&w);
}

static uint64_t
distinct (const struct world *w)
{
  uint8_t *seen = calloc (w->next, 1);
  uint64_t i, n = 0;

  assert_non_null (seen);
  for (i = 0; i < w->nr_clusters; i++)
    if (w->contents[i] && !seen[w->contents[i]]) {
      seen[w->contents[i]] = 1;
      n++;
    }
  free (seen);
  return n;
}

/* Writes, duplicates, overwrites, trims, freezes and steps of merges. */
static void
random_work (struct world *w, uint64_t ops)
{
  unsigned urgent, job;
  uint64_t i;

  for (i = 0; i < ops; i++) {
    const uint64_t what = rnd (100), at = rnd (w->nr_clusters);

    if (what < 60)
      put (w, at, w->next++);
    else if (what < 80)
      put (w, at, w->contents[rnd (w->nr_clusters)]);
    else if (what < 85 && w->next > 1)
      put (w, at, 1 + rnd (w->next - 1));  /* perhaps from long ago */
    else if (what < 90)
      put (w, at, 0);
    else if (what < 95) {
      dedup_due (w->d, &urgent);
      for (job = 1; job <= DEDUP_JOB_MERGE; job <<= 1)
        if (urgent & job)
          assert_int_equal (dedup_run (w->d, job), 0);
    }
    else if (what == 95)
      assert_int_equal (dedup_run (w->d, DEDUP_JOB_COMMIT), 0);
  }
}

/* The list of tables has each table once, and their sums are the figures of the
 * index. */
static void
check_list (struct world *w, const struct dedup_stats *s)
{
  struct dedup_index_table *v;
  uint64_t runs = 0, in[2] = { 0 }, tombstones = 0, segments = 0, bytes = 0;
  size_t nr, i;

  assert_int_equal (dedup_index_tables (w->d, &v, &nr), 0);
  for (i = 0; i < nr; i++) {
    assert_true (v[i].segments > 0);
    runs += v[i].is_run;
    segments += v[i].is_run ? v[i].segments : 0;
    in[v[i].is_run] += v[i].entries;
    tombstones += v[i].tombstones;
    bytes += v[i].disk_bytes;
  }
  assert_int_equal (runs, s->nr_runs);
  assert_int_equal (nr - runs, s->nr_incarnations);
  assert_int_equal (segments, w->d->store.index->manifest->nr_segments);
  assert_int_equal (in[true], s->run_entries);
  assert_int_equal (in[false], s->incarnation_entries);
  assert_in_range (tombstones, 0, s->tombstones);
  assert_in_range (bytes, 0, s->index_disk_bytes);
  assert_true (s->nr_runs + s->nr_incarnations == 0 || bytes > 0);
  free (v);
}

static struct dedup_live_entries
count_live_entries (struct world *w)
{
  struct dedup_live_entries c;
  struct dedup_stats s;

  dedup_get_stats (w->d, &s);
  check_list (w, &s);
  assert_int_equal (dedup_count_live_entries (w->d, &c), 0);
  assert_int_equal (c.looked_at, s.index_entries);
  assert_int_equal (c.live + c.dead, s.index_entries);
  assert_int_equal (c.live, distinct (w));
  return c;
}

/* Some of it is in a merge's inputs and in its output by now. */
static bool
is_half_merged (const struct world *w)
{
  uint32_t i;

  for (i = 0; i < w->d->store.index->manifest->nr_segments; i++)
    if (w->d->store.index->manifest->segments[i].output)
      return true;
  return false;
}

static void
check_live_entries (uint32_t max_incarnations, unsigned order)
{
  unsigned round, halves = 0;
  struct dedup_live_entries c;
  struct world w;
  uint64_t i;

  make_world (&w, order, max_incarnations, 4000);
  for (round = 0; round < 4; round++) {
    random_work (&w, 700);
    c = count_live_entries (&w);
  }
  assert_true (c.dead > c.live / 20);
  for (i = 0; i < 3000; i++) {
    put (&w, rnd (w.nr_clusters), w.next++);
    freeze (&w);
    while (w.d->store.index->merge_due) {
      assert_int_equal (dedup_run (w.d, DEDUP_JOB_MERGE), 0);
      count_live_entries (&w);
      halves += is_half_merged (&w);
    }
  }
  count_live_entries (&w);
  if (order == 4 && max_incarnations == 0)
    assert_true (halves > 0);
  end_world (&w);
}

static void
test_live_entries_are_those_of_what_is_on_disk (void **state)
{
  check_live_entries (0, 5);
  check_live_entries (0, 4);
  check_live_entries (0, 12);          /* all in the log store */
  check_live_entries (1000, 4);
}

static void
test_a_sample_tells_about_as_much (void **state)
{
  struct dedup_live_entries c;
  struct dedup_stats s;
  struct world w;
  double live;

  make_world (&w, 8, 0, 12000);
  random_work (&w, 45000);
  dedup_get_stats (w.d, &s);
  assert_int_equal (dedup_count_live_entries (w.d, &c), 0);
  live = (double) distinct (&w);
  if (s.index_entries < 2 * DEDUP_SAMPLE_ENTRIES)
    fail_msg ("only %" PRIu64 " entries", s.index_entries);
  assert_true (c.looked_at < DEDUP_SAMPLE_ENTRIES * 5 / 4 &&
               c.looked_at > DEDUP_SAMPLE_ENTRIES / 2);
  assert_int_equal (c.live + c.dead, s.index_entries);
  /* Five times the standard error of 6000 out of two kinds: 3.2 %. */
  if ((double) c.live < live - 0.032 * (double) s.index_entries ||
      (double) c.live > live + 0.032 * (double) s.index_entries)
    fail_msg ("%" PRIu64 " live of %" PRIu64 ", in truth %.0f", c.live,
              s.index_entries, live);
  end_world (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_lookups_in_runs_are_counted),
    cmocka_unit_test (test_lookups_in_incarnations_are_counted),
    cmocka_unit_test (test_hints_and_mismatches_are_counted),
    cmocka_unit_test (test_live_entries_are_those_of_what_is_on_disk),
    cmocka_unit_test (test_a_sample_tells_about_as_much),
  };
  const char *seed = getenv ("STATS_SEED");

  rng = seed ? strtoull (seed, NULL, 0) : (uint64_t) time (NULL);
  printf ("STATS_SEED=%" PRIu64 "\n", rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
