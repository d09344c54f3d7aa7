/* SPDX-License-Identifier: BSD-3-Clause */
/* Compacts an image while it is served (compact.c). */
#ifndef DEDUP_COMPACT_JOB_H
#define DEDUP_COMPACT_JOB_H

#include "dedup.h"
#include "server-jobs.h"

struct srv_compact;

/* The job "compact", which is a struct srv_compact. */
extern const struct srv_job_ops srv_job_compact;

/* Begins one; srv_job_ops.end frees it.  PERCENT and ENDS as in dedup_compact_params.  -EBUSY,
 * -ENOTSUP and -ENOMEM as dedup_compact_begin. */
int srv_compact_new (struct srv_image *image, unsigned percent, bool ends,
                     struct srv_compact **out) MUST_CHECK;

#endif
