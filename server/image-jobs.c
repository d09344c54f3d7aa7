/* SPDX-License-Identifier: BSD-3-Clause */
/* Connects the jobs of an image with the rest of it: the calls of server-jobs.h, the
 * listener, and the jobs that start by themselves.
 *
 * "disks", "defragment" and "compress" start whenever the loop finds that they have
 * something to do, unless they run already.  "index-existing" starts once, with the server, if a
 * parameter asks for it or an earlier server was ended before it had.  A failure to
 * start one, for lack of memory, is no error: the next look tries again.
 *
 * Threads: srv_image_jobs_due runs on the thread of the loop, the calls of
 * server-jobs.h on any thread.
 */
#include "image-jobs.h"

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "compact-job.h"
#include "compress-job.h"
#include "image-internal.h"
#include "import-job.h"
#include "job-disks.h"
#include "scrub-job.h"

/* --- Jobs that start by themselves ----------------------------------------- */

static void
changed_cb (void *opaque, const char *id, const char *type,
            enum srv_job_status status)
{
  struct srv_image *m = opaque;
  const struct srv_event e = {
    .kind = SRV_EVENT_JOB_STATUS, .id = id, .type = type,
    .status = srv_job_status_name (status),
  };

  srv_emit (m, &e);
}

void
srv_image_init_jobs (struct srv_image *m, void (*wake) (void *opaque))
{
  m->jobs = (struct srv_jobs) {
    .path = m->path, .log = m->log, .space = &m->space, .wake = wake,
    .opaque = m, .changed = changed_cb,
  };
  srv_jobs_init (&m->jobs);
}

static void
start_by_itself (struct srv_image *m, const struct srv_job_ops *ops, void *job)
{
  if (!srv_jobs_has (&m->jobs, ops) &&
      srv_jobs_start (&m->jobs, NULL, ops, job, NULL, true, NULL) < 0)
    return;                     /* the next look tries again */
}

static void
start_to_compress (struct srv_image *m)
{
  struct srv_compress *x;

  if (srv_jobs_has (&m->jobs, &srv_job_compress) || srv_compress_new (m, &x) < 0)
    return;                     /* the next look tries again */
  if (srv_jobs_start (&m->jobs, NULL, &srv_job_compress, x, NULL, true, NULL) < 0)
    srv_job_compress.end (x, -ENOMEM);
}

void
srv_image_jobs_due (void *opaque, unsigned due, const struct srv_moment *moment)
{
  struct srv_image *m = opaque;

  if (due & DEDUP_JOB_DISKS)
    start_by_itself (m, &srv_job_disks, m->pool);
  if (m->exports.active->scattered.marks && moment->idle &&
      srv_defragment_is_due (&m->defragment))
    start_by_itself (m, &srv_job_defragment, &m->defragment);
  if (moment->idle && dedup_compress_due (m->pool))
    start_to_compress (m);
}

static int
start_scrub (struct srv_image *m, const char *id, bool restart,
             const struct srv_job_options *options, bool by_itself,
             struct fault *f)
{
  struct srv_scrub *x = srv_scrub_new (m, m->pool, m->path, m->log, restart);
  int r;

  if (x == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = srv_jobs_start (&m->jobs, id, &srv_job_scrub, x, options, by_itself, f);
  if (r < 0)
    srv_job_scrub.end (x, r);
  return r;
}

/* Starts the scrub that was running when the image was closed. */
static int
resume_scrub (struct srv_image *m)
{
  if (!srv_scrub_unfinished (m->pool))
    return 0;
  log_line (m->log, LOG_INFO, "%s: the scrub that was running continues",
            m->path);
  return start_scrub (m, NULL, false, NULL, true, NULL);
}

/* Starts indexing, if the parameters ask for it or it was running when the image was
 * closed. */
static int
resume_indexing (struct srv_image *m)
{
  struct srv_index_existing *x;

  if (!m->index_existing && !dedup_was_indexing (m->pool))
    return 0;
  if (!m->index_existing)
    log_line (m->log, LOG_INFO, "%s: the indexing of existing data that was "
              "running continues", m->path);
  x = srv_index_existing_new (m->exports.active, m->path, m->log, false);
  return x ? srv_jobs_start (&m->jobs, NULL, &srv_job_index_existing, x, NULL,
                             true, NULL) : -ENOMEM;
}

int
srv_image_start_jobs (struct srv_image *m)
{
  int r;

  m->defragment = (struct srv_defragment) {
    .disk = m->exports.active, .path = m->path, .log = m->log,
  };
  r = resume_scrub (m);
  return r < 0 ? r : resume_indexing (m);
}

/* --- Calls of server-jobs.h ------------------------------------------------ */

static int MUST_CHECK
need_loop (const struct srv_image *m, struct fault *f)
{
  if (m->writable)
    return 0;
  return fault_set (f, FAULT_USAGE, EROFS, UINT64_MAX, "the image is open for "
                    "reading only, so no jobs run");
}

int
srv_job_start (struct srv_image *m, const char *id,
               const struct srv_job_ops *ops, void *job,
               const struct srv_job_options *options, struct fault *f)
{
  int r = need_loop (m, f);

  return r < 0 ? r :
    srv_jobs_start (&m->jobs, id, ops, job, options, false, f);
}

int
srv_index_existing_start (struct srv_image *m, const char *id,
                          const struct srv_job_options *options,
                          struct fault *f)
{
  struct srv_index_existing *x;
  int r = need_loop (m, f);

