/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes the bytes that a segment takes, on storage and in memory, and frees
 * what it has in memory.
 *
 * A filter's size is only known when it is built, as shards whose keys
 * contradict each other get more slots (filter-build.c).  So the size on
 * storage is an upper bound for the usual case, from which an area is
 * allocated before the segment is written: an estimate that is too low costs
 * the segment its filter, and never an entry.  The size in memory is an
 * average.
 *
 * The constants are those of filter-build.c: a shard has about
 * DEDUP_FILTER_SHARD entries, 3 % more slots than entries, and FILTER_WIDTH -
 * 1 slots; 64 slots are a block.  A change there needs one here.
 *
 * Functions of their arguments: any thread.
 */
#include "segment-page.h"

#include <stdlib.h>

/* Allows for 6 % more slots than entries, and five blocks for each shard.
 * Where the filter takes more (many shards had to be built again with more
 * slots), the segment is written without one. */
uint64_t
dedup_segment_size (uint64_t nr_entries, unsigned bits)
{
  const uint64_t nr_shards = bits ? dedup_filter_shards (nr_entries) : 0;
  const uint64_t blocks = bits ? nr_entries * 17 / 16 / 64 + nr_shards * 5 : 0;

  return dedup_segment_used (nr_entries, nr_shards, blocks * bits);
}

/* 128 bytes are for struct dedup_segment, which is private to segment.c. */
uint64_t
dedup_segment_likely_memory (uint64_t nr_entries, unsigned bits)
{
  const uint64_t nr_shards = bits ? dedup_filter_shards (nr_entries) : 0;
  const uint64_t blocks = nr_entries * 1035 / 1000 / 64 + nr_shards * 3;

  return 128 + sizeof (struct dedup_segment_meta) +
    seg_meta_bytes (seg_pages (nr_entries), nr_shards, (blocks + 1) * bits);
}

uint64_t
dedup_segment_used (uint64_t nr_entries, uint64_t nr_shards,
                    uint64_t nr_words)
{
  const uint64_t nr_pages = seg_pages (nr_entries);

  return (1 + nr_pages + seg_meta_pages (nr_pages, nr_shards, nr_words)) *
    DEDUP_PAGE_SIZE;
}

void
dedup_segment_meta_free (struct dedup_segment_meta *m)
{
  if (m == NULL)
    return;
  dedup_filter_free (&m->filter);
  free (m->fences);
  free (m);
}
