/* SPDX-License-Identifier: BSD-3-Clause */
/* Drops parts of the index: damaged tables, and a frozen log store for which
 * there is no space.  That costs ratio only.  The index is not exact any more,
 * because tombstones may be lost.
 *
 * Editing functions only.
 */
#include "publish.h"

/* Commits E, and frees the areas that are not read any more. */
static int
commit_and_reap (struct dedup_index *x, struct index_edit *e,
                 const struct index_news *news)
{
  int r = index_edit_commit (e, news);

  return r < 0 ? r : dedup_index_reap (x);
}

/* Begins the edit that drops table ID (WHAT: its kind), and logs that.  A list
 * that is owed is committed first, so that on a host without space the message
 * is not repeated at each attempt. */
static int
begin_drop (struct dedup_index *x, const char *what, uint64_t id,
            struct index_edit *e)
{
  int r = index_settle (x);

  if (r == 0)
    r = index_edit_begin (x, e);
  if (r < 0)
    return r;
  log_line (x->log, LOG_ERROR, "%s: %s %llu of the index is damaged: its "
            "entries are lost", x->name, what, (unsigned long long) id);
  index_doubt (x);
  return 0;
}

int
index_drop_incarnation (struct dedup_index *x, uint64_t id)
{
  const struct index_news nothing = { .new_size = 0 };
  struct index_edit e;
  size_t i;
  int r = begin_drop (x, "incarnation", id, &e);

  if (r < 0)
    return r;
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
  int r = begin_drop (x, "segment", id, &e);

  if (r < 0)
    return r;
  i = dedup_manifest_find_segment (e.m, id);
  if (i < e.m->nr_segments)
    index_edit_unlist_segment (&e, i);
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
  if (!frozen)                  /* meanwhile a table was written */
    return 0;
  r = index_edit_begin (x, &e);
  if (r < 0)
    return r;
  log_line (x->log, LOG_ERROR, "%s: no space for a table of the index: some of "
            "its entries are given up", x->name);
  index_doubt (x);
  return index_edit_commit (&e, &news);
}
