/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the open index, and the functions that its files offer each other.
 * All other rooms include index.h only.
 */
#ifndef DEDUP_INDEX_PRIVATE_H
#define DEDUP_INDEX_PRIVATE_H

#include <stdlib.h>

#include "checked.h"
#include "index.h"
#include "log-store.h"
#include "mutation.h"

struct index_edit;               /* publish.h */
struct index_reused;             /* merge-reused.c */

/* A table that is no longer listed but may still be read: a segment, an
 * incarnation, or an area that was in limbo. */
struct index_retired {
  struct dedup_segment *segment;     /* or */
  struct dedup_incarnation *inc;     /* or neither */
  uint64_t host_off, size_bytes;
};

struct dedup_index {
  /* Constant after open: */
  struct lock *lock;
  const struct log_sink *log;
  char *name;
  uint64_t store_id, area_unit, other_memory;
  struct dedup_index_storage storage;
  struct dedup_index_values values;
  struct dedup_index_events events;

  /* Atomic: */
  bool stop;                         /* long work is asked to return soon */
  bool filters_loaded;
  bool merge_due, merge_idle_due;

  /* Protected by lock: */
  struct dedup_log_store *current;
  struct dedup_log_store *frozen;    /* NULL: none */
  struct dedup_log_store *spare;     /* empty, kept for reuse; NULL: none */
  uint64_t current_mark, frozen_mark;
  struct dedup_index_view *view;     /* what lookups ask */
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];   /* without a place in
                                                    * CURRENT */
  size_t nr_spilled;
  bool frozen_done;                  /* MANIFEST, which is owed, makes the
                                      * frozen log store unnecessary */
  bool exact, complete;

  /* Editing functions only: */
  struct dedup_index_manifest *manifest;
  uint64_t memory_bound;             /* 0: none; see memory-limit.c */
  struct dedup_index_view *owed;     /* the view of MANIFEST, if that is owed;
                                      * NULL: MANIFEST is durable */
  bool late;                         /* a commit found no space */
  struct index_retired *retired;     /* NR_RETIRED, newest last */
  size_t nr_retired;
  uint64_t nr_forgotten;             /* entries, since open */
  uint64_t bytes_since_aged;         /* bytes of tables */
  struct index_reused *reused;       /* for the thread that works on a step */
};

static inline bool
index_stopping (const struct dedup_index *x)
{
  return __atomic_load_n (&x->stop, __ATOMIC_RELAXED);
}

/* Parts of a log store (log-store.h) that are copied under one hold of the lock: some
 * tens of microseconds. */
#define INDEX_COPY_PARTS 8

/* Ends exactness and completeness, because entries are lost and tombstones may be
 * among them.  Called without the lock. */
static inline void
index_doubt (struct dedup_index *x)
{
  LOCK_FOR_SCOPE (x->lock);
  x->exact = x->complete = false;
}

/* --- young.c ------------------------------------------------------------- */

/* Keeps LS, a frozen log store that is not needed any more, to become the next
 * current one; frees it if another is kept already.  NULL is fine. */
void index_keep_spare (struct dedup_index *x, struct dedup_log_store *ls);

/* --- view.c: the tables that lookups ask --------------------------------- */

/* One table that lookups ask: an incarnation, or a run, which consists of NR
 * segments from FIRST on. */
struct index_table {
  uint64_t age;                      /* the higher, the younger */
  struct dedup_incarnation *inc;
  size_t first, nr;
  uint32_t merge;                    /* that the run takes part in; 0: none */
};

/* The hash prefixes that a segment answers for. */
struct index_range { uint32_t lo, hi; };

struct dedup_index_view {
  unsigned users;                    /* atomic */
  uint64_t aging;                    /* tables of this age and older are about
                                      * to be forgotten; 0: none */
  size_t nr_tables;
  struct index_table *tables;        /* youngest first */
  size_t nr_segments;
  struct dedup_segment **segments;   /* as the manifest lists them */
  struct index_range *ranges;        /* of each segment */
  size_t nr;
  struct dedup_incarnation *v[];     /* youngest first */
};

/* Makes the view that goes with M, where tables up to the age AGING are about
 * to be forgotten; tables that the current view has open are shared with it. */
int index_view_new (struct dedup_index *x,
                    const struct dedup_index_manifest *m, uint64_t aging,
                    struct dedup_index_view **out) MUST_CHECK;
