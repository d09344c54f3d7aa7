/* SPDX-License-Identifier: BSD-3-Clause */
/* The index: a map from content hashes to opaque 64-bit values that is much
 * larger than memory.
 *
 * Young entries are in hash tables in memory (log stores).  The owner logs
 * them itself, and inserts them again after a restart.  Older entries are in
 * immutable tables on storage that the owner gives (storage.h).  The index is
 * advice: it may lose entries, and whoever follows an entry checks what it
 * finds.
 *
 * To look up a hash, ask dedup_index_lookup_locked; if it returns DEDUP_PROBE,
 * take a view, release the lock, ask dedup_index_probe, and put the view.  To
 * enter a hash, ask dedup_index_fit_locked, set the full log store aside if it
 * says so, and insert.  Nothing else happens by itself: the owner looks at
 * dedup_index_due and dedup_index_frozen_locked from time to time, and calls
 * the functions of index-upkeep.h, which this header includes.
 *
 * Locks: functions whose names end in _locked need the lock of the parameters;
 * all others may take it themselves.  "Editing" functions are called by one
 * thread at a time; the owner has a mutex for that, which it takes before the
 * lock.  All others may be called by any thread at any time.
 *
 * Marks: a mark is a position in the owner's log.  The index remembers the mark
 * at which each log store begins, so that the owner knows from where on its log
 * is still needed.
 *
 * Results: 0 or -errno, unless something else is said.
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

/* Opens the index that M lists, with an empty log store.  Reads nothing; M is
 * copied. */
int dedup_index_open (const struct dedup_index_params *p,
                      const struct dedup_index_manifest *m,
                      struct dedup_index **out) MUST_CHECK;
/* Frees X.  No view and no step may be left.  NULL is fine. */
void dedup_index_close (struct dedup_index *x);

/* --- Lookups ------------------------------------------------------------- */

enum dedup_found { DEDUP_MISS, DEDUP_HIT, DEDUP_PROBE };

/* Starts to fetch what a lookup of H will touch into the CPU's cache. */
void dedup_index_prefetch_locked (struct dedup_index *x,
                                  const struct dedup_hash *h);
/* Looks H up in the log stores.  DEDUP_HIT: *VALUE is set.  DEDUP_MISS: H was
 * deleted, or there are no tables.  DEDUP_PROBE: the tables must be asked. */
enum dedup_found dedup_index_lookup_locked (struct dedup_index *x,
                                            const struct dedup_hash *h,
                                            uint64_t *value);

/* The tables as they were at one moment: immutable and counted. */
struct dedup_index_view;
/* Takes a reference to the current view. */
struct dedup_index_view *dedup_index_view_locked (struct dedup_index *x);
/* Gives V back, and takes note of pages that were found damaged through it: a
 * damaged page reads as a miss and may hide a tombstone, so the index is not
 * exact any more.  NULL is fine. */
void dedup_index_view_put (struct dedup_index *x, struct dedup_index_view *v);
/* Returns true if V is still the current view. */
bool dedup_index_is_current_locked (const struct dedup_index *x,
                                    const struct dedup_index_view *v);

struct dedup_probe {
  struct dedup_hash hash;       /* set by the caller, the rest by the index */
  uint64_t value;
  enum dedup_found found;       /* DEDUP_MISS or DEDUP_HIT */
  unsigned reads;               /* pages */
  unsigned false_positives;     /* of filters: tables that were read and had no
                                 * such entry */
  bool aging;                   /* a hit in a table that is forgotten soon */
};
/* Looks NR hashes up in the tables of V.  Never fails: an unreadable page is a
 * miss.  Many at once are looked up faster than one after the other. */
void dedup_index_probe (const struct dedup_index_view *v,
                        struct dedup_probe *p, size_t nr);

/* --- Young entries ------------------------------------------------------- */

enum dedup_fit {
  DEDUP_FITS,
  DEDUP_SET_ASIDE_FIRST,        /* call dedup_index_set_aside_locked */
  DEDUP_FULL,                   /* call dedup_index_freeze, then ask again */
};
/* Tells whether NR entries can be inserted. */
enum dedup_fit dedup_index_fit_locked (const struct dedup_index *x, size_t nr);
/* Makes the current log store the frozen one, of which there must be none, and
 * begins an empty one at MARK.  Entries for which the full one had no place are
 * moved to SPILLED, *NR of them; the caller logs and inserts them.  -ENOMEM:
 * nothing was changed. */
int dedup_index_set_aside_locked (struct dedup_index *x, uint64_t mark,
                                  struct dedup_entry spilled[DEDUP_MAX_SPILLED],
                                  size_t *nr) MUST_CHECK;
/* Returns whether the frozen log store has an entry with the value of E and another
 * hash.  Looks at all of its slots. */
bool dedup_index_frozen_names_locked (const struct dedup_index *x,
                                      const struct dedup_entry *e);
/* Enters VALUE for H, in place of an older one; DEDUP_DELETED deletes H.  If
 * there is no place, the entry is lost, and the index is not exact any more. */
void dedup_index_insert_locked (struct dedup_index *x,
                                const struct dedup_hash *h, uint64_t value);
/* Returns the oldest mark that entries in memory have. */
uint64_t dedup_index_mark_locked (const struct dedup_index *x);
/* Returns true if there is a frozen log store. */
bool dedup_index_frozen_locked (const struct dedup_index *x);
/* Returns how many entries the current log store has. */
size_t dedup_index_nr_current_locked (const struct dedup_index *x);
/* Forgets all entries of the current log store, which then begins at MARK. */
int dedup_index_reset_locked (struct dedup_index *x, uint64_t mark) MUST_CHECK;

/* --- Exactness ----------------------------------------------------------- */

/* An index is exact if the owner deletes each entry before its value means
 * something else, and no deletion was lost.  It is exact at open; doubt ends
 * that for good. */
bool dedup_index_exact_locked (const struct dedup_index *x);
void dedup_index_doubt_locked (struct dedup_index *x);

/* An index is complete if the owner entered the hash of each cluster of data when
 * it got its data, or a mark of unknown data, and if no such entry was lost
 * before all older ones that name the same cluster.  Then, of the entries that
 * name a cluster, those with the lowest rank of a walk are about its present
 * data or have the same rank as the one that is.  It is complete at open; what
 * loses entries ends that for good. */
bool dedup_index_complete_locked (const struct dedup_index *x);
void dedup_index_incomplete_locked (struct dedup_index *x);

#include "index-upkeep.h"

#endif
