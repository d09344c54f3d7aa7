/* SPDX-License-Identifier: BSD-3-Clause */
/* The jobs that an image has by itself (image-jobs.c). */
#ifndef DEDUP_IMAGE_JOBS_H
#define DEDUP_IMAGE_JOBS_H

#include "cleanup.h"
#include "jobs.h"

struct srv_image;

/* Prepares the jobs of M, which has a loop only later.  WAKE: see jobs.h. */
void srv_image_init_jobs (struct srv_image *m, void (*wake) (void *opaque));
/* Starts the jobs that the parameters of the image ask for.  -ENOMEM. */
int srv_image_start_jobs (struct srv_image *m) MUST_CHECK;
/* Starts the jobs that have something to do now (srv_loop_params.start_jobs). */
void srv_image_jobs_due (void *opaque, unsigned due,
                         const struct srv_moment *moment);
/* Is told what a count has found, by the thread that counts.  Starts a compaction, with
 * compact=auto, if more than a tenth is dead, and that has grown since the last one. */
void srv_image_compact_if_due (struct srv_image *m, uint64_t dead_bytes,
                               uint64_t stored_bytes);

#endif