/* Gives V back without looking for damage.  NULL is fine. */
void index_view_unref (struct dedup_index_view *v);
/* Returns the open segment or incarnation with this id, or NULL. */
struct dedup_segment *
index_view_segment (const struct dedup_index_view *v, uint64_t id);
struct dedup_incarnation *
index_view_incarnation (const struct dedup_index_view *v, uint64_t id);

/* Returns the open segment or incarnation with this id in the view that is
 * owed, or else in the current one, or NULL. */
struct dedup_segment *index_find_segment (const struct dedup_index *x,
                                          uint64_t id);
struct dedup_incarnation *index_find_incarnation (const struct dedup_index *x,
                                                  uint64_t id);

/* --- lookup.c ------------------------------------------------------------ */

/* Returns true if a table before number TABLE (a younger one) has H. */
bool index_hidden (const struct dedup_index_view *v, size_t table,
                   const struct dedup_hash *h);

/* --- retired.c ----------------------------------------------------------- */

/* Appends WHAT to the list V: an area that is to be freed when the readers of
 * its segment or incarnation have ended.  If memory is short, the area is left
 * to the owner's sweep for garbage. */
void index_retire (struct index_retired **v, size_t *nr,
                   const struct index_retired *what);
/* Gives P's reference to its table back. */
void index_retired_put (const struct index_retired *p);
/* Frees the list V and its references, but no area. */
void index_retired_free (struct index_retired *v, size_t nr);
/* Frees an area that no manifest ever listed.  If that fails, it is left to the
 * owner's sweep for garbage. */
void index_give_up_area (struct dedup_index *x, uint64_t host_off,
                         uint64_t size);

/* --- memory-size.c: what tables take ------------------------------------- */

/* Returns how many bits an entry the filter of a run gets which has NR_ENTRIES
 * of the index's IN_ALL entries. */
unsigned index_run_bits (unsigned level, uint64_t in_all, uint64_t nr_entries);
/* Each returns the bytes of memory that something takes: a segment, an
 * incarnation, the table that a log store becomes, NR segments from number
 * FIRST on, all tables of M. */
uint64_t index_segment_bytes (const struct dedup_index *x,
                              const struct dedup_segment_desc *desc);
uint64_t index_incarnation_bytes (const struct dedup_incarnation_desc *desc);
uint64_t index_young_bytes (unsigned order, bool limited);
uint64_t index_run_bytes (const struct dedup_index *x,
                          const struct dedup_index_manifest *m, size_t first,
                          size_t nr);
uint64_t index_table_bytes (const struct dedup_index *x,
                            const struct dedup_index_manifest *m);
/* Returns the bytes of memory that all listed tables may take under the
 * bound. */
uint64_t index_listed_bytes (const struct dedup_index *x);
/* Returns the bytes of memory that a run may take which a merge makes. */
uint64_t index_largest_run (const struct dedup_index *x);
/* Returns the age up to which tables of M are about to be forgotten; 0:
 * none. */
uint64_t index_aging (const struct dedup_index *x,
                      const struct dedup_index_manifest *m);

/* --- freeze-limited.c ---------------------------------------------------- */

/* Writes LS as an incarnation, where their number is limited. */
int index_freeze_limited (struct dedup_index *x,
                          const struct dedup_log_store *ls) MUST_CHECK;

/* --- give-up.c ----------------------------------------------------------- */

/* Drops the incarnation or segment with this id, which is damaged. */
int index_drop_incarnation (struct dedup_index *x, uint64_t id) MUST_CHECK;
int index_drop_segment (struct dedup_index *x, uint64_t id) MUST_CHECK;

/* --- memory-limit.c ------------------------------------------------------ */

/* Removes the oldest tables from E's list until the others fit the bound.
 * Returns true if some were removed. */
bool index_limit_edit (struct index_edit *e);
/* Removes the oldest tables until the others fit the bound, and commits. */
int index_limit_trim (struct dedup_index *x) MUST_CHECK;
/* As index_limit_trim, but removes one segment or incarnation in any case. */
int index_limit_drop_oldest (struct dedup_index *x) MUST_CHECK;
/* Takes note that a log store became a table. */
void index_limit_note_freeze (struct dedup_index *x);
/* --- merge.c ------------------------------------------------------------- */

/* Carries out one step of a merge from start to finish, so that the list
 * becomes shorter.  -ENOSPC: there is nothing to merge. */
int index_merge_now (struct dedup_index *x) MUST_CHECK;

#endif
