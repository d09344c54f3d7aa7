/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses what was written plain, when the server is idle (compress.c). */
#ifndef DEDUP_COMPRESS_JOB_H
#define DEDUP_COMPRESS_JOB_H

#include "dedup.h"
#include "server-jobs.h"

struct srv_compress;

/* The job "compress", which is a struct srv_compress. */
extern const struct srv_job_ops srv_job_compress;

/* Begins one; srv_job_ops.end frees it.  -EBUSY, -ENOTSUP and -ENOMEM as
 * dedup_compress_begin. */
int srv_compress_new (struct srv_image *image, struct srv_compress **out) MUST_CHECK;

#endif
