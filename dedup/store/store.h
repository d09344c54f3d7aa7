/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the store: what this program owns inside the image (journal, index
 * tables, configuration, areas), and the order in which changes to it become
 * durable.  The laws are in docs/on-disk.md.
 *
 * A change is made under the image lock: its record is appended to the journal
 * and it is applied to the tables in memory, inside a group of records that the
 * caller ends.  dedup_commit makes groups durable.  The configuration is edited
 * in memory and committed as a whole; an area that it no longer lists may be
 * used again only afterwards.
 *
 * The store makes no room: where journal, index or memory is full its functions
 * say so, and upkeep.h decides what is done.
 *
 * "Maintenance" means that the caller holds the maintenance mutex of upkeep.h:
 * one caller at a time, beside any number of writers.
 */
#ifndef DEDUP_STORE_H
#define DEDUP_STORE_H

#include "bad.h"
#include "config.h"
#include "gate.h"
#include "index.h"
#include "journal.h"

/* A configuration that is in memory and perhaps in one slot, but not durable in
 * both slots, because the host had no space (config-commit.c). */
struct dedup_owed {
  bool any;                          /* atomic */
  size_t nr_areas;                   /* the last areas of the configuration,
                                      * which the journal has not got yet */
};

struct dedup_store {
  const struct dedup_base *b;
  struct dedup_gate gate;
  /* Constant after open: */
  struct dedup_ext ext;
  bool has_store;
  bool replayed;                     /* read-only: recovered in memory */
  bool went_on;                      /* bit 48 was set only because the session
                                      * before left work */
  bool index_damaged;                /* at open: the journal lacks entries that
                                      * are in memory */
  struct dedup_index *index;         /* NULL: no store */
  struct dedup_store_file *store_file;   /* NULL: none */
  struct {
    void (*aged) (void *opaque);     /* much of the index was forgotten */
    int (*drain) (void *opaque);     /* empties the quarantine; only for tests
                                      * that break law 9 */
    void *opaque;
  } events;
  /* Maintenance: */
  struct dedup_config *config;       /* as last written, but for what is owed */
  struct dedup_owed owed;
  bool may_pack;                     /* as in the durable configuration; atomic */
  bool places_only;                  /* a replay would find only records that
                                      * name places (begin-disks.c) */
  /* Protected by the image lock: */
  struct dedup_journal *journal;
  uint64_t checkpoint;               /* as in the durable configuration */
  bool work_left;                    /* there may be lent tables to pay for, or
                                      * deleted disks to free: bit 48 must stay
                                      * set; kept by who lends and pays */
  struct dedup_bad bad;              /* bad clusters of data */
  struct dedup_lookups lookups;      /* of this session */
  struct dedup_lookups lookups_before;   /* of the sessions before it */
};

/* --- changes.c: a change and its record --------------------------------- */

/* Makes qcow2fmt report the changes that it makes by itself to the journal. */
void dedup_attach_log (struct dedup_store *s);
/* Appends the record of a change. */
void dedup_append_change_locked (struct dedup_store *s,
                                 const struct qcow2_change *c);
/* Appends the record of a change and applies it to the tables, which must be
 * prepared and pinned. */
void dedup_change_locked (struct dedup_store *s, struct qcow2_txn *txn,
                          const struct qcow2_change *c);
/* Appends the record of an index entry; of a tombstone if VALUE is
 * DEDUP_DELETED. */
void dedup_entry_record_locked (struct dedup_store *s,
                                const struct dedup_hash *h, uint64_t value);
/* Appends that record, and inserts the entry into the log store. */
void dedup_entry_locked (struct dedup_store *s, const struct dedup_hash *h,
                         uint64_t value);
/* Enters a mark that the index does not know the data of a cluster: an entry with a
 * hash that no data has.  It makes older entries that name the cluster count
 * for nothing, so that the index stays complete (index.h).  A descriptor gets one when
 * its entry is replaced; all its other entries count for nothing then. */
