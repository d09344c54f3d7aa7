/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes where a key's coefficients start: for filter.c and
 * filter-build.c. */
#ifndef DEDUP_FILTER_SLOTS_H
#define DEDUP_FILTER_SLOTS_H

#include "filter.h"

#define FILTER_WIDTH 128           /* coefficients of a row */

__extension__ typedef unsigned __int128 filter_u128;

/* Returns the shard of a hash that starts with POS, whose prefix is in range,
 * and its place inside the shard as *FRACTION of 2^64.  Both grow with POS. */
static inline uint32_t
filter_shard_of (const struct dedup_filter *f, uint64_t pos,
                 uint64_t *fraction)
{
  uint64_t off = pos - ((uint64_t) f->lo << 32);   /* < width * 2^32 */
  uint64_t place = (uint64_t) ((filter_u128) off * f->inverse >> 32);
  filter_u128 x = (filter_u128) place * f->nr_shards;

  *fraction = (uint64_t) x;
  return (uint32_t) (x >> 64);
}

/* Returns the slot of NR_BLOCKS blocks where the row at FRACTION starts. */
static inline uint64_t
filter_slot_of (uint64_t fraction, uint32_t nr_blocks)
{
  uint64_t nr = (uint64_t) nr_blocks * 64 - (FILTER_WIDTH - 1);

  return (uint64_t) ((filter_u128) fraction * nr >> 64);
}

/* Changes the key's coefficients, so that it has another row, for a shard whose
 * system had no solution. */
static inline void
filter_seed_key (struct dedup_filter_key *k, uint32_t seed)
{
  k->lo = (k->lo ^ seed) * UINT64_C (0x9fb21c651e98df25);
  k->lo ^= k->lo >> 29;
  k->hi = (k->hi ^ k->lo) * UINT64_C (0xd1b54a32d192ed03);
  k->hi ^= k->hi >> 31;
}

/* Returns the parity of a word.  Without the machine's instruction, that is
 * most of the cost of a filter.  So callers are compiled twice, with POPCOUNT
 * constant in each, and the processor is asked once for many words. */
static inline __attribute__ ((__always_inline__)) unsigned
filter_parity (uint64_t x, bool popcount)
{
  return popcount ? __builtin_popcountll (x) & 1 : __builtin_parityll (x);
}

#if defined (__x86_64__)
#define FILTER_POPCOUNT_TARGET __attribute__ ((__target__ ("popcnt")))
#define FILTER_HAS_POPCOUNT __builtin_cpu_supports ("popcnt")
#else
#define FILTER_POPCOUNT_TARGET
#define FILTER_HAS_POPCOUNT true
#endif

#endif
