/* SPDX-License-Identifier: BSD-3-Clause */
/* What an index may claim to have, and so what memory its filters may take,
 * is bounded by what the file really holds (docs/on-disk.md 3.4).
 *
 * Each page of entries begins with a magic number.  So one that lies in a hole
 * is damaged, whatever made the file sparse, and no right page is ever taken
 * for one: what the host calls a hole is read before it counts.  A hole may
 * begin in the zeroes at the end of a right page; then the next page is next.
 */
#include "page-hole.h"
#include "aligned.h"

#include "index-limits.h"

static bool
page_is_zero (struct io_store *io, uint64_t host_off)
{
  CACHE_ALIGNED uint8_t page[DEDUP_PAGE_SIZE];
  size_t i;

  if (io_pread (io, page, sizeof page, host_off) < 0)
    return false;                /* who needs it finds that out */
  for (i = 0; i < sizeof page; i++)
    if (page[i] != 0)
      return false;
  return true;
}

bool
dedup_page_in_hole (struct io_store *io, uint64_t host_off, uint64_t nr_pages)
{
  uint64_t page = 0, hole;

  while (page < nr_pages) {
    hole = io_next_hole (io, host_off + page * DEDUP_PAGE_SIZE);
    if (hole == UINT64_MAX)
      return false;
    page = (hole - host_off) / DEDUP_PAGE_SIZE;
    if (page < nr_pages && page_is_zero (io, host_off + page * DEDUP_PAGE_SIZE))
      return true;
    page++;
  }
  return false;
}
