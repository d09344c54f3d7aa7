/* SPDX-License-Identifier: BSD-3-Clause */
/* Hints: which host cluster was lately seen to hold data with a checksum.
 *
 * A guess in front of the index, so that writing again what was just written
 * or linked need not compute a cryptographic hash.  Whoever follows a hint
 * holds the cluster and compares all bytes, always; so an entry may be stale,
 * or about other data with an equal checksum.
 *
 * Safe from any number of threads without a lock.
 */
#ifndef DEDUP_HINTS_H
#define DEDUP_HINTS_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct dedup_hints;

/* For a disk of NR_CLUSTERS: 8 bytes for each, at most DEDUP_MAX_HINTS. */
int dedup_hints_new (uint64_t nr_clusters, struct dedup_hints **out)
  MUST_CHECK;
void dedup_hints_free (struct dedup_hints *h);

/* CHECKSUM is dedup_checksum of the data.  0: nothing known. */
uint64_t dedup_hints_find (const struct dedup_hints *h, uint64_t checksum);
void dedup_hints_put (struct dedup_hints *h, uint64_t checksum,
                      uint64_t host_idx);

/* Forget all. */
void dedup_hints_wipe (struct dedup_hints *h);

size_t dedup_hints_memory (const struct dedup_hints *h);
/* The same of those for a disk of NR_CLUSTERS. */
size_t dedup_hints_size (uint64_t nr_clusters);

#endif
