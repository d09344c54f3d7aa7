/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes a sample of the entries to the owner, which can tell how many are
 * live.
 *
 * One entry in EVERY is taken of log stores, one page in EVERY of tables:
 * hashes are uniform, so a page is as good a sample as any, in whatever kind
 * of table.
 *
 * One thread, and nobody changes the index meanwhile.
 */
#include "index-private.h"

#include <errno.h>

struct sample {
  struct dedup_index *x;
  const struct dedup_index_view *view;
  uint64_t every, passed;
  void (*cb) (void *opaque, const struct dedup_entry *e, bool hidden);
  void *opaque;
};

/* Counts an entry or page; returns true for one in s->every. */
static bool
is_chosen (struct sample *s)
{
  return s->passed++ % s->every == 0;
}

/* --- Log stores ---------------------------------------------------------- */

/* Passes on entries of LS; those that YOUNGER has as well are hidden.  LS and
 * YOUNGER may be NULL. */
static void
show_log_store (struct sample *s, const struct dedup_log_store *ls,
                const struct dedup_log_store *younger)
{
  struct dedup_entry e;
  size_t i, slots;
  uint64_t value;

  if (ls == NULL)
    return;
  slots = (size_t) DEDUP_BUCKET_SLOTS << dedup_log_store_order (ls);
  for (i = 0; i < slots; i++)
    if (dedup_log_store_slot (ls, i, &e.hash, &e.value) && is_chosen (s))
      s->cb (s->opaque, &e, younger &&
             dedup_log_store_lookup (younger, &e.hash, &value));
}

static void
show_log_stores (struct sample *s)
{
  const struct dedup_index *x = s->x;
  size_t i;

  for (i = 0; i < x->nr_spilled; i++)
    if (is_chosen (s))
      s->cb (s->opaque, &x->spilled[i], false);
  show_log_store (s, x->current, NULL);
  show_log_store (s, x->frozen, x->current);
}

/* --- Tables -------------------------------------------------------------- */

static bool
in_log_store (struct sample *s, const struct dedup_hash *h)
{
  uint64_t value;

  LOCK_FOR_SCOPE (s->x->lock);
  return dedup_index_lookup_locked (s->x, h, &value) != DEDUP_PROBE;
}

/* Passes on the entries V of a page of table number TABLE; those outside RANGE,
 * for which it does not answer, are hidden. */
static void
show_page (struct sample *s, size_t table, const struct index_range *range,
           const struct dedup_entry *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    const uint32_t prefix = dedup_hash_prefix (&v[i].hash);

    s->cb (s->opaque, &v[i], prefix < range->lo || prefix > range->hi ||
           in_log_store (s, &v[i].hash) ||
           index_hidden (s->view, table, &v[i].hash));
  }
}

static void
show_incarnation (struct sample *s, size_t table,
                  struct dedup_incarnation *inc)
{
  static const struct index_range all = { 0, UINT32_MAX };
  struct dedup_entry v[DEDUP_PAGE_ENTRIES];
  uint64_t i;
  size_t nr;

  for (i = 0; i < dedup_incarnation_pages (inc); i++)
    if (is_chosen (s) && dedup_incarnation_read (inc, i, v, &nr) == 0)
      show_page (s, table, &all, v, nr);
}

static void
show_segment (struct sample *s, size_t table, size_t i)
{
  struct dedup_segment *segment = s->view->segments[i];
  struct dedup_entry v[DEDUP_PAGE_ENTRIES];
  uint64_t page;
  size_t nr;

  for (page = 0; page < dedup_segment_pages (segment); page++)
    if (is_chosen (s) && dedup_segment_read (segment, page, v, &nr) == 0)
      show_page (s, table, &s->view->ranges[i], v, nr);
}

static void
show_tables (struct sample *s)
{
  size_t t, i;

  for (t = 0; t < s->view->nr_tables; t++) {
    const struct index_table *table = &s->view->tables[t];

    if (table->inc)
      show_incarnation (s, t, table->inc);
    for (i = 0; i < table->nr; i++)
      show_segment (s, t, table->first + i);
  }
}

int
dedup_index_sample (struct dedup_index *x, uint64_t every,
                    void (*cb) (void *opaque, const struct dedup_entry *e,
                                bool hidden), void *opaque)
{
  struct sample s = { .x = x, .every = every, .cb = cb, .opaque = opaque };
  struct dedup_index_view *view;

  if (every == 0)
    return -EINVAL;
  lock_acquire (x->lock);
  view = dedup_index_view_locked (x);
  lock_release (x->lock);
  s.view = view;
  show_log_stores (&s);
  show_tables (&s);
  index_view_unref (view);
  return 0;
}
