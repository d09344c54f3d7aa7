/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a journal back when an image is opened, and composes the first blocks
 * of a new one.  Part of journal.h, which includes it.
 *
 * These functions need no struct dedup_journal and no lock: one thread calls
 * them, before the journal is written to.
 */
#ifndef DEDUP_JOURNAL_READ_H
#define DEDUP_JOURNAL_READ_H

#include "io.h"
#include "record.h"

/* A contiguous range of blocks; the numbers of areas follow each other. */
struct dedup_journal_area {
  uint64_t host_off;
  uint64_t first_seq;
  uint32_t nr_blocks;
};

/* Says where a journal lies, and which blocks in its areas are its own. */
struct dedup_journal_place {
  uint64_t store_id;
  uint32_t epoch;               /* of blocks from EPOCH_START on */
  uint64_t epoch_start;
  const struct dedup_journal_area *areas;
  uint32_t nr_areas;            /* never 0 */
};

struct dedup_journal_block {
  uint64_t seq, known_durable;
  uint32_t epoch;
  const uint8_t *records;     /* valid until the callback returns */
  size_t len;
};

/* Passes the blocks from number FROM on to CB, in order, and ends before the
 * first invalid block or before block TO (UINT64_MAX: no such limit).  CB
 * returns 0 to continue, 1 to stop, or -errno.  *NEXT becomes the number of the
 * first block that was not passed on.  -EINVAL: FROM lies outside the areas;
 * -EIO; -ENOMEM.  An invalid block is the normal end of a journal, not an
 * error. */
int dedup_journal_read (struct io_store *io,
                        const struct dedup_journal_place *c,
                        uint64_t from, uint64_t to,
                        int (*cb) (void *opaque,
                                   const struct dedup_journal_block *b),
                        void *opaque, uint64_t *next) MUST_CHECK;

/* What was found in the areas behind the journal's end. */
struct dedup_journal_rest {
  uint64_t durable;           /* highest number that a block of the
                               * configuration's epoch says is durable */
  uint32_t epoch;             /* highest of any block of the store */
  bool newer;                 /* blocks of a later configuration are there */
};

/* Examines the place of each block from number FROM on, wherever the journal
 * ended.  -EIO, -ENOMEM. */
int dedup_journal_rest (struct io_store *io,
                        const struct dedup_journal_place *c,
                        uint64_t from, struct dedup_journal_rest *rest)
  MUST_CHECK;
/* Examines the place of block NEXT, which is about to be written.  *NEWER
 * becomes true if the block there can only have been written under a later
 * configuration than the one that C is from.  -EIO. */
int dedup_journal_newer (struct io_store *io,
                         const struct dedup_journal_place *c,
                         uint64_t next, bool *newer) MUST_CHECK;

/* Encodes NR records as the first blocks of a new journal, in memory: used when
 * a store is created.  END is added if the last record is another.  *LEN is a
 * multiple of DEDUP_BLOCK_SIZE; the caller frees *BUF.  -ENOMEM. */
int dedup_journal_compose (uint64_t store_id, uint32_t epoch,
                           uint64_t first_seq,
                           const struct dedup_record *records, size_t nr,
                           uint8_t **buf, size_t *len) MUST_CHECK;

#endif
