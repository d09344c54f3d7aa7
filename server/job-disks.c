/* SPDX-License-Identifier: BSD-3-Clause */
/* The job "disks": counts the references in tables that clones lend, and frees deleted
 * disks (dedup-disks.h).
 *
 * It starts by itself when such work is left, also from an earlier server, as soon as
 * it can have a turn: after an open that is when the scan for free clusters has ended.
 * It cannot be cancelled, as the image is not clean before its end.
 *
 * Threads: as jobs.c says.
 */
#include "job-disks.h"

#include <errno.h>

#include "dedup.h"

static bool
is_due (struct dedup_pool *pool)
{
  return dedup_due (pool, NULL) & DEDUP_JOB_DISKS;
}

static int
step (void *opaque)
{
  struct dedup_pool *pool = opaque;
  int r = dedup_run (pool, DEDUP_JOB_DISKS);

  if (r < 0 || is_due (pool))
    return r < 0 ? r : 1;
  /* A damaged table has been told of, and keeps work from being done. */
  return dedup_disks_pending (pool) && !dedup_failed (pool) ? -EUCLEAN : 0;
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  dedup_disks_progress (opaque, done, total);
}

/* The work itself rests while clients use the image, behind each table. */
static bool
slows_clients (void *opaque)
{
  (void) opaque;
  return false;
}

static void
end (void *opaque, int result)
{
  (void) opaque;
  (void) result;
}

const struct srv_job_ops srv_job_disks = {
  .type = "disks", .when = SRV_JOB_AFTER_UPKEEP, .can_pause = true,
  .resumes = true, .changes = true, .step = step,
  .progress = progress, .slows_clients = slows_clients, .end = end,
};
