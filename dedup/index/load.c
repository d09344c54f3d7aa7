/* SPDX-License-Identifier: BSD-3-Clause */
/* Loads the filters of tables after an open, one at a time, and drops tables
 * that turn out to be damaged.  Lookups work meanwhile, with more reads.
 *
 * Editing functions only.
 */
#include "index-private.h"

#include <errno.h>

/* Each returns 0 if there was something to do and it is done, 1 if there was
 * not, -errno if not all could be done: a table that can't be read holds up no
 * other. */

static int
tend_incarnation (struct dedup_index *x, struct dedup_incarnation *inc)
{
  int r;

  if (dedup_incarnation_loaded (inc) && !dedup_incarnation_damaged (inc))
    return 1;
  r = dedup_incarnation_damaged (inc) ? -EBADMSG : dedup_incarnation_load (inc);
  return r == -EBADMSG || dedup_incarnation_damaged (inc) ?
    index_drop_incarnation (x, dedup_incarnation_desc (inc)->id) : r;
}

static int
tend_segment (struct dedup_index *x, struct dedup_segment *s)
{
  int r;

  if (dedup_segment_meta (s) && !dedup_segment_damaged (s))
    return 1;
  r = dedup_segment_damaged (s) ? -EBADMSG : dedup_segment_load (s);
  return r == -EBADMSG ? index_drop_segment (x, dedup_segment_desc (s)->id) : r;
}

/* Tends one table of V: incarnations first, then runs, the youngest first. */
static int
tend_view (struct dedup_index *x, const struct dedup_index_view *v)
{
  int r = 1, failed = 1;
  size_t i;

  for (i = 0; i < v->nr && r != 0; i++) {
    r = tend_incarnation (x, v->v[i]);
    failed = MIN_OF (failed, r);
  }
  for (i = v->nr_segments; i-- > 0 && r != 0; ) {
    r = tend_segment (x, v->segments[i]);
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
  r = tend_view (x, v);
  index_view_unref (v);
  __atomic_store_n (&x->filters_loaded, r == 1, __ATOMIC_RELAXED);
  return MIN_OF (r, 0);
}
