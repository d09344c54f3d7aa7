/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs long work beside the clients, as jobs.  A part of server.h, which includes
 * it.
 *
 * A job does one short step after the other, on a thread of the pool.  It shares
 * one slot with all other jobs, which take turns; while clients change something,
 * the slot is used for a fifth of the time.  A job has an id, a state, progress, and
 * maybe a rate limit.  It belongs to the image, not to who started it, and ends with
 * the image.  A kind of job that RESUMES begins again by itself when the image is
 * served next, and goes on where it was.
 *
 * States have the names and the order that QEMU's jobs have:
 *
 *   created -> running <-> paused          running while it waits for its turn
 *   running -> waiting -> pending -> concluded -> null          it has succeeded
 *   created, running -> aborting -> concluded -> null   it failed or was cancelled
 *
 * A job whose state is null is forgotten; that one happens at once, or, for a job
 * without AUTO_DISMISS, when it is dismissed.  Each change is told to the
 * listener (server-events.h) as SRV_EVENT_JOB_STATUS.
 *
 * Some jobs start by themselves when there is something to do: "disks" (counts
 * references after clones, frees deleted disks) and "defragment", which are not cancelled,
 * and "compress" (compresses what was written plain), which starts again after that when
 * a client has written something.
 * "index-existing" starts with the server, if the image was opened with that
 * parameter, or by srv_index_existing_start; then it starts again with the next
 * server if it has not ended.  "scrub" is started by srv_scrub_start,
 * and with the server if it was running when the image was closed.  "import" is started
 * by srv_import_start, and "compact" by srv_compact_start, or by itself with
 * that parameter; both end with the server.
 *
 * All calls may be made from any thread, and do not wait for a step.
 */
#ifndef DEDUP_SERVER_JOBS_H
#define DEDUP_SERVER_JOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "dedup-scrub.h"
#include "fault.h"

struct srv_image;

#define SRV_MAX_JOBS 64         /* kept, those that concluded among them; beside
                                 * those that start by themselves */
#define SRV_MAX_JOB_ID 127      /* bytes */
#define SRV_MAX_JOB_TEXT 256    /* bytes of a description, with its end */

enum srv_job_status {
  SRV_JOB_CREATED, SRV_JOB_RUNNING, SRV_JOB_PAUSED, SRV_JOB_STANDBY,
  SRV_JOB_WAITING, SRV_JOB_PENDING, SRV_JOB_ABORTING, SRV_JOB_CONCLUDED,
  SRV_JOB_NULL,
};
const char *srv_job_status_name (enum srv_job_status s);    /* "created" ... */

enum srv_job_when {
  SRV_JOB_ANY_TIME,
  SRV_JOB_AFTER_UPKEEP,         /* only if no upkeep of the pool is due, in the slot
                                 * of upkeep */
  SRV_JOB_WHEN_IDLE,            /* only while no client changes anything, no upkeep is
                                 * urgent, and no job of any time takes a turn */
};

/* A kind of job.  Constant. */
struct srv_job_ops {
  const char *type;             /* "scrub" */
  enum srv_job_when when;
  bool can_pause, can_cancel;
  bool resumes;                 /* after a restart of the server */
  bool changes;                 /* its steps change the image, so it is of no use
                                 * to write the image's clean state before its end */
  bool keeps_trying;            /* no error ends it; else only errors for lack of
                                 * space or memory are tried again */
  unsigned rest_factor;         /* while clients change something, a rest is so many
                                 * times as long as the step before, and a tenth of a
                                 * second at the most; 0: 4 times, however long */

  /* Does one step of at most 5 ms of work, or one operation.  1: there is more to
   * do; 0: the job is done; -errno: the step failed, with no effect.  It is then
   * tried again after a while, or else the job has failed.  -EINTR: the image is
   * about to be closed.  One call at a time. */
  int (*step) (void *job);
  /* Sets how much is done, in bytes that are worked on, and how much is to do in
   * all, as it is known now (0: not known yet).  Both grow with the time that is
   * spent: what costs nothing does not count.  The rate limit counts DONE.  Any
   * thread, also while a step runs; cheap.  May be NULL. */
  void (*progress) (void *job, uint64_t *done, uint64_t *total);
  /* Writes a line of details for people to BUF.  As progress; may be NULL. */
  void (*describe) (void *job, char *buf, size_t len);
  /* Returns whether a step may be taken now.  NULL: always.  As progress. */
  bool (*is_ready) (void *job);
  /* Returns whether clients use now what a step slows down.  NULL: the default, that
   * a client has changed something within the last second.  As progress. */
  bool (*slows_clients) (void *job);
  /* Frees the job, when it has ended.  RESULT is 0, the -errno of the step that
   * failed, -ECANCELED, or -ESHUTDOWN if the image is about to be closed.  May take
   * a while; called once, and never while a step runs. */
  void (*end) (void *job, int result);
};

