/* SPDX-License-Identifier: BSD-3-Clause */
/* Edits the list of tables: a copy is changed and made durable by the owner,
 * and only then lookups ask its tables.
 *
 * A table is written and synced before the list that has it is committed (law
 * 8); one that the new list lacks keeps its space until the commit succeeded
 * (law 9, reap.c).
 *
 * A commit for which the host has no space is owed: the next open may find
 * either list, so the new one stays, lookups go on with the old view, and no
 * area is freed until a later commit succeeds.  Lookups must find what the old
 * list has: the owner of an exact index deletes only entries that it finds, and
 * an entry that was left out would be back after a crash.
 *
 * Editing functions only.
 */
#include "index-private.h"

#include <errno.h>
#include <string.h>

#include "publish.h"

/* --- An edit ------------------------------------------------------------- */

int
index_edit_begin (struct dedup_index *x, struct index_edit *e)
{
  *e = (struct index_edit) { .x = x, .m = malloc (sizeof *e->m) };
  if (e->m == NULL)
    return -ENOMEM;
  *e->m = *x->manifest;
  return 0;
}

void
index_edit_drop (struct index_edit *e)
{
  index_retired_free (e->retired, e->nr_retired);
  free (e->m);
  *e = (struct index_edit) { .x = e->x };
}

void
index_edit_unlist_segment (struct index_edit *e, size_t i)
{
  const struct dedup_segment_desc *desc = &e->m->segments[i];
  const struct index_retired what = {
    .segment = index_find_segment (e->x, desc->id),
    .host_off = desc->host_off, .size_bytes = desc->size_bytes };

  index_retire (&e->retired, &e->nr_retired, &what);
  dedup_manifest_remove_segment (e->m, i);
}

/* Keeps the area for the next incarnation.  Where limbo is full, or new areas
 * lie in another file, the area is left to the owner's sweep for garbage. */
static void
put_in_limbo (struct index_edit *e, const struct dedup_incarnation_desc *desc)
{
  const struct dedup_index_storage *s = &e->x->storage;
  struct dedup_index_manifest *m = e->m;

  if (m->nr_limbo < DEDUP_MAX_LIMBO &&
      s->same_file_as_new (s->opaque, desc->host_off))
    m->limbo[m->nr_limbo++] = (struct dedup_limbo_area) {
      desc->host_off, desc->size_bytes };
}

void
index_edit_unlist_incarnation (struct index_edit *e, size_t i)
{
  const struct dedup_incarnation_desc *desc = &e->m->incarnations[i];
  const struct index_retired what = {
    .inc = index_find_incarnation (e->x, desc->id),
    .host_off = desc->host_off, .size_bytes = desc->size_bytes };

  if (e->m->max_incarnations > 0)
    put_in_limbo (e, desc);
  else
    index_retire (&e->retired, &e->nr_retired, &what);
  dedup_manifest_remove_incarnation (e->m, i);
}

/* Retires the areas in limbo.  Called where incarnations are not limited, as
 * nothing will be written to these areas then. */
static void
empty_limbo (struct index_edit *e)
{
  struct dedup_index_manifest *m = e->m;
  size_t i;

  for (i = 0; i < m->nr_limbo; i++) {
    const struct index_retired what = {
      .host_off = m->limbo[i].host_off, .size_bytes = m->limbo[i].size_bytes };

    index_retire (&e->retired, &e->nr_retired, &what);
  }
  m->nr_limbo = 0;
}

/* --- Commit -------------------------------------------------------------- */

/* Replaces the list in memory, from which later edits start, and retires the
 * tables that it no longer lists. */
static void
adopt_list (struct dedup_index *x, struct index_edit *e)
{
  size_t i;

  free (x->manifest);
  x->manifest = e->m;
  e->m = NULL;
  for (i = 0; i < e->nr_retired; i++)
    index_retire (&x->retired, &x->nr_retired, &e->retired[i]);
}

/* Makes the edited list the one that is owed; lookups ask VIEW when it is
 * durable. */
static void
owe (struct dedup_index *x, struct index_edit *e,
     struct dedup_index_view *view, bool frozen_done)
{
  adopt_list (x, e);
  index_view_unref (x->owed);
  x->owed = view;
  lock_acquire (x->lock);
  x->frozen_done = x->frozen_done || frozen_done;
  lock_release (x->lock);
}

void
dedup_index_committed (struct dedup_index *x)
{
  struct dedup_index_view *old;
  struct dedup_log_store *done = NULL;

  if (x->owed == NULL)
    return;
  lock_acquire (x->lock);
  old = x->view;
  x->view = x->owed;
  if (x->frozen_done) {
    done = x->frozen;
    x->frozen = NULL;
  }
  x->frozen_done = false;
  lock_release (x->lock);
  x->owed = NULL;
  if (x->late)                   /* load the filters of tables made meanwhile */
    __atomic_store_n (&x->filters_loaded, false, __ATOMIC_RELAXED);
  x->late = false;
  index_view_unref (old);
  index_keep_spare (x, done);
}

/* Commits the list that is owed. */
static int
commit (struct dedup_index *x)
{
  uint64_t mark;
  int r;

  lock_acquire (x->lock);
  mark = dedup_index_mark_locked (x);
  lock_release (x->lock);
  r = x->storage.commit (x->storage.opaque, x->manifest, mark);
  if (r == 0)
    dedup_index_committed (x);
  else
    x->late = true;
  return r;
}

int
index_settle (struct dedup_index *x)
{
  return x->owed ? commit (x) : 0;
}

/* Gives the writer's fences and filter to the new segment, so that they need
 * not be read. */
static void
adopt_meta (struct dedup_index_view *view, const struct index_news *news)
{
  struct dedup_segment *s = NULL;

  if (view && news->segment)
    s = index_view_segment (view, news->segment->id);
  if (s)
    dedup_segment_adopt (s, news->meta);
  else
    dedup_segment_meta_free (news->meta);
}

int
index_edit_commit (struct index_edit *e, const struct index_news *news)
{
  struct dedup_index *x = e->x;
  struct dedup_index_view *view = NULL;
  int r;

  dedup_manifest_settle (e->m);
  if (e->m->max_incarnations == 0)
    empty_limbo (e);
  r = index_view_new (x, e->m, index_aging (x, e->m), &view);
  adopt_meta (view, news);
  if (r == 0) {
    if (news->incarnation)
      __atomic_store_n (&x->filters_loaded, false, __ATOMIC_RELAXED);
    owe (x, e, view, news->frozen_done);
    r = commit (x);
  }
  else
    index_give_up_area (x, news->new_off, news->new_size);
  index_edit_drop (e);
  return r;
}
