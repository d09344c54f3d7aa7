/* SPDX-License-Identifier: BSD-3-Clause */
/* What malloc keeps for itself, in a process that serves images. */
#ifndef DEDUP_MALLOC_LIMITS_H
#define DEDUP_MALLOC_LIMITS_H

/* For the whole process, before anything large is allocated. */
void srv_limit_malloc (void);

#endif
