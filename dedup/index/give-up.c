/* SPDX-License-Identifier: BSD-3-Clause */
/* Parts of the index that are given up: damaged tables, and a log store for
 * which there is no space.  It costs ratio only; the index is not exact any
 * more, as tombstones may be lost with them.
 *
 * Editing functions only.
 */
#include "publish.h"

static void
doubt (struct dedup_index *x)
{
  LOCK_FOR_SCOPE (x->lock);
  x->exact = false;
}

/* Commits E, and frees what is not read any more. */
static int
commit_and_reap (struct dedup_index *x, struct index_edit *e,
                 const struct index_news *news)
{
  int r = index_edit_commit (e, news);

  return r < 0 ? r : dedup_index_reap (x);
}

int
index_drop_incarnation (struct dedup_index *x, uint64_t id)
{
  const struct index_news nothing = { .new_size = 0 };
  struct index_edit e;
  size_t i;
  int r = index_edit_begin (x, &e);

  if (r < 0)
    return r;
  log_line (x->log, LOG_ERROR, "%s: incarnation %llu of the index is damaged: "
            "its entries are lost", x->name, (unsigned long long) id);
  doubt (x);
  i = dedup_manifest_find_incarnation (e.m, id);
  if (i < e.m->nr_incarnations)
    index_edit_unlist_incarnation (&e, i);
  return commit_and_reap (x, &e, &nothing);
}

int
index_drop_segment (struct dedup_index *x, uint64_t id)
{
  const struct index_news nothing = { .new_size = 0 };
  struct index_edit e;
  size_t i;
  int r = index_edit_begin (x, &e);

  if (r < 0)
    return r;
  log_line (x->log, LOG_ERROR, "%s: segment %llu of the index is damaged: "
            "its entries are lost", x->name, (unsigned long long) id);
  doubt (x);
  for (i = 0; i < e.m->nr_segments; i++)
    if (e.m->segments[i].id == id) {
      index_edit_unlist_segment (&e, i);
      break;
    }
  return commit_and_reap (x, &e, &nothing);
}

int
dedup_index_drop_frozen (struct dedup_index *x)
{
  const struct index_news news = { .frozen_done = true };
  struct index_edit e;
  bool frozen;
  int r = index_settle (x);

  if (r < 0)
    return r;
  lock_acquire (x->lock);
  frozen = x->frozen != NULL;
  lock_release (x->lock);
  if (!frozen)                  /* a table has it by now */
    return 0;
  r = index_edit_begin (x, &e);
  if (r < 0)
    return r;
  log_line (x->log, LOG_ERROR, "%s: no space for a table of the index: some of "
            "its entries are given up", x->name);
  doubt (x);
  return index_edit_commit (&e, &news);
}
