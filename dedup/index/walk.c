/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes all entries that lead to a range of values to the owner, as they were
 * at one moment, each with the rank of its table: the lower, the younger.
 *
 * The moment is that of the hold of the lock in which the view is taken.  The log
 * stores are copied as they are then, in many short holds: what changes meanwhile is
 * copied before (log-store.h).  The tables of the view are read without the lock.
 *
 * Entries of one table have no order in time, and have the same rank.  So have
 * the inputs and the output of a merge that is under way, because the output
 * holds entries of all its inputs.  An entry that was set aside or merged never
 * gets a lower rank than one that was entered later, except for entries that
 * found no place in their log store: the owner takes care of these.
 *
 * Threads: one for each walk; any number of walks beside all else.
 */
#include "index-private.h"

#include <errno.h>

struct dedup_index_walk {
  struct dedup_index *x;
  uint64_t from, to;
  struct dedup_index_view *view;
  unsigned *ranks;                   /* of the view's tables */
  bool lossy;
  uint64_t done, total;              /* pages, and parts of the young ones */
  /* Copied from the log stores: */
  struct dedup_walked *young;
  size_t nr_young, max_young, next_young;
  size_t nr_frozen;                  /* at the end of YOUNG, while it is filled */
  struct dedup_log_copy current, frozen;
  uint8_t *copied;                   /* parts of both */
  /* The next page: */
  size_t table, segment;
  uint64_t page;
};

/* --- Log stores ---------------------------------------------------------- */

static bool
is_wanted (const struct dedup_index_walk *w, uint64_t value)
{
  return value >= w->from && value < w->to;
}

static void
take_young (struct dedup_index_walk *w, const struct dedup_entry *e,
            unsigned rank)
{
  if (is_wanted (w, e->value))
    w->young[w->nr_young++] = (struct dedup_walked) { *e, rank };
}

static void
take_current (void *opaque, const struct dedup_entry *e)
{
  take_young (opaque, e, 0);
}

/* The entries of the frozen log store go to the end of the array: they come behind
 * those of the current one, whichever part is copied first. */
static void
take_frozen (void *opaque, const struct dedup_entry *e)
{
  struct dedup_index_walk *w = opaque;

  if (is_wanted (w, e->value))
    w->young[w->max_young - ++w->nr_frozen] = (struct dedup_walked) { *e, 1 };
}

/* Returns how many entries are young, and in *PARTS how many parts the log stores
 * have. */
static size_t
count_young_locked (const struct dedup_index *x, size_t *parts)
{
  assert (lock_held (x->lock));
  *parts = dedup_log_copy_parts (x->current) +
    dedup_log_copy_parts (x->frozen);
  return x->nr_spilled + dedup_log_store_count (x->current) +
    (x->frozen ? dedup_log_store_count (x->frozen) : 0);
}

/* Fixes the moment of the walk. */
static void
start_locked (struct dedup_index_walk *w)
{
  struct dedup_index *x = w->x;
  size_t i;

  assert (lock_held (x->lock));
  for (i = 0; i < x->nr_spilled; i++)
    take_young (w, &x->spilled[i], 0);
  w->current = (struct dedup_log_copy) { .take = take_current, .opaque = w,
                                         .copied = w->copied };
  w->frozen = (struct dedup_log_copy) {
    .take = take_frozen, .opaque = w,
    .copied = w->copied + dedup_log_copy_parts (x->current) };
  dedup_log_copy_start (&w->current, x->current);
  if (x->frozen)
    dedup_log_copy_start (&w->frozen, x->frozen);
  w->view = dedup_index_view_locked (x);
}

static void
copy_young (struct dedup_index_walk *w)
{
  bool more;

  do {
    lock_acquire (w->x->lock);
    more = dedup_log_copy_some (&w->current, INDEX_COPY_PARTS) ||
      dedup_log_copy_some (&w->frozen, INDEX_COPY_PARTS);
    lock_release (w->x->lock);
  } while (more);
  memmove (w->young + w->nr_young, w->young + w->max_young - w->nr_frozen,
           w->nr_frozen * sizeof *w->young);
  w->nr_young += w->nr_frozen;
}

/* Copies the young entries and takes the view.  The memory is allocated without
 * the lock, so more entries may have come when it is there. */
static int
take_all (struct dedup_index_walk *w)
{
  struct dedup_index *x = w->x;
  size_t max, nr, max_parts = 0, parts;

  for (max = 0; ; max = nr + nr / 8 + 64, max_parts = parts) {
    w->max_young = max;
    w->young = malloc (MAX_OF (max, 1) * sizeof *w->young);
    w->copied = calloc (MAX_OF (max_parts, 1), 1);
    if (w->young == NULL || w->copied == NULL)
      return -ENOMEM;
    lock_acquire (x->lock);
    nr = count_young_locked (x, &parts);
    if (nr <= max && parts <= max_parts)
      start_locked (w);
    lock_release (x->lock);
    if (w->view)
      break;
    free (w->young);
    free (w->copied);
  }
  copy_young (w);
  return 0;
}

