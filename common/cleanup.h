/* SPDX-License-Identifier: BSD-3-Clause */
/* Attributes used everywhere: scoped free, and results that must be read. */
#ifndef DEDUP_CLEANUP_H
#define DEDUP_CLEANUP_H

#include <stdlib.h>

static inline void
cleanup_free_ptr (void *p)
{
  free (*(void **) p);
}

#define CLEANUP_FREE __attribute__ ((__cleanup__ (cleanup_free_ptr)))
#define MUST_CHECK __attribute__ ((__warn_unused_result__))

#endif
