/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what the index holds and how much memory and storage it takes, and
 * checks all of its tables.
 *
 * Figures are as of one moment: the caller holds the lock and edits nothing.
 * An entry that several tables have is counted in each.  A check reads every
 * page of the current view's tables, and reports each table that is wrong,
 * with the first thing that is wrong in it.
 *
 * Threads: figures under the lock, by the thread that edits; a check by any one
 * thread, while nobody edits.
 *
 * Left out: log stores are not checked, as nothing but this program's memory
 * has them; and nothing is repaired (give-up.c drops damaged tables).
 */
#include "index-private.h"

#include <stdio.h>

static void
count_tables (const struct dedup_index_manifest *m,
              struct dedup_index_figures *f)
{
  size_t i;

  f->order = m->order;
  f->max_incarnations = m->max_incarnations;
  f->nr_incarnations = m->nr_incarnations;
  f->nr_runs = dedup_manifest_runs (m);
  for (i = 0; i < m->nr_incarnations; i++) {
    const struct dedup_incarnation_desc *d = &m->incarnations[i];

    f->incarnation_entries += d->nr_entries - d->nr_deleted;
    f->tombstones += d->nr_deleted;
    f->disk_bytes += d->size_bytes;
  }
  for (i = 0; i < m->nr_segments; i++) {
    const struct dedup_segment_desc *d = &m->segments[i];

    f->run_entries += d->nr_entries - d->nr_deleted;
    f->tombstones += d->nr_deleted;
    f->disk_bytes += d->size_bytes;
  }
  for (i = 0; i < m->nr_limbo; i++)
    f->disk_bytes += m->limbo[i].size_bytes;
}

static void
count_log_store (const struct dedup_log_store *ls,
                 struct dedup_index_figures *f)
{
  if (ls == NULL)
    return;
  f->log_store_entries += dedup_log_store_count (ls) -
    dedup_log_store_deleted (ls);
  f->tombstones += dedup_log_store_deleted (ls);
  f->memory_bytes += dedup_log_store_memory (ls);
}

static void
count_memory (const struct dedup_index_view *v, struct dedup_index_figures *f)
{
  size_t i;

  for (i = 0; i < v->nr; i++)
    f->memory_bytes += dedup_incarnation_memory (v->v[i]);
  for (i = 0; i < v->nr_segments; i++)
    f->memory_bytes += dedup_segment_memory (v->segments[i]);
}

void
dedup_index_figures_locked (struct dedup_index *x,
                            struct dedup_index_figures *f)
{
  assert (lock_held (x->lock));
  *f = (struct dedup_index_figures) { .memory_bound = x->memory_bound,
                                      .forgotten = x->nr_forgotten,
                                      .memory_bytes = x->other_memory };
  count_tables (x->manifest, f);
  count_log_store (x->current, f);
  count_log_store (x->frozen, f);
  count_log_store (x->spare, f);
  f->log_store_entries += x->nr_spilled;
  count_memory (x->view, f);
}

void
dedup_index_check (struct dedup_index *x,
                   void (*problem) (void *opaque, const char *line),
                   void *opaque)
{
  const struct dedup_index_view *v = x->view;
  char line[640];
  size_t i;

  for (i = 0; i < v->nr; i++) {
    struct fault why = { 0 };

    if (dedup_incarnation_check (v->v[i], &why) == 0)
      continue;
    snprintf (line, sizeof line, "incarnation %llu: %s", (unsigned long long)
              dedup_incarnation_desc (v->v[i])->id, why.msg);
    problem (opaque, line);
  }
  for (i = 0; i < v->nr_segments; i++) {
    struct fault why = { 0 };

    if (dedup_segment_check (v->segments[i], &why) == 0)
      continue;
    snprintf (line, sizeof line, "segment of a run: %s", why.msg);
    problem (opaque, line);
  }
}
