/* SPDX-License-Identifier: BSD-3-Clause */
/* Limits what malloc keeps in a process that serves images. */
#ifndef DEDUP_MALLOC_LIMITS_H
#define DEDUP_MALLOC_LIMITS_H

/* Sets the limits for the whole process.  Called before anything large is
 * allocated. */
void srv_limit_malloc (void);

#endif
