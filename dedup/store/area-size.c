/* SPDX-License-Identifier: BSD-3-Clause */
/* Chooses the sizes of a new store: the order of its log stores, and how many
 * journal areas of which size it may have.
 *
 * No state, no threads.
 */
#include "area.h"
#include "checked.h"

/* The orders of log stores.  A hit in RAM costs no read of a page: 2^16 buckets
 * take 10 MiB, twice while one is frozen, and hold the hashes of 1 GiB.  A log
 * store holds no more than a quarter of the clusters that the disk has, because
 * the journal holds a log store twice and the index on disk up to 24 of them.
 * Larger ones cost more memory than they save (docs/ARCHITECTURE.md section
 * 8). */
#define SMALLEST_ORDER 10

#define USUAL_ORDER 16

/* The numbers of journal areas: as many as hold a log store's entries about
 * twice, at 128 bytes of records each, as far as the least size of an area
 * allows. */
#define LEAST_AREAS 4

#define USUAL_AREAS 16

/* Returns how many entries a log store holds: 93 % of its slots can be
 * filled. */
static uint64_t
capacity (unsigned order)
{
  return ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 93 / 100;
}

unsigned
dedup_default_order (uint64_t nr_clusters)
{
  unsigned order = SMALLEST_ORDER;

  while (order < USUAL_ORDER && capacity (order) < nr_clusters / 4)
    order++;
  return order;
}

uint32_t
dedup_default_areas (unsigned order, uint32_t area_size)
{
  uint64_t bytes = ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 128 * 2;
  uint64_t nr = div_round_up (bytes, area_size);

  return (uint32_t) MIN_OF (MAX_OF (nr, LEAST_AREAS), USUAL_AREAS);
}

uint32_t
dedup_default_area_size (unsigned order, uint64_t cluster_size)
{
  uint64_t size = ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 128 / 8;

  size = round_up_pow2 (size, DEDUP_AREA_UNIT);
  return (uint32_t) round_up_pow2 (size, cluster_size);
}
