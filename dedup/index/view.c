/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes views.  A view has the open incarnations and runs that lookups ask,
 * youngest first.
 *
 * A view is immutable and counted: it is made from a manifest, published under
 * the lock, and freed by its last reader, so that lookups need no lock.  Tables
 * that an older view has open already are shared with it.
 *
 * A run is cut into segments by ranges of hashes, so a lookup asks one segment
 * of it.  While runs are merged, their segments answer for the hashes that the
 * merge has not reached yet, and its output for all lower ones.  The ranges
 * say so; they belong to the view, because views share segments.
 *
 * Threads: a view is made by an editing function; any thread may take and put
 * one.
 */
#include "index-private.h"

#include <errno.h>

/* --- Lifetime ------------------------------------------------------------ */

static void
free_view (struct dedup_index_view *v)
{
  size_t i;

  for (i = 0; i < v->nr; i++)
    dedup_incarnation_put (v->v[i]);
  for (i = 0; v->segments && i < v->nr_segments; i++)
    dedup_segment_put (v->segments[i]);
  free (v->segments);
  free (v->ranges);
  free (v->tables);
  free (v);
}

static struct dedup_index_view *
alloc_view (size_t nr, size_t nr_segments)
{
  struct dedup_index_view *v;

  v = calloc (1, sizeof *v + nr * sizeof v->v[0]);
  if (v == NULL)
    return NULL;
  v->users = 1;
  v->nr = nr;
  v->nr_segments = nr_segments;
  v->segments = calloc (nr_segments + 1, sizeof *v->segments);
  v->ranges = calloc (nr_segments + 1, sizeof *v->ranges);
  v->tables = calloc (nr + nr_segments + 1, sizeof *v->tables);
  if (v->segments && v->ranges && v->tables)
    return v;
  free_view (v);
  return NULL;
}

void
index_view_unref (struct dedup_index_view *v)
{
  if (v != NULL && __atomic_sub_fetch (&v->users, 1, __ATOMIC_ACQ_REL) == 0)
    free_view (v);
}

struct dedup_index_view *
dedup_index_view_locked (struct dedup_index *x)
{
  assert (lock_held (x->lock));
  __atomic_add_fetch (&x->view->users, 1, __ATOMIC_RELAXED);
  return x->view;
}

bool
dedup_index_is_current_locked (const struct dedup_index *x,
                               const struct dedup_index_view *v)
{
  assert (lock_held (x->lock));
  return x->view == v;
}

static bool
is_damaged (const struct dedup_index_view *v)
{
  size_t i;

  for (i = 0; i < v->nr; i++)
    if (dedup_incarnation_damaged (v->v[i]))
      return true;
  for (i = 0; i < v->nr_segments; i++)
    if (dedup_segment_damaged (v->segments[i]))
      return true;
  return false;
}

/* A table that is damaged is dropped by dedup_index_load_next. */
void
dedup_index_view_put (struct dedup_index *x, struct dedup_index_view *v)
{
  if (v != NULL && is_damaged (v)) {
    index_doubt (x);
    __atomic_store_n (&x->filters_loaded, false, __ATOMIC_RELAXED);
  }
  index_view_unref (v);
}

struct dedup_segment *
index_view_segment (const struct dedup_index_view *v, uint64_t id)
{
  size_t i;

  for (i = 0; v != NULL && i < v->nr_segments; i++)
    if (dedup_segment_desc (v->segments[i])->id == id)
      return v->segments[i];
  return NULL;
}

struct dedup_incarnation *
index_view_incarnation (const struct dedup_index_view *v, uint64_t id)
{
  size_t i;

  for (i = 0; v != NULL && i < v->nr; i++)
    if (dedup_incarnation_desc (v->v[i])->id == id)
      return v->v[i];
  return NULL;
}

struct dedup_segment *
index_find_segment (const struct dedup_index *x, uint64_t id)
{
  struct dedup_segment *s = index_view_segment (x->owed, id);

  return s ? s : index_view_segment (x->view, id);
}

struct dedup_incarnation *
index_find_incarnation (const struct dedup_index *x, uint64_t id)
{
  struct dedup_incarnation *inc = index_view_incarnation (x->owed, id);

  return inc ? inc : index_view_incarnation (x->view, id);
}

/* --- Making one ---------------------------------------------------------- */

static int
open_incarnation (struct dedup_index *x,
                  const struct dedup_incarnation_desc *desc,
                  struct dedup_incarnation **out)
{
  struct dedup_incarnation *inc = index_find_incarnation (x, desc->id);

  if (inc == NULL)
    return dedup_incarnation_open (x->storage.io, x->store_id, desc, out);
  *out = dedup_incarnation_get (inc);
  return 0;
}

static int
open_segment (struct dedup_index *x, const struct dedup_segment_desc *desc,
              struct dedup_segment **out)
{
  struct dedup_segment *s = index_find_segment (x, desc->id);

  if (s == NULL)
    return dedup_segment_open (x->storage.io, x->store_id, desc, out);
  *out = dedup_segment_get (s);
  return 0;
}

static int
open_incarnations (struct dedup_index *x, const struct dedup_index_manifest *m,
                   struct dedup_index_view *v)
{
  size_t i, pos;
  int r;

  for (i = 0; i < m->nr_incarnations; i++) {
    pos = m->nr_incarnations - 1 - i;    /* listed oldest first */
    r = open_incarnation (x, &m->incarnations[i], &v->v[pos]);
    if (r < 0)
      return r;
    v->tables[v->nr_tables++] = (struct index_table) {
      .age = m->incarnations[i].id, .inc = v->v[pos] };
  }
  return 0;
}

/* Opens the segments of M, and notes which of them make a run: they are listed
 * by age, level and range, so a run's segments stand together.  What M says of a
 * segment counts: a segment that is open already was opened before the merge that it
 * takes part in began. */
static int
open_segments (struct dedup_index *x, const struct dedup_index_manifest *m,
               struct dedup_index_view *v)
{
  const struct dedup_segment_desc *desc = m->segments;
  size_t i;
  int r;

  for (i = 0; i < m->nr_segments; i++, desc++) {
    r = open_segment (x, desc, &v->segments[i]);
    if (r < 0)
      return r;
    v->ranges[i] = (struct index_range) { desc->lo, desc->hi };
    if (i == 0 || !dedup_same_run (&desc[-1], desc))
      v->tables[v->nr_tables++] = (struct index_table) {
        .age = desc->age, .first = i, .merge = desc->merge };
    v->tables[v->nr_tables - 1].nr++;
  }
  return 0;
}

/* Orders tables, the youngest first.  Only a merge's output and its youngest
 * input have the same age, and their ranges are apart. */
static int
compare_ages (const void *a, const void *b)
{
  const struct index_table *x = a, *y = b;

  return x->age > y->age ? -1 : x->age < y->age;
}

int
index_view_new (struct dedup_index *x, const struct dedup_index_manifest *m,
                uint64_t aging, struct dedup_index_view **out)
{
  struct dedup_index_view *v = alloc_view (m->nr_incarnations, m->nr_segments);
  int r;

  if (v == NULL)
    return -ENOMEM;
  if ((r = open_incarnations (x, m, v)) < 0 ||
      (r = open_segments (x, m, v)) < 0) {
    index_view_unref (v);
    return r;
  }
  qsort (v->tables, v->nr_tables, sizeof *v->tables, compare_ages);
  v->aging = aging;
  *out = v;
  return 0;
}
