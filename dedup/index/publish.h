/* SPDX-License-Identifier: BSD-3-Clause */
/* Editing the list of tables, inside the index: change a copy, retire what it
 * lists no more, commit.  An edit that is not committed is dropped, and changes
 * nothing. */
#ifndef DEDUP_INDEX_PUBLISH_H
#define DEDUP_INDEX_PUBLISH_H

#include "index-private.h"

struct index_edit {
  struct dedup_index *x;
  struct dedup_index_manifest *m;    /* a copy, to be changed */
  struct index_retired *retired;     /* NR_RETIRED, once M is durable */
  size_t nr_retired;
};

int index_edit_begin (struct dedup_index *x, struct index_edit *e)
  MUST_CHECK;
void index_edit_drop (struct index_edit *e);
/* Takes segment I, or incarnation I, off the list.  The segment's space is freed
 * when nobody reads it any more, and so is the incarnation's where there is no
 * limit on incarnations; where there is one, its area goes to limbo. */
void index_edit_unlist_segment (struct index_edit *e, size_t i);
void index_edit_unlist_incarnation (struct index_edit *e, size_t i);

/* What becomes known with the list: */
struct index_news {
  const struct dedup_segment_desc *segment;   /* new; NULL: none */
  struct dedup_segment_meta *meta;   /* of it; taken over in any case */
  bool incarnation;                  /* a new one, whose filter is not loaded */
  uint64_t new_off, new_size;        /* area of the new table; size 0: none */
  bool frozen_done;                  /* the list has what the frozen log store
                                      * has */
};
/* Makes E->m durable and publishes the view that goes with it.  E is dropped, and
 * the area of the new table is taken over, in any case: the caller must not free
 * it.  -ENOSPC: the list is owed (storage.h). */
int index_edit_commit (struct index_edit *e, const struct index_news *news)
  MUST_CHECK;

/* Commits the list, if it is owed: whoever plans by what is listed does that
 * first. */
int index_settle (struct dedup_index *x) MUST_CHECK;

#endif
