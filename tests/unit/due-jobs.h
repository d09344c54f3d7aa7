/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs the jobs of an image that nobody serves.  Include it behind cmocka.h.
 */
#ifndef DEDUP_DUE_JOBS_H
#define DEDUP_DUE_JOBS_H

#include "dedup.h"

/* Runs what is due, without the last step, which makes the image clean.  A commit alone
 * may stay due while the image is not clean. */
static inline void
run_due_jobs (struct dedup_pool *d)
{
  unsigned due, i;

  for (i = 0; i < 300; i++) {
    due = dedup_due (d, NULL) & ~(unsigned) DEDUP_JOB_CLEAN;
    if (due == 0)
      return;
    assert_int_equal (dedup_run (d, (enum dedup_job) (due & -due)), 0);
    if (due == DEDUP_JOB_COMMIT && i > 4)
      return;
  }
}

#endif
