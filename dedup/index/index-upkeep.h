/* SPDX-License-Identifier: BSD-3-Clause */
/* The upkeep of an index: what its owner calls from time to time, so that log
 * stores become tables, tables become fewer, and their space is freed.  Part of
 * index.h, which includes it and explains locks, marks and "editing".
 *
 *   there is a frozen log store    dedup_index_freeze
 *   DEDUP_INDEX_LOAD is due        dedup_index_load_next
 *   DEDUP_INDEX_MERGE is due       dedup_index_step_start, _work, _finish
 *   space is scarce                dedup_index_reap, dedup_index_drop_frozen
 */
#ifndef DEDUP_INDEX_UPKEEP_H
#define DEDUP_INDEX_UPKEEP_H

/* --- What is due --------------------------------------------------------- */

#define DEDUP_INDEX_LOAD 1u         /* dedup_index_load_next */
#define DEDUP_INDEX_MERGE 2u        /* a step */
#define DEDUP_INDEX_MERGE_IDLE 4u   /* a step, if nothing else is due */
/* Returns the bits above that are due.  A freeze is due when
 * dedup_index_frozen_locked says so.  Not editing. */
unsigned dedup_index_due (const struct dedup_index *x);
/* Asks editing functions that take long to return soon, with -EINTR.  Not
 * editing. */
void dedup_index_stop (struct dedup_index *x);

/* --- Tables (all editing) ------------------------------------------------ */

/* Returns true if the next freeze has to merge first: no step may be under way
 * then. */
bool dedup_index_must_merge (const struct dedup_index *x);
/* Writes the frozen log store as a table.  Returns 0 if there is none. */
int dedup_index_freeze (struct dedup_index *x) MUST_CHECK;
/* Loads one filter, or drops one damaged table. */
int dedup_index_load_next (struct dedup_index *x) MUST_CHECK;
/* Drops the frozen log store, where there is no space for its table.  The index
 * is not exact any more. */
int dedup_index_drop_frozen (struct dedup_index *x) MUST_CHECK;
/* Frees the space of dropped tables that nobody reads any more. */
int dedup_index_reap (struct dedup_index *x) MUST_CHECK;
/* Returns true if HOST_OFF lies in an area that reap will free, and so nobody
 * else may. */
bool dedup_index_will_free (const struct dedup_index *x, uint64_t host_off);
/* Takes note that a manifest which was owed (storage.h) is durable. */
void dedup_index_committed (struct dedup_index *x);
/* Skips the next NR ids of tables: an unknown session may have used them. */
void dedup_index_skip_ids (struct dedup_index *x, uint64_t nr);
/* Returns the id that the next table will have. */
uint64_t dedup_index_next_id (const struct dedup_index *x);

/* A step merges runs up to the end of one output segment, or converts one
 * incarnation.  At most one is under way at a time.  Start and finish are
 * editing.  Work does nearly all of it, and may run beside anything but another
 * step. */
struct dedup_index_step;
#define DEDUP_STEP_IDLE 1u          /* DEDUP_INDEX_MERGE_IDLE is due */
#define DEDUP_STEP_NO_CONVERSION 2u
/* Returns 1 if *STEP was started, 0 if there is nothing to do. */
int dedup_index_step_start (struct dedup_index *x, unsigned flags,
                            struct dedup_index_step **step) MUST_CHECK;
/* Returns true if S is a conversion. */
bool dedup_index_step_converts (const struct dedup_index_step *s);
int dedup_index_step_work (struct dedup_index_step *s) MUST_CHECK;
/* Lists what the step wrote, or clears up; R is what work returned.  S is
 * freed in any case. */
int dedup_index_step_finish (struct dedup_index_step *s, int r) MUST_CHECK;
/* Decides again whether merges are due.  IDLE_FAILED: a step that was started
 * with DEDUP_STEP_IDLE failed, and no other is due before there is another
 * table. */
void dedup_index_look (struct dedup_index *x, bool idle_failed);

/* --- Memory -------------------------------------------------------------- */

/* Bounds the memory of log stores, tables and p.other_memory to BYTES (0: no
 * bound), and forgets the oldest tables until they fit.  Called after open,
 * before dedup_index_load_next.  -ENOSPC: the list without the oldest tables is
 * owed; they are still asked, but filters of theirs that are not in memory are
 * not loaded, so that the bound holds.  Editing. */
