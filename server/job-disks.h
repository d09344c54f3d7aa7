/* SPDX-License-Identifier: BSD-3-Clause */
/* Does the work that clones and deleted disks leave, as a job (job-disks.c). */
#ifndef DEDUP_JOB_DISKS_H
#define DEDUP_JOB_DISKS_H

#include "server-jobs.h"

extern const struct srv_job_ops srv_job_disks;     /* its job is a dedup_pool */

#endif
