/* SPDX-License-Identifier: BSD-3-Clause */
/* The index: a map from content hashes to opaque 64-bit values that is much
 * larger than memory.
 *
 * Young entries are in hash tables in memory (log stores); the owner logs them
 * itself and enters them again after a restart.  Older entries are in immutable
 * tables on storage that the owner gives (storage.h).  The index is advice: it
 * may lose entries, and whoever follows an entry checks what it finds.
 *
 * Locks: functions whose names end in _locked need the lock of the parameters.
 * "Editing" functions are called by one thread at a time; the owner has a mutex
 * for that, which it takes before the lock.  All others may be called by anybody
 * at any time.
 *
 * Marks: a mark is a position in the owner's log.  The index remembers with each
 * log store at which mark it begins, so that the owner knows from where its log
 * is still needed.
 */
#ifndef DEDUP_INDEX_H
#define DEDUP_INDEX_H

#include "lock.h"
#include "log.h"
#include "storage.h"

struct dedup_index;

struct dedup_index_params {
  struct lock *lock;
  const struct log_sink *log;
  const char *name;             /* begins each message; copied */
  uint64_t store_id;            /* tables of other stores are not taken */
  uint64_t area_unit;           /* areas are multiples of it, a power of 2 */
  uint64_t other_memory;        /* bytes that count against the bound, too */
  uint64_t mark;                /* where the current log store begins */
  struct dedup_index_storage storage;
  struct dedup_index_values values;
  struct dedup_index_events events;
};

/* Opens the index that M lists, with an empty log store.  Reads nothing. */
int dedup_index_open (const struct dedup_index_params *p,
                      const struct dedup_index_manifest *m,
                      struct dedup_index **out) MUST_CHECK;
void dedup_index_close (struct dedup_index *x);
/* Asks editing functions that take long to return soon, with -EINTR. */
void dedup_index_stop (struct dedup_index *x);

/* Bounds the memory of log stores, tables and p.other_memory to BYTES (0: no
 * bound), and forgets the oldest tables until they fit.  Editing. */
int dedup_index_set_memory (struct dedup_index *x, uint64_t bytes) MUST_CHECK;
/* Returns the smallest bound for an index with log stores of this order. */
uint64_t dedup_index_least_memory (unsigned order, bool limited,
                                   uint64_t other_memory);
/* The owner calls this when a manifest that was owed (storage.h) is durable.
 * Editing. */
void dedup_index_committed (struct dedup_index *x);
/* Leaves out the next NR ids of tables: an unknown session may have used
 * them. */
void dedup_index_skip_ids (struct dedup_index *x, uint64_t nr);
uint64_t dedup_index_next_id (const struct dedup_index *x);

/* --- Lookups ---------------------------------------------------------------- */

enum dedup_found { DEDUP_MISS, DEDUP_HIT, DEDUP_PROBE };

/* Starts to fetch what a lookup of H will touch into the CPU's cache. */
void dedup_index_prefetch_locked (struct dedup_index *x,
                                  const struct dedup_hash *h);
/* Looks into the log stores.  DEDUP_PROBE: they know nothing, ask the tables. */
enum dedup_found dedup_index_lookup_locked (struct dedup_index *x,
                                            const struct dedup_hash *h,
                                            uint64_t *value);

/* The tables as they were at one moment: immutable, counted. */
struct dedup_index_view;
struct dedup_index_view *dedup_index_view_locked (struct dedup_index *x);
/* Gives V back, and takes note of pages that were found damaged through it: a
 * damaged page reads as a miss and may hide a tombstone, so the index is not
 * exact any more.  NULL is fine. */
void dedup_index_view_put (struct dedup_index *x, struct dedup_index_view *v);
bool dedup_index_is_current_locked (const struct dedup_index *x,
                                    const struct dedup_index_view *v);

struct dedup_probe {
  struct dedup_hash hash;
  uint64_t value;
  enum dedup_found found;       /* DEDUP_MISS or DEDUP_HIT */
  unsigned reads;               /* pages */
  unsigned false_positives;     /* tables read in vain because of a filter */
  bool aging;                   /* a hit in a table that is forgotten soon */
};
/* Looks NR hashes up in the tables of V.  Never fails: an unreadable page is a
 * miss.  Many at once are looked up faster than one after the other. */
void dedup_index_probe (const struct dedup_index_view *v,
                        struct dedup_probe *p, size_t nr);

/* --- Young entries ---------------------------------------------------------- */

enum dedup_fit {
  DEDUP_FITS,
  DEDUP_SET_ASIDE_FIRST,        /* call dedup_index_set_aside_locked */
  DEDUP_FULL,                   /* the log store before waits for its freeze */
};
/* Tells whether NR entries can be inserted. */
enum dedup_fit dedup_index_fit_locked (const struct dedup_index *x, size_t nr);
/* Begins an empty log store at MARK; the full one is frozen by and by.  There
 * must be no frozen one.  Entries for which the full one had no place are moved
 * to SPILLED, *NR of them, to be logged and inserted by the caller.  -ENOMEM:
 * nothing was done. */
int dedup_index_set_aside_locked (struct dedup_index *x, uint64_t mark,
                                  struct dedup_entry spilled[DEDUP_MAX_SPILLED],
                                  size_t *nr) MUST_CHECK;
/* Enters VALUE for H, in place of an older one.  An entry that finds no place
 * is lost; then the index is not exact any more. */
