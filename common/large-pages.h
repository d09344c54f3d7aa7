/* SPDX-License-Identifier: BSD-3-Clause */
/* Large pages for memory that is read at random: a page of its own for each
 * access costs as much to find as what is in it.  See madvise(2). */
#ifndef DEDUP_LARGE_PAGES_H
#define DEDUP_LARGE_PAGES_H

#include <stdint.h>
#include <sys/mman.h>

#define LARGE_PAGE ((size_t) 2 << 20)

/* Those that lie inside of P, LEN bytes, if the kernel has them: advice. */
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
