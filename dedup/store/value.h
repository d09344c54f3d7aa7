/* SPDX-License-Identifier: BSD-3-Clause */
/* Says what the values of the index mean: where data is.
 *
 *   a plain cluster         its host index, below 2^56
 *   a compressed cluster    its L2 entry: bit 62 is set and bit 63 is not
 *
 * The two cannot be mistaken for each other, nor for DEDUP_DELETED (all bits set).
 * Two values that are not equal lead to different bytes of the file, but the host
 * clusters that they touch may be the same: compressed clusters share them.
 */
#ifndef DEDUP_VALUE_H
#define DEDUP_VALUE_H

#include "gate.h"

static inline bool
dedup_value_is_compressed (uint64_t value)
{
  return value >> 62 == 1;
}

/* Returns the L2 entry that leads to the data. */
static inline uint64_t
dedup_value_entry (const struct dedup_base *b, uint64_t value)
{
  return dedup_value_is_compressed (value) ? value : value << b->cluster_bits;
}

/* Returns the value that an L2 entry leads to; 0: there is no whole cluster of data. */
static inline uint64_t
dedup_value_of_entry (const struct dedup_base *b, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return entry & ~QCOW2_L2_COPIED;
  return entry & (QCOW2_L2_ZERO | QCOW2_L2_PARTIAL) ? 0
    : (entry & QCOW2_OFFSET_MASK) >> b->cluster_bits;
}

/* Sets *FIRST and *COUNT to the host clusters that the data touches. */
static inline void
dedup_value_clusters (const struct dedup_base *b, uint64_t value,
                      uint64_t *first, uint64_t *count)
{
  *first = value;
  *count = 1;
  if (dedup_value_is_compressed (value))
    qcow2_entry_clusters (b->img, value, first, count);
}

#endif
