/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes the checksum of a page, which each page on disk has in a field
 * (docs/on-disk.md 3.3 and 3.4).
 *
 * The checksum covers the whole page: a page that passes has exactly the bytes
 * that were written.
 *
 * Any thread, each with a page of its own.
 */
#include "page.h"

#include "hash.h"
#include "index-limits.h"

uint64_t
dedup_page_checksum (void *page, be64 *checksum)
{
  const be64 saved = *checksum;
  uint64_t r;

  *checksum = be64_make (0);
  r = dedup_checksum (page, DEDUP_PAGE_SIZE);
  *checksum = saved;
  return r;
}
