/* SPDX-License-Identifier: BSD-3-Clause */
/* Edits the list of tables, inside the index: an edit changes a copy, notes the
 * tables that the copy no longer lists, and is then committed.  An edit that is
 * dropped instead changes nothing. */
#ifndef DEDUP_INDEX_PUBLISH_H
#define DEDUP_INDEX_PUBLISH_H

#include "index-private.h"

struct index_edit {
  struct dedup_index *x;
  struct dedup_index_manifest *m;    /* a copy, to be changed */
  struct index_retired *retired;     /* NR_RETIRED, once M is durable */
  size_t nr_retired;
};

/* Starts an edit with a copy of the list.  -ENOMEM. */
int index_edit_begin (struct dedup_index *x, struct index_edit *e)
  MUST_CHECK;
/* Ends an edit without a change. */
void index_edit_drop (struct index_edit *e);
/* Removes segment I from the list.  Its area is freed when nobody reads it any
 * more (reap.c). */
void index_edit_unlist_segment (struct index_edit *e, size_t i);
/* Removes incarnation I from the list.  Its area is kept in limbo where there
 * is a limit on incarnations, else it is freed as a segment's. */
void index_edit_unlist_incarnation (struct index_edit *e, size_t i);

/* Describes what a commit adds to the list. */
struct index_news {
  const struct dedup_segment_desc *segment;   /* new; NULL: none */
  struct dedup_segment_meta *meta;   /* of SEGMENT; taken over in any case */
  bool incarnation;                  /* a new one, whose filter is not loaded */
  uint64_t new_off, new_size;        /* area of the new table; size 0: none */
  bool frozen_done;                  /* the list makes the frozen log store
                                      * unnecessary */
};
/* Makes E->m durable and publishes its view.  E is dropped, and the area of the
 * new table is taken over, in any case: the caller must not free it.  -ENOSPC:
 * the list is owed (storage.h). */
int index_edit_commit (struct index_edit *e, const struct index_news *news)
  MUST_CHECK;

/* Commits the list, if it is owed.  A function that plans by the list calls
 * this first. */
int index_settle (struct dedup_index *x) MUST_CHECK;

#endif
