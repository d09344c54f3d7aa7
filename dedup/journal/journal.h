/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal: one sequence of numbered blocks over a list of areas; the
 * write-ahead log (docs/on-disk.md 3.2 and 4).
 *
 * The journal has no lock: functions ending in _locked need the caller's
 * (the image's); dedup_journal_commit takes it.  The area list changes only
 * under that lock, by the one maintenance thread.
 */
#ifndef DEDUP_JOURNAL_H
#define DEDUP_JOURNAL_H

#include "io.h"
#include "journal-limits.h"
#include "lock.h"
#include "record.h"

struct dedup_journal;

/* A contiguous range of blocks; the numbers of areas follow each other. */
struct dedup_journal_area {
  uint64_t host_off;
  uint64_t first_seq;
  uint32_t nr_blocks;
};

/* Where a journal lies, and which blocks in its areas are its own. */
struct dedup_journal_place {
  uint64_t store_id;
  uint32_t epoch;               /* of blocks from EPOCH_START on */
  uint64_t epoch_start;
  const struct dedup_journal_area *areas;
  uint32_t nr_areas;            /* never 0 */
};

struct dedup_journal_params {
  struct io_store *io;
  struct lock *lock;
  uint64_t store_id;
  uint32_t epoch;
  uint64_t next_seq;          /* the first block to be written */
  const struct dedup_journal_area *areas;   /* copied */
  size_t nr_areas;
};

int dedup_journal_new (const struct dedup_journal_params *p,
                       struct dedup_journal **out) MUST_CHECK;
void dedup_journal_free (struct dedup_journal *j);

/* Append a record to the block being filled; never fails.  The caller has
 * made sure of room by dedup_journal_room_locked. */
void dedup_journal_append_locked (struct dedup_journal *j,
                                  const struct dedup_record *r);
/* Append END, if anything came since the last one. */
void dedup_journal_end_locked (struct dedup_journal *j);

/* Blocks that room never promises: for an empty one that is forced while all
 * others are in flight, and for what an operation appends after its records
 * (a cluster that was held may turn out to be free: 24 bytes for each of 16
 * threads' 512 clusters, 49 blocks). */
#define DEDUP_JOURNAL_RESERVE 64

/* Is there room in the areas for NR_RECORDS more of the largest size, an END
 * and LEAVE blocks, and not too much (8 MiB) waiting in memory?  True holds as
 * long as the caller keeps the lock and doesn't seal or force. */
bool dedup_journal_room_locked (const struct dedup_journal *j,
                                size_t nr_records, uint64_t leave);
/* Does so much wait in memory (2 MiB), and no commit is under way, that one
 * should begin before there is no room? */
bool dedup_journal_filling_locked (const struct dedup_journal *j);
/* Blocks left in the areas behind the block being filled. */
uint64_t dedup_journal_left_locked (const struct dedup_journal *j);

/* Sequence number of the block being filled. */
uint64_t dedup_journal_seq_locked (const struct dedup_journal *j);
/* Seal the block being filled, if it holds anything, so that the next record
 * starts a new one; returns that one's number.  Only between groups. */
uint64_t dedup_journal_seal_locked (struct dedup_journal *j);
/* Seal even an empty block: the next commit then makes the durable number
 * durable.  Does nothing where a sealed block waits already, which will carry
 * that number as well, or where the areas or memory are full.  True if it sealed a block
 * without records: its number is one below the one being filled then. */
bool dedup_journal_force_locked (struct dedup_journal *j);
/* Bytes of records not yet durable. */
uint64_t dedup_journal_pending_locked (const struct dedup_journal *j);

/* Highest durable number; the highest that a durable block says is durable;
 * and the highest that a block says of which another one says so (law 6). */
uint64_t dedup_journal_durable_locked (const struct dedup_journal *j);
uint64_t dedup_journal_known_durable_locked (const struct dedup_journal *j);
uint64_t dedup_journal_certain_locked (const struct dedup_journal *j);

/* Make every record appended before the call durable: seal, write, one sync
 * shared by all who wait.  Called without the lock.  Returns at once if all
 * is durable.  -ENOSPC: the host had no space for a block; nothing is lost, and
 * another call tries again.  Any other failure is sticky: this and all later
 * calls return it (law 10). */
int dedup_journal_commit (struct dedup_journal *j) MUST_CHECK;
/* Did the last commit find no space? */
bool dedup_journal_refused_locked (const struct dedup_journal *j);
/* Sync the file on behalf of others (tables, configuration, incarnations),
 * never beside a commit: the host tells of a lost write once, to whoever syncs
 * next, so that a failure here must stop all later commits as well. */
int dedup_journal_sync (struct dedup_journal *j) MUST_CHECK;
/* 0, or the sticky error. */
int dedup_journal_error_locked (const struct dedup_journal *j);

/* Maintenance: append an area at the end of the list (first_seq is filled
 * in; -ENOSPC when the list is full); forget the areas that end below SEQ and
 * are all durable, but never the last (returned by value, up to MAX). */
int dedup_journal_add_area_locked (struct dedup_journal *j,
                                   struct dedup_journal_area *area)
  MUST_CHECK;
size_t dedup_journal_drop_locked (struct dedup_journal *j, uint64_t seq,
                                  struct dedup_journal_area *out,
                                  size_t max);
size_t dedup_journal_areas_locked (const struct dedup_journal *j,
                                   struct dedup_journal_area *out,
                                   size_t max);

/* --- Reading, at open --------------------------------------------------- */

struct dedup_journal_block {
  uint64_t seq, known_durable;
  uint32_t epoch;
  const uint8_t *records;     /* valid until the callback returns */
  size_t len;
};

/* Hand the blocks from FROM on, in order, to CB, up to and without the first
 * invalid one or block TO (UINT64_MAX: none).  CB returns 0 to go on, 1 to
 * stop, -errno.  *NEXT is the number of the first block not handed over.
 * -EINVAL: FROM lies outside the areas; -EIO. */
int dedup_journal_read (struct io_store *io,
                        const struct dedup_journal_place *c,
                        uint64_t from, uint64_t to,
                        int (*cb) (void *opaque,
                                   const struct dedup_journal_block *b),
                        void *opaque, uint64_t *next) MUST_CHECK;

/* What lies in the areas behind the journal's end. */
struct dedup_journal_rest {
  uint64_t durable;           /* highest number that a block of the
                               * configuration's epoch says is durable */
  uint32_t epoch;             /* highest of any block of the store */
  bool newer;                 /* blocks of a later configuration are there */
};

/* Look at the place of each block from FROM on, wherever the journal ended.
 * -EIO, -ENOMEM. */
int dedup_journal_rest (struct io_store *io,
                        const struct dedup_journal_place *c,
                        uint64_t from, struct dedup_journal_rest *rest)
  MUST_CHECK;
/* Is the block at the place of number NEXT, which is about to be written, one
 * that only a later configuration than the one C is from can have brought about?  *NEWER. */
int dedup_journal_newer (struct io_store *io,
                         const struct dedup_journal_place *c,
                         uint64_t next, bool *newer) MUST_CHECK;

/* Encode records as the first blocks of a new journal in memory: used when a
 * store is made.  END is added where the last record is none.  *LEN is a
 * multiple of DEDUP_BLOCK_SIZE; *BUF is the caller's to free. */
int dedup_journal_compose (uint64_t store_id, uint32_t epoch,
                           uint64_t first_seq,
                           const struct dedup_record *records, size_t nr,
                           uint8_t **buf, size_t *len) MUST_CHECK;

#endif
