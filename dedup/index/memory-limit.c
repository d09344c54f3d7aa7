/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the memory of the index below a bound by forgetting its oldest tables
 * (docs/ARCHITECTURE.md section 8, "A window").
 *
 * The bound covers log stores, fences, filters and the memory that the owner
 * needs itself (other_memory).  Tables are kept by age: merges join
 * neighbours, never much at once and never tables that are about to be
 * forgotten, and the oldest tables are dropped, a segment at a time.  The
 * owner enters an entry again when a lookup finds it in the oldest quarter; so
 * a dropped entry was not hit for at least a quarter of the window.
 *
 * When the oldest table is dropped, no older one is left that its entries or
 * tombstones could have hidden: an exact index stays exact.  It is complete no
 * longer if it drops a part of a run: of two entries that name one cluster, it
 * may drop the one that is about the present data.
 *
 * Editing functions only.
 */
#include "publish.h"

#include <errno.h>

/* --- Forgetting ---------------------------------------------------------- */

static bool
oldest_is_incarnation (const struct dedup_index_manifest *m)
{
  return m->nr_incarnations > 0 &&
    (m->nr_segments == 0 || m->incarnations[0].id < m->segments[0].age);
}

static void
note_incomplete (struct dedup_index *x)
{
  LOCK_FOR_SCOPE (x->lock);
  x->complete = false;
}

/* Removes the oldest incarnation or segment from the list.  Returns the bytes
 * of memory that it took. */
static uint64_t
drop_oldest (struct index_edit *e)
{
  struct dedup_index_manifest *m = e->m;
  uint64_t n;

  if (oldest_is_incarnation (m)) {
    n = index_incarnation_bytes (&m->incarnations[0]);
    e->x->nr_forgotten += m->incarnations[0].nr_entries;
    index_edit_unlist_incarnation (e, 0);
    return n;
  }
  note_incomplete (e->x);
  n = index_segment_bytes (e->x, &m->segments[0]);
  e->x->nr_forgotten += m->segments[0].nr_entries;
  index_edit_unlist_segment (e, 0);
  return n;
}

bool
index_limit_edit (struct index_edit *e)
{
  const struct dedup_index *x = e->x;
  bool any = false;
  uint64_t n, dropped;

  if (x->memory_bound == 0)
    return false;
  n = index_table_bytes (x, e->m);
  while (n > index_listed_bytes (x) &&
         e->m->nr_incarnations + e->m->nr_segments > 1) {
    dropped = drop_oldest (e);
    n -= MIN_OF (n, dropped);
    any = true;
  }
  return any;
}

/* Removes the tables that do not fit the bound, but at least AT_LEAST of them,
 * and commits. */
static int
drop_and_commit (struct dedup_index *x, unsigned at_least)
{
  const struct index_news nothing = { .new_size = 0 };
  struct index_edit e;
  unsigned i;
  bool any;
  int r = index_edit_begin (x, &e);

  if (r < 0)
    return r;
  any = index_limit_edit (&e);
  for (i = any; i < at_least; i++, any = true)
    drop_oldest (&e);
  if (!any) {
    index_edit_drop (&e);
    return 0;
  }
  r = index_edit_commit (&e, &nothing);
  return r < 0 ? r : dedup_index_reap (x);
}

int
index_limit_trim (struct dedup_index *x)
{
  return drop_and_commit (x, 0);
}

int
index_limit_drop_oldest (struct dedup_index *x)
{
  return drop_and_commit (x, 1);
}

/* Entries that the owner finds without a lookup would seem unused: so the
 * owner is told to look them up again, several times while a table is in the
 * oldest quarter. */
void
index_limit_note_freeze (struct dedup_index *x)
{
  if (x->memory_bound == 0 || x->events.aged == NULL)
    return;
  x->bytes_since_aged += index_young_bytes (x->manifest->order,
                                            x->manifest->max_incarnations > 0);
  if (x->bytes_since_aged < index_largest_run (x))
    return;
  x->bytes_since_aged = 0;
  x->events.aged (x->events.opaque);
}

int
dedup_index_set_memory (struct dedup_index *x, uint64_t bytes)
{
  int r;

  x->memory_bound = bytes;
  r = bytes ? index_limit_trim (x) : 0;
  if (r < 0 && r != -ENOSPC)     /* -ENOSPC: owed, or done later */
    return r;
  lock_acquire (x->lock);
  x->view->aging = index_aging (x, x->manifest);
  lock_release (x->lock);
  return r;
}
