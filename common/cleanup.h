/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines two attributes: one frees a variable at the end of its scope, one
 * makes the compiler insist that a result is used. */
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