void dedup_unknown_data_locked (struct dedup_store *s, uint64_t value);
/* Returns the hash of that mark, and whether H is it. */
struct dedup_hash dedup_unknown_mark (uint64_t value);
bool dedup_is_unknown_mark (const struct dedup_hash *h, uint64_t value);
/* Freezes the current log store at a block that starts with FREEZE, and begins
 * another one.  Called between groups.  -ENOMEM. */
int dedup_set_aside_locked (struct dedup_store *s) MUST_CHECK;
/* Returns whether NR entries can be inserted.  If the log store is full it is
 * frozen first; false: another frozen one is not on disk yet.  Called between
 * groups. */
bool dedup_index_room_locked (struct dedup_store *s, size_t nr);

/* --- commit.c: records and data made durable ---------------------------- */

/* Makes all durable that was appended.  -ENOSPC: not now, but nothing is lost.
 * Any other failure has closed the gate for good. */
int dedup_commit (struct dedup_store *s) MUST_CHECK;
/* Does the same, but first seals an empty block, if bit 48 is set and there is
 * room: it carries the durable number. */
int dedup_commit_empty (struct dedup_store *s) MUST_CHECK;
/* Admits a change of a client.  -ENOSPC: the last commit found no space, and
 * neither does the one that is tried now, so nothing new is accepted. */
int dedup_admit (struct dedup_store *s) MUST_CHECK;
/* Syncs the file.  Every sync but the header's passes here or through the
 * journal, one at a time, so that a failure is known to all before another sync
 * could return 0 (law 10). */
int dedup_sync (struct dedup_store *s) MUST_CHECK;
/* Returns how many blocks a new journal area has. */
uint64_t dedup_area_blocks (const struct dedup_store *s);
/* Returns how many blocks of the journal empty blocks and packing leave free,
 * for the records of a held cluster that is released. */
uint64_t dedup_journal_slack_blocks (const struct dedup_store *s);

/* --- config-commit.c: the configuration made durable; maintenance ------- */

/* Makes everything durable that the configuration in memory refers to, then
 * writes it, and recycles journal areas that are not needed any more.  -ENOSPC:
 * it is owed: what was edited stays, and takes effect when a later call has
 * written it.  Any other failure has closed the gate for good. */
int dedup_config_commit (struct dedup_store *s) MUST_CHECK;
/* Adds one area to the journal (first_seq is filled in), and commits. */
int dedup_config_add_area (struct dedup_store *s,
                           const struct dedup_journal_area *area) MUST_CHECK;
/* Commits if a configuration is owed. */
int dedup_config_settle (struct dedup_store *s) MUST_CHECK;
bool dedup_config_owed (const struct dedup_store *s);
/* Returns whether the durable configuration allows records of compressed data.  Any
 * thread. */
bool dedup_may_pack (const struct dedup_store *s);
/* Notes what the configuration says of that, which is durable. */
void dedup_set_may_pack (struct dedup_store *s);
/* Writes both slots and does no more; used at open. */
int dedup_config_save (struct dedup_store *s) MUST_CHECK;

/* --- counters.c: lookups, counted --------------------------------------- */

/* Adds what an operation counted to this session's lookups. */
void dedup_count_lookups_locked (struct dedup_store *s,
                                 const struct dedup_lookups *l);
/* Fills in the lookups of all sessions of the store so far. */
void dedup_all_lookups_locked (struct dedup_store *s,
                               struct dedup_lookups *all);

/* --- index-storage.c: the index ----------------------------------------- */

/* Opens the index that the configuration lists.  OTHER_MEMORY: bytes that count
 * against its memory limit besides its own. */
int dedup_open_index (struct dedup_store *s, uint64_t other_memory) MUST_CHECK;

/* Areas and the store file: see area.h; samples of the past: see samples.h. */

#endif
