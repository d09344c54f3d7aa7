/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens and closes an index, and tells what is due.
 *
 * The parts: young.c has the log stores, view.c and lookup.c what lookups ask,
 * manifest.c the list of tables, publish.c how a new list becomes durable and
 * visible, retired.c and reap.c how space is freed, freeze*.c how log stores
 * become tables, load.c how filters are loaded, merge*.c and convert.c how
 * tables become fewer, memory-limit.c how the oldest are forgotten, give-up.c
 * how damaged ones are dropped.
 *
 * Threads: open and close are called by one thread, with no other at work; what
 * is due is atomic, so that anybody may ask.
 */
#include "index-private.h"

#include <errno.h>
#include <string.h>

static void
init (struct dedup_index *x, const struct dedup_index_params *p)
{
  x->lock = p->lock;
  x->log = p->log;
  x->store_id = p->store_id;
  x->area_unit = p->area_unit;
  x->other_memory = p->other_memory;
  x->current_mark = p->mark;
  x->storage = p->storage;
  x->values = p->values;
  x->events = p->events;
  x->exact = x->complete = true;
}

int
dedup_index_open (const struct dedup_index_params *p,
                  const struct dedup_index_manifest *m,
                  struct dedup_index **out)
{
  struct dedup_index *x = calloc (1, sizeof *x);
  int r = 0;

  if (x == NULL)
    return -ENOMEM;
  init (x, p);
  x->name = strdup (p->name);
  x->manifest = malloc (sizeof *x->manifest);
  if (x->name == NULL || x->manifest == NULL)
    r = -ENOMEM;
  if (r == 0) {
    *x->manifest = *m;
    r = dedup_log_store_new (m->order, &x->current);
  }
  if (r == 0)
    r = index_view_new (x, m, 0, &x->view);
  if (r < 0) {
    dedup_index_close (x);
    return r;
  }
  *out = x;
  return 0;
}

void
dedup_index_close (struct dedup_index *x)
{
  if (x == NULL)
    return;
  dedup_log_store_free (x->current);
  dedup_log_store_free (x->frozen);
  dedup_log_store_free (x->spare);
  index_view_unref (x->view);
  index_view_unref (x->owed);
  index_retired_free (x->retired, x->nr_retired);
  free (x->reused);
  free (x->manifest);
  free (x->name);
  free (x);
}

void
dedup_index_stop (struct dedup_index *x)
{
  __atomic_store_n (&x->stop, true, __ATOMIC_RELAXED);
}

void
dedup_index_skip_ids (struct dedup_index *x, uint64_t nr)
{
  x->manifest->next_id += nr;
}

uint64_t
dedup_index_next_id (const struct dedup_index *x)
{
  return x->manifest->next_id;
}

bool
dedup_index_exact_locked (const struct dedup_index *x)
{
  assert (lock_held (x->lock));
  return x->exact;
}

void
dedup_index_doubt_locked (struct dedup_index *x)
{
  assert (lock_held (x->lock));
  x->exact = false;
}

bool
dedup_index_complete_locked (const struct dedup_index *x)
{
  assert (lock_held (x->lock));
  return x->complete;
}

void
dedup_index_incomplete_locked (struct dedup_index *x)
{
  assert (lock_held (x->lock));
  x->complete = false;
}

unsigned
dedup_index_due (const struct dedup_index *x)
{
  unsigned due = 0;

  if (!__atomic_load_n (&x->filters_loaded, __ATOMIC_RELAXED))
    due |= DEDUP_INDEX_LOAD;
  if (__atomic_load_n (&x->merge_due, __ATOMIC_RELAXED))
    due |= DEDUP_INDEX_MERGE;
  if (__atomic_load_n (&x->merge_idle_due, __ATOMIC_RELAXED))
    due |= DEDUP_INDEX_MERGE_IDLE;
  return due;
}