int dedup_index_set_memory (struct dedup_index *x, uint64_t bytes) MUST_CHECK;
/* Returns the smallest bound for an index with log stores of this order;
 * LIMITED: the manifest's max_incarnations is not 0. */
uint64_t dedup_index_least_memory (unsigned order, bool limited,
                                   uint64_t other_memory);

/* --- Logging the current log store again --------------------------------- */

/* Lists the hashes of the current log store, so that the owner can log its
 * entries again and then move its mark.  *WHICH identifies the log store; the
 * caller frees *HASHES. */
int dedup_index_list_locked (struct dedup_index *x, struct dedup_hash **hashes,
                             size_t *nr, const void **which) MUST_CHECK;
/* Returns true if WHICH is still the current log store. */
bool dedup_index_is_listed_locked (const struct dedup_index *x,
                                   const void *which);
/* Returns true and *VALUE if the current log store has H. */
bool dedup_index_young_locked (const struct dedup_index *x,
                               const struct dedup_hash *h, uint64_t *value);
/* Returns the entries for which the current log store has no place. */
const struct dedup_entry *dedup_index_spilled_locked (
  const struct dedup_index *x, size_t *nr);
/* Moves the mark of WHICH to MARK, from where on all its entries are logged, if
 * it is still the current log store and none is frozen. */
void dedup_index_relogged_locked (struct dedup_index *x, const void *which,
                                  uint64_t mark);

/* --- Figures and check --------------------------------------------------- */

struct dedup_index_figures {
  uint32_t order, max_incarnations;
  uint64_t nr_incarnations, nr_runs;
  uint64_t log_store_entries, incarnation_entries, run_entries;
  uint64_t tombstones;
  uint64_t disk_bytes, memory_bytes;
  uint64_t memory_bound, forgotten;   /* entries, since open */
};
/* Fills in F.  Editing, with the lock. */
void dedup_index_figures_locked (struct dedup_index *x,
                                 struct dedup_index_figures *f);

/* Reads every table, and calls PROBLEM for each thing that is wrong.  Nobody
 * edits the index meanwhile. */
void dedup_index_check (struct dedup_index *x,
                        void (*problem) (void *opaque, const char *line),
                        void *opaque);

/* A walk passes on all entries that lead to a value from FROM on and below TO, as
 * they were when it began, hidden ones included.  It keeps the space of the
 * tables that it reads; its copy of the young entries is made in one hold of
 * the lock. */
struct dedup_index_walk;
struct dedup_walked {
  struct dedup_entry entry;
  unsigned rank;                /* of the table: the lower, the younger; entries
                                 * of the same rank have no order */
};
#define DEDUP_WALK_ENTRIES DEDUP_PAGE_ENTRIES
int dedup_index_walk_begin (struct dedup_index *x, uint64_t from, uint64_t to,
                            struct dedup_index_walk **out) MUST_CHECK;
/* Returns 1 and the next *NR entries (perhaps 0), from the lowest rank to the
 * highest; 0 at the end; -ENOMEM. */
int dedup_index_walk_next (struct dedup_index_walk *w,
                           struct dedup_walked out[DEDUP_WALK_ENTRIES],
                           size_t *nr) MUST_CHECK;
/* Returns true if a page could not be read, so that entries are missing. */
bool dedup_index_walk_lossy (const struct dedup_index_walk *w);
/* Sets how many pages of how many are read. */
void dedup_index_walk_progress (const struct dedup_index_walk *w,
                                uint64_t *done, uint64_t *total);
/* Frees W.  NULL is fine. */
void dedup_index_walk_end (struct dedup_index_walk *w);

/* Calls CB for about one entry in EVERY, tombstones included; HIDDEN: a lookup
 * would not find it.  Nobody changes the index meanwhile.  -EINVAL: EVERY is
 * 0. */
int dedup_index_sample (struct dedup_index *x, uint64_t every,
                        void (*cb) (void *opaque, const struct dedup_entry *e,
                                    bool hidden), void *opaque) MUST_CHECK;

#endif
