/* SPDX-License-Identifier: BSD-3-Clause */
/* Hints: for a checksum of data, the host cluster that held such data lately.
 *
 * They are asked before the index, so that data which was just written or
 * linked can be written again without computing a cryptographic hash.  A
 * caller that follows a hint always holds the cluster and compares all bytes;
 * so a hint may be stale, or name other data with an equal checksum.
 *
 * Safe from any number of threads without a lock.
 */
#ifndef DEDUP_HINTS_H
#define DEDUP_HINTS_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct dedup_hints;

/* Makes hints for a disk of NR_CLUSTERS: 8 bytes for each cluster, at most for
 * DEDUP_MAX_HINTS.  -ENOMEM. */
int dedup_hints_new (uint64_t nr_clusters, struct dedup_hints **out)
  MUST_CHECK;
void dedup_hints_free (struct dedup_hints *h);

/* Returns the host index that is remembered for data whose dedup_checksum is
 * CHECKSUM; 0: none. */
uint64_t dedup_hints_find (const struct dedup_hints *h, uint64_t checksum);
/* Remembers HOST_IDX, unless it is 2^40 or more. */
void dedup_hints_put (struct dedup_hints *h, uint64_t checksum,
                      uint64_t host_idx);

/* Forgets all hints. */
void dedup_hints_wipe (struct dedup_hints *h);

/* Return the bytes of memory of H, and of hints for a disk of NR_CLUSTERS. */
size_t dedup_hints_memory (const struct dedup_hints *h);
size_t dedup_hints_size (uint64_t nr_clusters);

#endif
