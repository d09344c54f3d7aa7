/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes one journal block (docs/on-disk.md 3.2), for the writing
 * and the reading half of the journal only. */
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

/* Completes BLOCK, DEDUP_BLOCK_SIZE bytes whose records are in place, by its
 * header, zeroes behind the records, and the checksum. */
void dedup_block_encode (const struct dedup_block_head *h, uint8_t *block);

/* Decodes the header of BLOCK (DEDUP_BLOCK_SIZE bytes).  Returns true if the
 * block is valid in itself; store id, sequence number and epoch are left to the
 * caller.  BLOCK is changed and restored meanwhile. */
bool dedup_block_decode (uint8_t *block, struct dedup_block_head *h)
  MUST_CHECK;

#endif