  if (r < 0)
    return r;
  if (!dedup_can_index (m->pool))
    return fault_set (f, FAULT_UNSUPPORTED, ENOTSUP, UINT64_MAX,
                      "the image is not deduplicated");
  if (srv_jobs_has (&m->jobs, &srv_job_index_existing))
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "existing data is "
                      "being indexed already");
  x = srv_index_existing_new (m->exports.active, m->path, m->log, true);
  if (x == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = srv_jobs_start (&m->jobs, id, &srv_job_index_existing, x, options, false,
                      f);
  if (r < 0)
    free (x);
  return r;
}

int
srv_import_start (struct srv_image *m, const char *id,
                  const struct srv_import_params *p,
                  const struct srv_job_options *options, struct fault *f)
{
  struct srv_import *x;
  int r = need_loop (m, f);

  if (r < 0 || (r = srv_import_new (m, p, &x, f)) < 0)
    return r;
  r = srv_jobs_start (&m->jobs, id, &srv_job_import, x, options, false, f);
  if (r < 0)
    srv_job_import.end (x, r);
  return r;
}

int
srv_scrub_start (struct srv_image *m, const char *id, bool restart,
                 const struct srv_job_options *options, struct fault *f)
{
  int r = need_loop (m, f);

  if (r < 0)
    return r;
  if (srv_jobs_has (&m->jobs, &srv_job_scrub))
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "a scrub is running "
                      "already");
  return start_scrub (m, id, restart, options, false, f);
}

static int
start_compact (struct srv_image *m, const char *id, unsigned percent,
               const struct srv_job_options *options, bool by_itself,
               struct fault *f)
{
  struct srv_compact *x;
  int r = srv_compact_new (m, percent, !by_itself, &x);

  if (r == -EBUSY)
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "the image is being "
                      "compacted already");
  if (r == -ENOTSUP)
    return fault_set (f, FAULT_UNSUPPORTED, ENOTSUP, UINT64_MAX, "new data is not "
                      "compressed");
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = srv_jobs_start (&m->jobs, id, &srv_job_compact, x, options, by_itself, f);
  if (r < 0)
    srv_job_compact.end (x, r);
  return r;
}

void
srv_image_compact_if_due (struct srv_image *m, uint64_t dead_bytes,
                          uint64_t stored_bytes)
{
  struct srv_compact_due *due = &m->compaction.due;

  if (m->compaction.on && !srv_jobs_has (&m->jobs, &srv_job_compact) &&
      srv_compact_due (due, dead_bytes, stored_bytes))
    due->ran = start_compact (m, NULL, 0, NULL, true, NULL) == 0;
}

int
srv_compact_start (struct srv_image *m, const char *id, unsigned percent,
                   const struct srv_job_options *options, struct fault *f)
{
  int r = need_loop (m, f);

  return r < 0 ? r : start_compact (m, id, percent, options, false, f);
}

void
srv_scrub_remembered (struct srv_image *m, struct dedup_scrub_memory *out)
{
  dedup_scrub_remembered (m->pool, out);
}

int
srv_job_pause (struct srv_image *m, const char *id, struct fault *f)
{
  return srv_jobs_pause (&m->jobs, id, f);
}

int
srv_job_resume (struct srv_image *m, const char *id, struct fault *f)
{
  return srv_jobs_resume (&m->jobs, id, f);
}

int
srv_job_cancel (struct srv_image *m, const char *id, struct fault *f)
{
  return srv_jobs_cancel (&m->jobs, id, f);
}

int
srv_job_dismiss (struct srv_image *m, const char *id, struct fault *f)
{
  return srv_jobs_dismiss (&m->jobs, id, f);
}

int
srv_job_set_rate (struct srv_image *m, const char *id, uint64_t rate,
                  struct fault *f)
{
  return srv_jobs_set_rate (&m->jobs, id, rate, f);
}

void
srv_image_set_job_rate (struct srv_image *m, uint64_t rate)
{
  srv_jobs_set_all_rate (&m->jobs, rate);
}

int
srv_job_list (struct srv_image *m,
              int (*cb) (void *opaque, const struct srv_job_info *info),
              void *opaque)
{
  return srv_jobs_list (&m->jobs, cb, opaque);
}
