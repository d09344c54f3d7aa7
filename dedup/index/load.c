/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads the filters of tables after an open, one at a time, and drops tables
 * that turn out to be damaged.  Lookups work before their filters are loaded,
 * but read more pages.
 *
 * Under a bound on memory, a table is not loaded if the list that is owed drops
 * it: its filter and those of the listed tables together may exceed the bound,
 * for as long as the host has no space for the list (publish.c).
 *
 * Editing functions only.
 */
#include "index-private.h"

#include <errno.h>

/* The functions below return 1 if there was nothing to do, 0 if one table was
 * loaded or dropped, -errno if that failed.  A table that can't be read does
 * not keep others from being loaded. */

static bool
may_load_incarnation (const struct dedup_index *x, uint64_t id)
{
  return x->memory_bound == 0 ||
    dedup_manifest_find_incarnation (x->manifest, id) <
    x->manifest->nr_incarnations;
}

static bool
may_load_segment (const struct dedup_index *x, uint64_t id)
{
  return x->memory_bound == 0 ||
    dedup_manifest_find_segment (x->manifest, id) < x->manifest->nr_segments;
}

/* Loads the filter of INC, or drops INC if it is damaged. */
static int
load_or_drop_incarnation (struct dedup_index *x, struct dedup_incarnation *inc)
{
  const uint64_t id = dedup_incarnation_desc (inc)->id;
  int r;

  if (!dedup_incarnation_damaged (inc) &&
      (dedup_incarnation_loaded (inc) || !may_load_incarnation (x, id)))
    return 1;
  r = dedup_incarnation_damaged (inc) ? -EBADMSG : dedup_incarnation_load (inc);
  return r == -EBADMSG || dedup_incarnation_damaged (inc) ?
    index_drop_incarnation (x, id) : r;
}

/* Loads the fences and filter of S, or drops S if it is damaged. */
static int
load_or_drop_segment (struct dedup_index *x, struct dedup_segment *s)
{
  const uint64_t id = dedup_segment_desc (s)->id;
  int r;

  if (!dedup_segment_damaged (s) &&
      (dedup_segment_meta (s) || !may_load_segment (x, id)))
    return 1;
  r = dedup_segment_damaged (s) ? -EBADMSG : dedup_segment_load (s);
  return r == -EBADMSG ? index_drop_segment (x, id) : r;
}

/* Loads or drops one table of V: incarnations first, then runs, the youngest
 * first. */
static int
load_or_drop_one (struct dedup_index *x, const struct dedup_index_view *v)
{
  int r = 1, failed = 1;
  size_t i;

  for (i = 0; i < v->nr && r != 0; i++) {
    r = load_or_drop_incarnation (x, v->v[i]);
    failed = MIN_OF (failed, r);
  }
  for (i = v->nr_segments; i-- > 0 && r != 0; ) {
    r = load_or_drop_segment (x, v->segments[i]);
    failed = MIN_OF (failed, r);
  }
  return r == 0 ? 0 : failed;
}

int
dedup_index_load_next (struct dedup_index *x)
{
  struct dedup_index_view *v;
  int r;

  lock_acquire (x->lock);
  v = dedup_index_view_locked (x);
  lock_release (x->lock);
  r = load_or_drop_one (x, v);
  index_view_unref (v);
  __atomic_store_n (&x->filters_loaded, r == 1, __ATOMIC_RELAXED);
  return MIN_OF (r, 0);
}