struct srv_job_options {        /* NULL, or all 0: the default */
  uint64_t rate;                /* bytes a second; 0: no limit */
  bool manual_dismiss;          /* keep it when it has concluded */
};

/* Starts a job, which runs from now on and is freed by OPS->end.  ID is a letter and
 * then letters, digits, '-', '.' and '_'; NULL: made from the type.  On error JOB
 * is still the caller's.  -EINVAL, -EEXIST, -EROFS (nothing runs in the background
 * of an image that is open for reading), -EMLINK (there are SRV_MAX_JOBS),
 * -ENOMEM. */
int srv_job_start (struct srv_image *m, const char *id,
                   const struct srv_job_ops *ops, void *job,
                   const struct srv_job_options *options, struct fault *f)
  MUST_CHECK;

/* Asks a job to pause before its next step, to go on, or to end.  Messages are those
 * of QEMU.  -ENOENT: there is no such job; -EBUSY: its state or its kind do not
 * allow it. */
int srv_job_pause (struct srv_image *m, const char *id, struct fault *f)
  MUST_CHECK;
int srv_job_resume (struct srv_image *m, const char *id, struct fault *f)
  MUST_CHECK;
int srv_job_cancel (struct srv_image *m, const char *id, struct fault *f)
  MUST_CHECK;
/* Forgets a job that has concluded. */
int srv_job_dismiss (struct srv_image *m, const char *id, struct fault *f)
  MUST_CHECK;
/* Sets the limit of a job, or of all jobs together (bytes a second; 0: none). */
int srv_job_set_rate (struct srv_image *m, const char *id, uint64_t rate,
                      struct fault *f) MUST_CHECK;
void srv_image_set_job_rate (struct srv_image *m, uint64_t rate);

struct srv_job_info {           /* valid during the call that gets it */
  const char *id, *type;
  enum srv_job_status status;
  bool can_pause, can_cancel, resumes;
  uint64_t done, total;         /* bytes; TOTAL is 0 while it is not known */
  uint64_t rate;                /* bytes a second; 0: no limit */
  double seconds;               /* since it was started, or that it took */
  const char *error;            /* why it failed; NULL: it has not */
  const char *waits_for;        /* why its last step failed that is tried again, or
                                 * NULL */
  const char *details;          /* for people; "" if there are none */
};

/* Calls CB for each job in the order in which they were started, until CB returns
 * non-zero, which is the result then.  CB must not call functions of jobs.
 * -ENOMEM. */
int srv_job_list (struct srv_image *m,
                  int (*cb) (void *opaque, const struct srv_job_info *info),
                  void *opaque) MUST_CHECK;

/* Starts a job that indexes the data of the active disk that no dedup server has
 * seen.  -EEXIST: one runs already; -ENOTSUP: the image is not deduplicated. */
int srv_index_existing_start (struct srv_image *m, const char *id,
                              const struct srv_job_options *options,
                              struct fault *f) MUST_CHECK;

struct srv_import_params {
  const char *name;             /* of the disk */
  const char *uri;              /* of an NBD export */
  uint64_t size;                /* of the disk, bytes; 0: that of the export.  Not with
                                 * REPLACE */
  bool replace;                 /* the disk exists, and gets other contents */
  bool force;                   /* also while it has clients (server-disks.h) */
  bool resume;                  /* continue an earlier import, if it has left its disk,
                                 * and leave it if this one ends early */
};

/* Starts a job that makes the disk NAME with the contents of an NBD export.  The disk
 * has this name when the contents are complete, and is NAME.importing before; it is
 * deleted if the job is cancelled, or if it fails or the image is closed and RESUME was
 * not set.  What is wrong with
 * the names is refused here; that the export cannot be read, or is too large, fails the
 * job.  May wait for a change of disks.  -EINVAL, -EEXIST, -ENOENT, -EBUSY, -ENOTSUP, and
 * those of srv_job_start. */
int srv_import_start (struct srv_image *m, const char *id,
                      const struct srv_import_params *p,
                      const struct srv_job_options *options, struct fault *f)
  MUST_CHECK;

/* Starts a job that scrubs the image (dedup-scrub.h).  RESTART: from the start of the
 * file, not from where an earlier one ended early.  -EEXIST: one runs already. */
int srv_scrub_start (struct srv_image *m, const char *id, bool restart,
                     const struct srv_job_options *options, struct fault *f)
  MUST_CHECK;
/* Starts a job that compacts the image (dedup-compact.h).  PERCENT of what compressed
 * data takes may stay dead; 0: the default.  -EEXIST: one runs already; -ENOTSUP: the
 * image has no store, or new data is not compressed. */
int srv_compact_start (struct srv_image *m, const char *id, unsigned percent,
                       const struct srv_job_options *options, struct fault *f)
  MUST_CHECK;

/* Tells what the image remembers of scrubs. */
void srv_scrub_remembered (struct srv_image *m, struct dedup_scrub_memory *out);

#endif
