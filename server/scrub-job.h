/* SPDX-License-Identifier: BSD-3-Clause */
/* Scrubs an image while it is served (scrub.c). */
#ifndef DEDUP_SCRUB_JOB_H
#define DEDUP_SCRUB_JOB_H

#include "dedup.h"
#include "server-jobs.h"

struct srv_scrub;

/* The job "scrub", which is a struct srv_scrub. */
extern const struct srv_job_ops srv_job_scrub;

/* Makes one, which begins with its first step; srv_job_ops.end frees it.  RESTART:
 * from the start of the file, not from where an earlier one ended early.  NULL: out
 * of memory. */
struct srv_scrub *srv_scrub_new (struct srv_image *image,
                                 struct dedup_pool *pool, const char *path,
                                 const struct log_sink *log, bool restart);
/* Returns whether a scrub was running when the image was closed. */
bool srv_scrub_unfinished (struct dedup_pool *pool);

#endif
