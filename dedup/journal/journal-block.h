/* SPDX-License-Identifier: BSD-3-Clause */
/* The coding of one journal block (docs/on-disk.md 3.2): shared by the
 * writing and the reading half of the journal, and by nobody else. */
#ifndef DEDUP_JOURNAL_BLOCK_H
#define DEDUP_JOURNAL_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"

struct dedup_block_head {
  uint64_t store_id;
  uint64_t seq;
  uint64_t known_durable;
  uint32_t epoch;
  uint32_t len;         /* bytes used, header included */
};

/* Complete BLOCK, DEDUP_BLOCK_SIZE bytes whose records are in place: header,
 * zeroes behind the records, checksum. */
void dedup_block_encode (const struct dedup_block_head *h, uint8_t *block);

/* Is BLOCK (DEDUP_BLOCK_SIZE bytes, scribbled on meanwhile) valid in itself?
 * Store id, sequence number and epoch are left to the caller. */
bool dedup_block_decode (uint8_t *block, struct dedup_block_head *h)
  MUST_CHECK;

#endif