/* --- Tables -------------------------------------------------------------- */

static int
rank_tables (struct dedup_index_walk *w)
{
  const struct dedup_index_view *v = w->view;
  unsigned rank = 1;
  uint32_t before = 0;
  size_t i;

  w->ranks = malloc ((v->nr_tables + 1) * sizeof *w->ranks);
  if (w->ranks == NULL)
    return -ENOMEM;
  for (i = 0; i < v->nr_tables; i++) {
    const uint32_t merge = v->tables[i].merge;

    rank += merge == 0 || merge != before;
    w->ranks[i] = rank;
    before = merge;
  }
  for (i = 0; i < v->nr; i++)
    w->total += dedup_incarnation_pages (v->v[i]);
  for (i = 0; i < v->nr_segments; i++)
    w->total += dedup_segment_pages (v->segments[i]);
  return 0;
}

static uint64_t
pages_here (const struct dedup_index_walk *w, const struct index_table *t)
{
  return t->inc ? dedup_incarnation_pages (t->inc)
    : dedup_segment_pages (w->view->segments[t->first + w->segment]);
}

/* Moves to the next page that there is.  False: there is none. */
static bool
find_page (struct dedup_index_walk *w)
{
  const struct index_table *t;

  for (; w->table < w->view->nr_tables; w->table++, w->segment = 0) {
    t = &w->view->tables[w->table];
    for (; w->segment < (t->inc ? 1 : t->nr); w->segment++, w->page = 0)
      if (w->page < pages_here (w, t))
        return true;
  }
  return false;
}

static int
read_page (struct dedup_index_walk *w, struct dedup_entry *v, size_t *nr)
{
  const struct index_table *t = &w->view->tables[w->table];

  return t->inc ? dedup_incarnation_read (t->inc, w->page, v, nr)
    : dedup_segment_read (w->view->segments[t->first + w->segment], w->page,
                          v, nr);
}

/* Returns whether the page's table answers for the hash of E. */
static bool
answers_for (const struct dedup_index_walk *w, const struct dedup_entry *e)
{
  const struct index_table *t = &w->view->tables[w->table];
  const uint32_t prefix = dedup_hash_prefix (&e->hash);
  const struct index_range *range;

  if (t->inc)
    return true;
  range = &w->view->ranges[t->first + w->segment];
  return prefix >= range->lo && prefix <= range->hi;
}

/* Passes on what is wanted of the next page.  0: there was none. */
static int
walk_page (struct dedup_index_walk *w, struct dedup_walked *out, size_t *nr)
{
  struct dedup_entry v[DEDUP_PAGE_ENTRIES];
  size_t i, n;
  int r;

  if (!find_page (w))
    return 0;
  r = read_page (w, v, &n);
  if (r == -ENOMEM)
    return r;
  w->lossy = w->lossy || r < 0;
  for (i = 0; r == 0 && i < n; i++)
    if (is_wanted (w, v[i].value) && answers_for (w, &v[i]))
      out[(*nr)++] = (struct dedup_walked) { v[i], w->ranks[w->table] };
  w->page++;
  w->done++;
  return 1;
}

/* --- The walk ------------------------------------------------------------ */

int
dedup_index_walk_begin (struct dedup_index *x, uint64_t from, uint64_t to,
                        struct dedup_index_walk **out)
{
  struct dedup_index_walk *w = calloc (1, sizeof *w);
  int r;

  if (w == NULL)
    return -ENOMEM;
  w->x = x;
  w->from = from;
  w->to = to;
  r = take_all (w);
  if (r == 0)
    r = rank_tables (w);
  if (r < 0) {
    dedup_index_walk_end (w);
    return r;
  }
  *out = w;
  return 0;
}

int
dedup_index_walk_next (struct dedup_index_walk *w,
                       struct dedup_walked out[DEDUP_WALK_ENTRIES], size_t *nr)
{
  *nr = 0;
  if (w->next_young == w->nr_young)
    return walk_page (w, out, nr);
  *nr = MIN_OF (w->nr_young - w->next_young, DEDUP_WALK_ENTRIES);
  memcpy (out, w->young + w->next_young, *nr * sizeof *out);
  w->next_young += *nr;
  return 1;
}

bool
dedup_index_walk_lossy (const struct dedup_index_walk *w)
{
  return w->lossy;
}

void
dedup_index_walk_progress (const struct dedup_index_walk *w, uint64_t *done,
                           uint64_t *total)
{
  *done = w->done;
  *total = w->total;
}

/* Pages of a table that is not listed any more may have been written again
 * meanwhile; only the current view's damage is damage of the index. */
void
dedup_index_walk_end (struct dedup_index_walk *w)
{
  bool current;

  if (w == NULL)
    return;
  if (w->view != NULL) {
    lock_acquire (w->x->lock);
    current = dedup_index_is_current_locked (w->x, w->view);
    lock_release (w->x->lock);
    if (current)
      dedup_index_view_put (w->x, w->view);
    else
      index_view_unref (w->view);
  }
  free (w->ranks);
  free (w->copied);
  free (w->young);
  free (w);
}
