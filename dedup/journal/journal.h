/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal: a write-ahead log of numbered blocks over a list of areas
 * (docs/on-disk.md 3.2 and 4).
 *
 * An operation makes sure of room with dedup_journal_room_locked, appends its
 * records, and closes the group with dedup_journal_end_locked, all under one
 * hold of the lock.  The records are then in memory; dedup_journal_commit makes
 * them durable, with one sync for everybody who waits.  A recovery applies each
 * group whole or not at all, and reads the blocks back by journal-read.h.
 *
 * The journal has no lock of its own.  Functions whose names end in _locked
 * need the caller's (the image's); commit and sync are called without it.
 * The area list changes only under that lock, by the one maintenance thread.
 * When to commit, when to write a checkpoint and where areas come from is for
 * the caller to decide.
 *
 * Numbers of blocks only grow.  A block is durable once a sync has covered it;
 * known durable once a durable block says that it is; and certain once another
 * durable block says that the one that says so is durable, too (law 6).
 */
#ifndef DEDUP_JOURNAL_H
#define DEDUP_JOURNAL_H

#include "io.h"
#include "journal-limits.h"
#include "journal-read.h"
#include "lock.h"
#include "record.h"

struct dedup_journal;

struct dedup_journal_params {
  struct io_store *io;
  struct lock *lock;
  uint64_t store_id;
  uint32_t epoch;
  uint64_t next_seq;          /* the first block to be written */
  const struct dedup_journal_area *areas;   /* copied */
  size_t nr_areas;
};

/* Makes a journal that is to be written from block P->next_seq on; writes
 * nothing.  -EINVAL: the areas do not follow each other, or NEXT_SEQ lies
 * outside them; -ENOMEM. */
int dedup_journal_new (const struct dedup_journal_params *p,
                       struct dedup_journal **out) MUST_CHECK;
/* Frees J without writing what it holds.  No commit may be under way. */
void dedup_journal_free (struct dedup_journal *j);

/* --- Appending ----------------------------------------------------------- */

/* Appends a record to the block being filled; never fails.  The caller has
 * made sure of room by dedup_journal_room_locked. */
void dedup_journal_append_locked (struct dedup_journal *j,
                                  const struct dedup_record *r);
/* Appends the refcount, below 2^32, of one cluster: to the last record, if that
 * was appended by this function and has room, else as a new REFLIST record.
 * Calls in order of host indices take 2 to 3 bytes each. */
void dedup_journal_append_refcount_locked (struct dedup_journal *j,
                                           uint64_t host_idx,
                                           uint64_t refcount, bool anchored);
/* Appends END, if records came since the last one. */
void dedup_journal_end_locked (struct dedup_journal *j);

/* Blocks that dedup_journal_room_locked never promises.  They serve an empty
 * block that is forced while all others are in flight, and what an operation
 * appends after its records (a held cluster may turn out to be free: 24 bytes
 * for each of 16 threads' 512 clusters, 49 blocks). */
#define DEDUP_JOURNAL_RESERVE 64

/* Returns true if the areas have room for NR_RECORDS more records of the
 * largest size, an END and LEAVE blocks, and not more than 8 MiB wait in
 * memory.  The promise holds while the caller keeps the lock and neither seals
 * nor forces. */
bool dedup_journal_room_locked (const struct dedup_journal *j,
                                size_t nr_records, uint64_t leave);
/* Returns true if a commit should begin before room runs out: 2 MiB wait in
 * memory, and no commit is under way. */
bool dedup_journal_filling_locked (const struct dedup_journal *j);
/* Returns the number of blocks left in the areas behind the one being
 * filled. */
uint64_t dedup_journal_left_locked (const struct dedup_journal *j);

/* Returns the number of the block being filled. */
uint64_t dedup_journal_seq_locked (const struct dedup_journal *j);
/* Seals the block being filled, if it holds records, so that the next record
 * starts a new one; returns the number of that new one.  Only between
 * groups. */
uint64_t dedup_journal_seal_locked (struct dedup_journal *j);
/* Seals the block being filled even if it is empty, so that the next commit
 * writes a block that records the durable number.  Does nothing if the block
 * is empty and a sealed one waits already, which will record that number as
 * well, or if the areas or memory are full.  Returns true if it sealed an
 * empty block, whose number is one below that of the block being filled
 * then. */
bool dedup_journal_force_locked (struct dedup_journal *j);
/* Returns the bytes of records that are not durable yet. */
uint64_t dedup_journal_pending_locked (const struct dedup_journal *j);

/* --- Durability ---------------------------------------------------------- */

/* Each returns the highest number of that kind, as explained above. */
uint64_t dedup_journal_durable_locked (const struct dedup_journal *j);
uint64_t dedup_journal_known_durable_locked (const struct dedup_journal *j);
uint64_t dedup_journal_certain_locked (const struct dedup_journal *j);

/* Makes every record that was appended before the call durable: seals, writes,
 * and syncs once for all who wait.  Returns at once if all of them are durable.
 * -ENOSPC: the host had no space for a block; nothing is lost, and another call
 * tries again.  Any other failure is sticky: this and all later calls return it
 * (law 10). */
int dedup_journal_commit (struct dedup_journal *j) MUST_CHECK;
/* Returns true if the last commit found no space. */
bool dedup_journal_refused_locked (const struct dedup_journal *j);
/* Syncs the file on behalf of others (tables, configuration, incarnations),
 * never beside a commit.  A host reports a lost write only once, to whoever
 * syncs next, so a failure here is sticky, too, and stops all later commits. */
int dedup_journal_sync (struct dedup_journal *j) MUST_CHECK;
/* Returns 0, or the sticky error. */
int dedup_journal_error_locked (const struct dedup_journal *j);

/* --- The list of areas (maintenance thread) ------------------------------ */

/* Appends AREA to the list, and fills in its first_seq.  -ENOSPC: the list is
 * full. */
int dedup_journal_add_area_locked (struct dedup_journal *j,
                                   struct dedup_journal_area *area)
  MUST_CHECK;
/* Removes the areas that end below SEQ and are durable as a whole, but never
 * the last one.  Writes up to MAX of them to OUT, and returns their number. */
size_t dedup_journal_drop_locked (struct dedup_journal *j, uint64_t seq,
                                  struct dedup_journal_area *out,
                                  size_t max);
/* Copies up to MAX areas to OUT, and returns their number. */
size_t dedup_journal_areas_locked (const struct dedup_journal *j,
                                   struct dedup_journal_area *out,
                                   size_t max);

#endif
