/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes how much memory tables take, how much of the bound on memory they
 * may take, and how wide their filters are.
 *
 * The memory of a table that is not loaded is estimated from the manifest.
 *
 * Editing functions only, but dedup_index_least_memory.
 */
#include "index-private.h"

/* Together the filters must give false positives for fewer than 1 % of misses,
 * in as little memory as possible: then each run's share of the false
 * positives is its share of the entries.  All together aim at 3/400, because
 * widths are rounded and younger runs may be added (docs/ARCHITECTURE.md
 * section 8).  Runs of the lowest levels are small, so that they can have at
 * least 12 bits. */
unsigned
index_run_bits (unsigned level, uint64_t in_all, uint64_t nr_entries)
{
  const uint64_t all = MAX_OF (in_all, nr_entries) * 400;
  unsigned bits = level < 2 ? 12 : 7;

  /* round (log2 (all / (3 * nr_entries))): 181/128 is the root of 2 */
  while (bits < DEDUP_FILTER_MAX_BITS &&
         ((nr_entries * 3 * 181 / 128) << bits) < all)
    bits++;
  return bits;
}

/* The crash tests, whose stores are tiny, have fewer. */
#ifndef WINDOW_RUNS
#define WINDOW_RUNS 16           /* of level 0 that fit into any bound */
#endif

/* --- Sizes --------------------------------------------------------------- */

uint64_t
index_segment_bytes (const struct dedup_index *x,
                     const struct dedup_segment_desc *desc)
{
  struct dedup_segment *s = index_find_segment (x, desc->id);

  if (s && dedup_segment_meta (s))
    return dedup_segment_memory (s);
  return dedup_segment_likely_memory (desc->nr_entries, desc->bits);
}

uint64_t
index_incarnation_bytes (const struct dedup_incarnation_desc *desc)
{
  return 256 + round_up_pow2 ((UINT64_C (2) * DEDUP_BUCKET_SLOTS)
                              << desc->order, DEDUP_PAGE_SIZE);
}

uint64_t
index_young_bytes (unsigned order, bool limited)
{
  const struct dedup_incarnation_desc inc = { .order = order };

  return limited ? index_incarnation_bytes (&inc)
    : dedup_segment_likely_memory ((uint64_t) DEDUP_BUCKET_SLOTS << order,
                                   DEDUP_FILTER_MAX_BITS);
}

/* Returns the bytes that do not depend on tables: two log stores, the keys to
 * sort one of them by, and the owner's memory. */
static uint64_t
fixed_bytes (unsigned order, uint64_t other_memory)
{
  return ((uint64_t) DEDUP_BUCKET_SLOTS << order) *
    (2 * DEDUP_SLOT_BYTES + 2 * 16) + other_memory + 4096;
}

uint64_t
dedup_index_least_memory (unsigned order, bool limited, uint64_t other_memory)
{
  return fixed_bytes (order, other_memory) +
    WINDOW_RUNS * index_young_bytes (order, limited);
}

/* Returns the bytes that all tables together may take, those included that are
 * being made. */
static uint64_t
table_bytes (const struct dedup_index *x)
{
  const uint64_t fixed = fixed_bytes (x->manifest->order, x->other_memory);

  return x->memory_bound > fixed ? x->memory_bound - fixed : 0;
}

/* An eighth is left for a run and a step of a merge that are being made. */
uint64_t
index_listed_bytes (const struct dedup_index *x)
{
  return table_bytes (x) / 8 * 7;
}

uint64_t
index_largest_run (const struct dedup_index *x)
{
  return table_bytes (x) / 16;
}

uint64_t
index_run_bytes (const struct dedup_index *x,
                 const struct dedup_index_manifest *m, size_t first,
                 size_t nr)
{
  uint64_t n = 0;
  size_t i;

  for (i = first; i < first + nr; i++)
    n += index_segment_bytes (x, &m->segments[i]);
  return n;
}

uint64_t
index_table_bytes (const struct dedup_index *x,
                   const struct dedup_index_manifest *m)
{
  uint64_t n = index_run_bytes (x, m, 0, m->nr_segments);
  size_t i;

  for (i = 0; i < m->nr_incarnations; i++)
    n += index_incarnation_bytes (&m->incarnations[i]);
  return n;
}

/* --- About to be forgotten ----------------------------------------------- */

uint64_t
index_aging (const struct dedup_index *x,
             const struct dedup_index_manifest *m)
{
  const uint64_t quarter = table_bytes (x) / 4;
  uint64_t age = 0, left, all;
  size_t s = 0, i = 0;

  if (x->memory_bound == 0)
    return 0;
  all = index_table_bytes (x, m);
  /* Bytes of new tables that fit before the oldest table is dropped. */
  left = index_listed_bytes (x) > all ? index_listed_bytes (x) - all : 0;
  while (left < quarter && s + i < m->nr_segments + m->nr_incarnations)
    if (s == m->nr_segments ||
        (i < m->nr_incarnations &&
         m->incarnations[i].id < m->segments[s].age)) {
      age = m->incarnations[i].id;
      left += index_incarnation_bytes (&m->incarnations[i++]);
    }
    else {
      age = m->segments[s].age;
      left += index_segment_bytes (x, &m->segments[s++]);
    }
  return age;
}
