/* SPDX-License-Identifier: BSD-3-Clause */
/* Asks for large pages for memory that is read at random: if each access is to
 * another small page, finding the page costs as much as reading from it.  See
 * madvise(2). */
#ifndef DEDUP_LARGE_PAGES_H
#define DEDUP_LARGE_PAGES_H

#include <stdint.h>
#include <sys/mman.h>

#define LARGE_PAGE ((size_t) 2 << 20)

/* Advises the kernel to use large pages for those that lie whole in the LEN
 * bytes at P. */
static inline void
large_pages_advise (void *p, size_t len)
{
#ifdef MADV_HUGEPAGE
  uintptr_t start = ((uintptr_t) p + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1);
  uintptr_t end = ((uintptr_t) p + len) & ~(LARGE_PAGE - 1);

  if (start < end)
    (void) madvise ((void *) start, end - start, MADV_HUGEPAGE);
#endif
}

#endif
