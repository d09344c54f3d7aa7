/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits for malloc: see malloc-limits.h.
 *
 * glibc learns to take ever larger pieces from its arenas, which then keep
 * them: with a thread or two for each arena, a copy of all changed tables now
 * and then doubled the memory of the process.  And a log store taken from
 * there has to be cleared, under the lock.  So large pieces come from the kernel
 * and go back to it, and there are not as many arenas as threads
 * (ARCHITECTURE.md, section 9).
 *
 * Requests, of which those of 1 MiB are common, stay below that size on purpose.
 * nbdkit takes a buffer for each of its threads from malloc.  One that comes
 * from the kernel begins 16 bytes into a page, and the kernel copies to such a
 * place at half the speed or less on processors with fsrm (common/aligned.h);
 * one from an arena begins anywhere.
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
