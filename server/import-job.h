/* SPDX-License-Identifier: BSD-3-Clause */
/* Fills a disk from an NBD export while the image is served (import.c). */
#ifndef DEDUP_IMPORT_JOB_H
#define DEDUP_IMPORT_JOB_H

#include "server-jobs.h"

struct srv_image;
struct srv_import;

/* The job "import", which is a struct srv_import. */
extern const struct srv_job_ops srv_job_import;

/* Checks the names, and makes the job, which connects with the thread that it
 * starts; srv_job_ops.end frees it.  Errors: see srv_import_start. */
int srv_import_new (struct srv_image *m, const struct srv_import_params *p,
                    struct srv_import **out, struct fault *f) MUST_CHECK;

#endif
