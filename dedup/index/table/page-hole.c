/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds pages of a table that lie in a hole of the file, so that the number of
 * entries that a table claims to have, and with it the memory for its filter,
 * is bounded by what the file really holds (docs/on-disk.md 3.4).
 *
 * Each page of entries begins with a magic number.  So a page in a hole is
 * damaged, whatever made the file sparse.  No right page is taken for one:
 * where the host reports a hole, the page is read and must be all zeroes.  A
 * hole may begin in the zeroes at the end of a right page; then the search
 * continues with the next page.
 *
 * Any thread; no state.
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
    return false;                /* a lookup will find that out */
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
