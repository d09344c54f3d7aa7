/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocates memory for data that begins at a line of the cache, so that copies
 * by the kernel and the C library into it and out of it run at full speed.  On
 * processors where those copies are `rep movsb' (flags erms, fsrm), a
 * destination that lies 1 to 31 bytes further into its page than the source
 * into its own costs half the speed or more; malloc's large pieces begin 16
 * bytes into a page (bench/dedup-copy measures it). */
#ifndef DEDUP_ALIGNED_H
#define DEDUP_ALIGNED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE 64

/* Aligns a variable or a member.  Memory for a struct with such a member comes
 * from aligned_new. */
#define CACHE_ALIGNED __attribute__ ((__aligned__ (CACHE_LINE)))

/* Returns LEN bytes, not initialised, to be freed by free (); NULL: out of
 * memory. */
static inline void *
aligned_new (size_t len)
{
  if (len > SIZE_MAX - CACHE_LINE)
    return NULL;
  return aligned_alloc (CACHE_LINE, len == 0 ? CACHE_LINE
                        : (len + CACHE_LINE - 1) & ~(size_t) (CACHE_LINE - 1));
}

/* Returns LEN bytes that are all zero, else as aligned_new. */
static inline void *
aligned_zero_new (size_t len)
{
  void *p = aligned_new (len);

  return p ? memset (p, 0, len) : NULL;
}

#endif
