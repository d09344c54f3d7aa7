/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets limits for malloc, so that freed memory returns to the kernel.
 *
 * glibc adapts: after a large piece was freed it takes pieces of that size from
 * its arenas, which keep them.  With a thread or two for each arena, an
 * occasional copy of all changed tables doubled the memory of the process.  A
 * log store that is taken from an arena also has to be cleared, under the image
 * lock.  Therefore large pieces are mapped from the kernel and unmapped when
 * they are freed, and there are fewer arenas than threads (ARCHITECTURE.md,
 * section 9).
 *
 * The limit is above the size of requests, of which those of 1 MiB are common,
 * because nbdkit allocates a buffer for each of its threads.  A mapped buffer
 * begins 16 bytes into a page, and the kernel copies to such an address at half
 * the speed or less on processors with fsrm (common/aligned.h).  A buffer from
 * an arena may begin at any address.
 */
#include "malloc-limits.h"

#include <malloc.h>

void
srv_limit_malloc (void)
{
#ifdef __GLIBC__
  mallopt (M_MMAP_THRESHOLD, 4 << 20);
  mallopt (M_TRIM_THRESHOLD, 2 << 20);
  mallopt (M_ARENA_MAX, 8);
#endif
}