void dedup_index_insert_locked (struct dedup_index *x,
                                const struct dedup_hash *h, uint64_t value);
/* Returns the oldest mark that entries in memory have. */
uint64_t dedup_index_mark_locked (const struct dedup_index *x);
/* True if there is a frozen log store; if the current one has no entries. */
bool dedup_index_frozen_locked (const struct dedup_index *x);
bool dedup_index_empty_locked (const struct dedup_index *x);

/* The hashes of the current log store, so that the owner can log them again and
 * move the mark.  *WHICH identifies the log store; *HASHES is the caller's. */
int dedup_index_list_locked (struct dedup_index *x, struct dedup_hash **hashes,
                             size_t *nr, const void **which) MUST_CHECK;
bool dedup_index_is_listed_locked (const struct dedup_index *x,
                                   const void *which);
/* The value that the current log store has for H now. */
bool dedup_index_young_locked (const struct dedup_index *x,
                               const struct dedup_hash *h, uint64_t *value);
const struct dedup_entry *dedup_index_spilled_locked (
  const struct dedup_index *x, size_t *nr);
/* All entries of WHICH are logged from MARK on: it begins there, if it is still
 * the current log store and none is frozen. */
void dedup_index_relogged_locked (struct dedup_index *x, const void *which,
                                  uint64_t mark);
/* Forgets all entries of the current log store, which begins at MARK then. */
int dedup_index_reset_locked (struct dedup_index *x, uint64_t mark) MUST_CHECK;

/* --- Exactness -------------------------------------------------------------- */

/* An index is exact if the owner deletes each entry before its value means
 * something else, and no deletion was lost.  It is at open; doubt is for good. */
bool dedup_index_exact_locked (const struct dedup_index *x);
void dedup_index_doubt_locked (struct dedup_index *x);

/* --- Upkeep (all editing) ---------------------------------------------------- */

/* Bits: what is to be done.  FREEZE needs the lock to be known, see
 * dedup_index_frozen_locked. */
#define DEDUP_INDEX_LOAD 1u         /* dedup_index_load_next */
#define DEDUP_INDEX_MERGE 2u        /* a step */
#define DEDUP_INDEX_MERGE_IDLE 4u   /* a step, if nothing else is to be done */
unsigned dedup_index_due (const struct dedup_index *x);   /* by anybody */

/* True if the next freeze has to merge first: no step may be under way then. */
bool dedup_index_must_merge (const struct dedup_index *x);
/* Writes the frozen log store as a table.  Returns 0 if there is none. */
int dedup_index_freeze (struct dedup_index *x) MUST_CHECK;
/* Loads one filter, or drops one damaged table. */
int dedup_index_load_next (struct dedup_index *x) MUST_CHECK;
/* Gives up the frozen log store, where there is no space for its table. */
int dedup_index_drop_frozen (struct dedup_index *x) MUST_CHECK;
/* Frees the space of dropped tables that nobody reads any more. */
int dedup_index_reap (struct dedup_index *x) MUST_CHECK;
/* True if HOST_OFF lies in an area that reap will free: nobody else may. */
bool dedup_index_will_free (const struct dedup_index *x, uint64_t host_off);

/* One step of a merge (one segment), or the conversion of one incarnation.  At
 * most one is under way at a time.  Start and finish are editing; work may run
 * beside anything but another step, and does nearly all of it. */
struct dedup_index_step;
#define DEDUP_STEP_IDLE 1u          /* as for DEDUP_INDEX_MERGE_IDLE */
#define DEDUP_STEP_NO_CONVERSION 2u
/* 1: started; 0: nothing to do. */
int dedup_index_step_start (struct dedup_index *x, unsigned flags,
                            struct dedup_index_step **step) MUST_CHECK;
bool dedup_index_step_converts (const struct dedup_index_step *s);
int dedup_index_step_work (struct dedup_index_step *s) MUST_CHECK;
/* R: what work returned.  S is freed. */
int dedup_index_step_finish (struct dedup_index_step *s, int r) MUST_CHECK;
/* Looks anew for what is to be merged; IDLE_FAILED: a step that was started
 * with DEDUP_STEP_IDLE failed, and is not due before there is another table. */
void dedup_index_look (struct dedup_index *x, bool idle_failed);

/* --- Figures and check -------------------------------------------------------- */

struct dedup_index_figures {
  uint32_t order, max_incarnations;
  uint64_t nr_incarnations, nr_runs;
  uint64_t log_store_entries, incarnation_entries, run_entries;
  uint64_t tombstones;
  uint64_t disk_bytes, memory_bytes;
  uint64_t memory_bound, forgotten;   /* entries, since open */
};
/* Editing, with the lock. */
void dedup_index_figures_locked (struct dedup_index *x,
                                 struct dedup_index_figures *f);

/* Reads every table and reports what is wrong. */
void dedup_index_check (struct dedup_index *x,
                        void (*problem) (void *opaque, const char *line),
                        void *opaque);

/* Calls CB for about one entry in EVERY, tombstones included; HIDDEN: a lookup
 * would not find it.  Nobody changes the index meanwhile. */
int dedup_index_sample (struct dedup_index *x, uint64_t every,
                        void (*cb) (void *opaque, const struct dedup_entry *e,
                                    bool hidden), void *opaque) MUST_CHECK;

#endif
