/* SPDX-License-Identifier: BSD-3-Clause */
/* index-memory=: how much of the index is kept, and what is forgotten
 * (docs/ARCHITECTURE.md section 8, "A window").
 *
 * Bounded is the RAM of log stores, hints, fences and filters.  Tables are kept
 * by age: merges join neighbours, never much at once and never what is about
 * to go, and what is oldest goes, a segment at a time.  Since a lookup that
 * finds an entry in the oldest quarter makes it anew (link.c), what goes was
 * not hit for at least a quarter of the window.
 *
 * Where the oldest goes, nothing older is left that its entries or tombstones
 * could have hidden: an exact index stays exact.
 *
 * What a table takes is reckoned from the configuration where it is not
 * loaded.
 *
 * Maintenance only.
 */
#include "disk.h"

#include <errno.h>

/* The crash tests, whose stores are tiny, have fewer. */
#ifndef WINDOW_RUNS
#define WINDOW_RUNS 16           /* of level 0 that fit into any bound */
#endif

/* --- What things take ---------------------------------------------------- */

static uint64_t
segment_bytes (const struct dedup_disk *d,
               const struct dedup_segment_desc *desc)
{
  const struct dedup_incarnations *set = d->index.set;
  size_t i;

  for (i = 0; i < set->nr_segments; i++)
    if (dedup_segment_desc (set->segments[i])->id == desc->id &&
        dedup_segment_meta (set->segments[i]))
      return dedup_segment_memory (set->segments[i]);
  return dedup_segment_likely_memory (desc->nr_entries, desc->bits);
}

static uint64_t
incarnation_bytes (const struct dedup_incarnation_desc *desc)
{
  return 256 + round_up_pow2 ((UINT64_C (2) * DEDUP_BUCKET_SLOTS)
                              << desc->order, DEDUP_PAGE_SIZE);
}

/* What a log store becomes. */
static uint64_t
young_bytes (unsigned order, bool incarnations)
{
  const struct dedup_incarnation_desc inc = { .order = order };

  return incarnations ? incarnation_bytes (&inc)
    : dedup_segment_likely_memory ((uint64_t) DEDUP_BUCKET_SLOTS << order,
                                   DEDUP_FILTER_MAX_BITS);
}

/* Two log stores, the keys to sort one by, and hints. */
static uint64_t
fixed_bytes (unsigned order, uint64_t hints)
{
  return ((uint64_t) DEDUP_BUCKET_SLOTS << order) *
    (2 * DEDUP_SLOT_BYTES + 2 * 16) + hints + 4096;
}

uint64_t
dedup_window_least (unsigned order, uint64_t nr_clusters, bool incarnations)
{
  return fixed_bytes (order, dedup_hints_size (nr_clusters)) +
    WINDOW_RUNS * young_bytes (order, incarnations);
}

/* For all tables together, those that are being made included. */
static uint64_t
table_bytes (const struct dedup_disk *d)
{
  const uint64_t fixed = fixed_bytes (d->config->order, d->hints ?
                                      dedup_hints_memory (d->hints) : 0);

  return d->index_memory > fixed ? d->index_memory - fixed : 0;
}

/* For those that are listed: an eighth is left for a run and a step of a merge
 * that are being made. */
static uint64_t
listed_bytes (const struct dedup_disk *d)
{
  return table_bytes (d) / 8 * 7;
}

uint64_t
dedup_window_largest_run (const struct dedup_disk *d)
{
  return table_bytes (d) / 16;
}

uint64_t
dedup_window_run_bytes (const struct dedup_disk *d, size_t first, size_t nr)
{
  uint64_t n = 0;
  size_t i;

  for (i = first; i < first + nr; i++)
    n += segment_bytes (d, &d->config->segments[i]);
  return n;
}

static uint64_t
bytes_of_all (const struct dedup_disk *d)
{
  const struct dedup_config *c = d->config;
  uint64_t n = dedup_window_run_bytes (d, 0, c->nr_segments);
  size_t i;

  for (i = 0; i < c->nr_incarnations; i++)
    n += incarnation_bytes (&c->incarnations[i]);
  return n;
}

/* --- Forgetting ---------------------------------------------------------- */

static bool
oldest_is_incarnation (const struct dedup_config *c)
{
  return c->nr_incarnations > 0 &&
    (c->nr_segments == 0 || c->incarnations[0].id < c->segments[0].age);
}

/* Returns what it took. */
static uint64_t
drop_oldest (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  uint64_t n;

  if (oldest_is_incarnation (c)) {
    n = incarnation_bytes (&c->incarnations[0]);
    d->nr_forgotten += c->incarnations[0].nr_entries;
    dedup_incarnation_unlist (d, 0);
    return n;
  }
  n = segment_bytes (d, &c->segments[0]);
  d->nr_forgotten += c->segments[0].nr_entries;
  dedup_runs_unlist (d, 0);
  return n;
}

bool
dedup_window_drop (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  bool any = false;
  uint64_t n, gone;

  if (d->index_memory == 0)
    return false;
  n = bytes_of_all (d);
  while (n > listed_bytes (d) && c->nr_incarnations + c->nr_segments > 1) {
    gone = drop_oldest (d);
    n -= MIN_OF (n, gone);
    any = true;
  }
  return any;
}

/* Drop, with the configuration that says so.  AT_LEAST: so many pieces. */
static int
drop_and_commit (struct dedup_disk *d, unsigned at_least)
{
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  unsigned i;
  bool any;
  int r;

  if (before == NULL)
    return -ENOMEM;
  *before = *d->config;
  any = dedup_window_drop (d);
  for (i = any; i < at_least; i++, any = true)
    drop_oldest (d);
  if (!any)
    return 0;
  r = dedup_runs_commit (d, before, NULL, NULL, false);
  return r < 0 ? r : dedup_runs_reap (d);
}

int
dedup_window_trim (struct dedup_disk *d)
{
  return drop_and_commit (d, 0);
}

int
dedup_window_shift (struct dedup_disk *d)
{
  return drop_and_commit (d, 1);
}

/* --- About to be forgotten ----------------------------------------------- */

uint64_t
dedup_window_aging (const struct dedup_disk *d)
{
  const struct dedup_config *c = d->config;
  const uint64_t quarter = table_bytes (d) / 4;
  uint64_t age = 0, left, all;
  size_t s = 0, i = 0;

  if (d->index_memory == 0)
    return 0;
  all = bytes_of_all (d);
  left = listed_bytes (d) > all ? listed_bytes (d) - all : 0;   /* to come */
  while (left < quarter && s + i < c->nr_segments + c->nr_incarnations)
    if (s == c->nr_segments ||
        (i < c->nr_incarnations && c->incarnations[i].id < c->segments[s].age)) {
      age = c->incarnations[i].id;
      left += incarnation_bytes (&c->incarnations[i++]);
    }
    else {
      age = c->segments[s].age;
      left += segment_bytes (d, &c->segments[s++]);
    }
  return age;
}

/* What hints find is not looked up, so it would not be seen to be hit: they are
 * forgotten several times while a table is in the oldest quarter. */
void
dedup_window_moved (struct dedup_disk *d)
{
  if (d->index_memory == 0 || d->hints == NULL)
    return;
  d->moved_since_wipe += young_bytes (d->config->order,
                                      d->config->max_incarnations > 0);
  if (d->moved_since_wipe < dedup_window_largest_run (d))
    return;
  d->moved_since_wipe = 0;
  dedup_hints_wipe (d->hints);
}
