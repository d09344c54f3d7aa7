/* SPDX-License-Identifier: BSD-3-Clause */
/* Functions that the files of upkeep offer each other, from the ground up.
 * upkeep.h explains "maintenance", _locked and results.
 *
 * A freeze, and so each function that may freeze, returns -EBUSY if it has to
 * wait for a merge step.  None of them releases the maintenance mutex: who took
 * it gives it up and begins again (dedup_maintenance_begin).
 */
#ifndef DEDUP_UPKEEP_PRIVATE_H
#define DEDUP_UPKEEP_PRIVATE_H

#include "area.h"
#include "mutation.h"
#include "upkeep.h"

/* Data written since the last commit that makes one due: bounds what a
 * recovery must verify, 64 MiB of hashing and reading. */
#define DEDUP_UNCOMMITTED_HIGH (UINT64_C (64) << 20)

/* Returns true if a job must return soon. */
static inline bool
dedup_stopping (const struct dedup_upkeep *u)
{
  return __atomic_load_n (&u->stop, __ATOMIC_RELAXED);
}

/* --- room.c -------------------------------------------------------------- */

/* Return true if a commit, or a checkpoint, is due. */
bool dedup_commit_due_locked (struct dedup_upkeep *u);
bool dedup_checkpoint_due_locked (struct dedup_upkeep *u);
/* Returns true if less than an area is left in the journal. */
bool dedup_journal_low_locked (struct dedup_store *s);
/* Returns true if the log store should be logged again while that still has room. */
bool dedup_pack_due_locked (struct dedup_store *s);

/* --- prewrite.c ---------------------------------------------------------- */

/* Counts a flush that had something to make durable. */
void dedup_prewrite_flushed_locked (struct dedup_prewrite *pw);
/* Frees the clusters that no write has taken. */
void dedup_prewrite_give_back_locked (struct dedup_prewrite *pw);
/* Returns true if more clusters are to be written ahead. */
bool dedup_prewrite_due_locked (const struct dedup_prewrite *pw);
/* Writes zeroes to more of them if that is due; for the commit job. */
void dedup_prewrite_fill (struct dedup_prewrite *pw);

/* --- overwrite-reserve.c ------------------------------------------------- */

/* Keeps as much of RUN, which was released, as the reserve lacks, if it has
 * space on the host. */
void dedup_reserve_keep_locked (struct dedup_overwrite_reserve *res,
                                const struct qcow2_run *run);
/* Frees all clusters of the reserve. */
void dedup_reserve_give_back_locked (struct dedup_overwrite_reserve *res);
/* Returns true if this session has not asked for clusters yet, and may. */
bool dedup_reserve_due_locked (struct dedup_overwrite_reserve *res);
/* Gets the clusters that the reserve lacks, as far as the host has space; for
 * the commit job. */
void dedup_reserve_fill (struct dedup_upkeep *u);

/* --- freeing.c ----------------------------------------------------------- */

/* Between these two calls the caller takes clusters from the free ones or out
 * of quarantine, and makes them free (again); meanwhile they are in neither
 * place.  It waits for I/O, commits and the gate only. */
void dedup_freeing_begin (struct dedup_give_back *gb);
void dedup_freeing_end (struct dedup_give_back *gb);
/* Punches a hole in the file in place of RUN.  -EINTR: not all of it, since a
 * writer waits for clusters; -EOPNOTSUPP: the host can't. */
int dedup_empty_run (struct dedup_give_back *gb, const struct qcow2_run *run);
/* Remembers that the host cannot take space back; returns true if it cannot. */
void dedup_note_cannot_empty (struct dedup_give_back *gb);
bool dedup_cannot_empty (struct dedup_give_back *gb);

/* --- forget.c, quarantine.c ---------------------------------------------- */

/* Forgets the entry for H if it leads to VALUE.  -EAGAIN: the index has other tables by
 * now; -EBUSY: there is no room. */
int dedup_forget_entry (struct dedup_upkeep *u, const struct dedup_hash *h,
                        uint64_t value) MUST_CHECK;
/* Makes tombstones for the entries of RUNS durable, before the clusters are
 * used again.  -EBUSY: there is no room for them now. */
int dedup_forget_runs (struct dedup_upkeep *u, const struct qcow2_run *runs,
                       size_t nr) MUST_CHECK;
/* Frees the clusters that may be reused by now (law 6), and gives the space of
 * the trimmed ones back to the host. */
int dedup_release_quarantine (struct dedup_upkeep *u) MUST_CHECK;
/* The same, where only tables are in quarantine; it does not set bit 48. */
int dedup_release_tables (struct dedup_upkeep *u) MUST_CHECK;
/* Returns the number of clusters that commits make usable.  It is 0 while a
 * configuration is owed, or the header in the file lacks a table's new place: else
 * commits would be due all the time, each with a block of the journal. */
uint64_t dedup_quarantined_locked (struct dedup_store *s);
/* Returns true if there are so many that a commit is due. */
bool dedup_quarantine_due_locked (struct dedup_store *s);
/* Returns true if a checkpoint is due, because so many clusters can leave quarantine only
 * when it has written the header, or are freed tables that are kept until then. */
bool dedup_quarantine_shut_locked (struct dedup_store *s);

/* --- freeze-job.c, drop-young.c; maintenance ----------------------------- */

/* Writes the frozen log store as a table.  -ENOSPC: the host has no space for
 * it.  -EBUSY: a merge step must end first. */
int dedup_freeze (struct dedup_upkeep *u) MUST_CHECK;
/* Drop the frozen log store, where there is no space for its table and writers
 * cannot wait; and the current one, where its records fill the journal.  That
 * costs only ratio. */
int dedup_drop_frozen (struct dedup_store *s) MUST_CHECK;
int dedup_drop_current (struct dedup_store *s) MUST_CHECK;

/* --- journal-areas.c, repack.c, journal-space.c; maintenance ------------- */

/* Adds one area to the journal.  -ENOSPC: the host has no space for it. */
int dedup_add_journal_area (struct dedup_store *s) MUST_CHECK;
/* Copies the entries of the log store to the journal's head, so that the areas
 * that hold them now can be recycled. */
int dedup_repack (struct dedup_upkeep *u) MUST_CHECK;
/* Makes room in a journal that is short of it: recycles and adds areas, writes
 * a checkpoint, freezes, packs.  -EBUSY: a merge step must end first. */
int dedup_journal_extend (struct dedup_upkeep *u) MUST_CHECK;
/* Makes all of the journal that is not needed any more usable again: writes changed
 * tables, and young entries or their records.  Maintenance.  -EBUSY: as dedup_freeze. */
int dedup_journal_recycle (struct dedup_upkeep *u) MUST_CHECK;

/* --- garbage.c, merge-job.c ---------------------------------------------- */

/* Scans a slice of the refcounts for free clusters, or, once all are scanned,
 * frees some of the garbage that was verified.  Returns 1 while there is more.
 * Maintenance.  -EBUSY: a merge step must end first. */
int dedup_scan (struct dedup_upkeep *u) MUST_CHECK;
/* Returns true if there is something to scan or to free. */
bool dedup_scan_due_locked (struct dedup_upkeep *u);
/* Scans all, verifies candidates for garbage (where there are very many tables,
 * not to the end), and frees what is garbage.  Maintenance.  -EBUSY as above. */
int dedup_find_garbage (struct dedup_upkeep *u) MUST_CHECK;
/* Does one step of a merge, which is a segment of its output, or one
 * conversion.  Takes the maintenance mutex, but works without it. */
int dedup_merge_step (struct dedup_upkeep *u, bool idle) MUST_CHECK;

#endif
