/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the jobs of an image, and says which of them takes the next turn
 * (jobs.c, job-turns.c).  The calls of server-jobs.h end here; the loop runs
 * the turns (loop.h).
 */
#ifndef DEDUP_JOBS_H
#define DEDUP_JOBS_H

#include "lock.h"
#include "log.h"
#include "server-jobs.h"
#include "space.h"

/* A slot in which one turn runs at a time. */
enum srv_job_lane {
  SRV_LANE_STEPS,               /* jobs of any time, and idle ones */
  SRV_LANE_UPKEEP,              /* SRV_JOB_AFTER_UPKEEP */
  SRV_NR_LANES
};

struct srv_job;                 /* jobs-private.h */

struct srv_jobs {
  /* Constant after init: */
  const char *path;             /* for messages */
  const struct log_sink *log;
  struct srv_space *space;      /* is told the results of steps */
  uint64_t (*now_ns) (void);    /* NULL: CLOCK_MONOTONIC */
  void *opaque;
  /* Is told each change of a job's state, with the lock held.  May be NULL. */
  void (*changed) (void *opaque, const char *id, const char *type,
                   enum srv_job_status status);

  struct lock lock;

  /* Protected by lock: */
  /* Is called with the lock held when a job may have become able to take a turn;
   * must not block.  NULL: nobody is to be woken (any more). */
  void (*wake) (void *opaque);
  struct srv_job *first;        /* list, in the order in which they started */
  unsigned nr;                  /* of those that count for SRV_MAX_JOBS */
  bool stopped;
  uint64_t rate, not_before_ns; /* of all jobs together */
  struct {
    uint64_t rest_ns;           /* no turn begins before that time */
    struct srv_job *last;       /* that had a turn; NULL: none, or it is gone */
  } lanes[SRV_NR_LANES];
};

/* Initializes J, whose first part is set and whose rest is 0. */
void srv_jobs_init (struct srv_jobs *j);
/* Says that a job may have become able to take a turn (srv_job_ops.is_ready).  Any
 * thread. */
void srv_jobs_poke (struct srv_jobs *j);
/* Calls WAKE no more when it has returned, as there is no loop any more. */
void srv_jobs_let_sleep (struct srv_jobs *j);
/* Ends all jobs with -ESHUTDOWN, when no turn runs; none starts from then on. */
void srv_jobs_stop (struct srv_jobs *j);
void srv_jobs_destroy (struct srv_jobs *j);

/* --- Calls of server-jobs.h ---------------------------------------------- */

/* BY_ITSELF: the job does not count for SRV_MAX_JOBS. */
int srv_jobs_start (struct srv_jobs *j, const char *id,
                    const struct srv_job_ops *ops, void *job,
                    const struct srv_job_options *options, bool by_itself,
                    struct fault *f) MUST_CHECK;
int srv_jobs_pause (struct srv_jobs *j, const char *id, struct fault *f)
  MUST_CHECK;
int srv_jobs_resume (struct srv_jobs *j, const char *id, struct fault *f)
  MUST_CHECK;
int srv_jobs_cancel (struct srv_jobs *j, const char *id, struct fault *f)
  MUST_CHECK;
int srv_jobs_dismiss (struct srv_jobs *j, const char *id, struct fault *f)
  MUST_CHECK;
int srv_jobs_set_rate (struct srv_jobs *j, const char *id, uint64_t rate,
                       struct fault *f) MUST_CHECK;
void srv_jobs_set_all_rate (struct srv_jobs *j, uint64_t rate);
int srv_jobs_list (struct srv_jobs *j,
                   int (*cb) (void *opaque, const struct srv_job_info *info),
                   void *opaque) MUST_CHECK;

/* Returns whether a job of this kind is kept that has not concluded. */
bool srv_jobs_has (struct srv_jobs *j, const struct srv_job_ops *ops);

/* --- Turns --------------------------------------------------------------- */

struct srv_moment {             /* what the loop knows */
  bool busy;                    /* a client changed something within a second */
  bool idle;                    /* no client changed anything for some seconds, and
                                 * no upkeep is urgent */
};

/* Returns a job of LANE that takes a turn now, or NULL.  The caller calls
 * srv_job_turn on another thread, and then srv_jobs_finish_turn, before LANE is
 * asked again. */
struct srv_job *srv_jobs_take_turn (struct srv_jobs *j, enum srv_job_lane lane,
                                    const struct srv_moment *m) MUST_CHECK;
void srv_job_turn (struct srv_jobs *j, struct srv_job *job);
void srv_jobs_finish_turn (struct srv_jobs *j, enum srv_job_lane lane,
                           struct srv_job *job, const struct srv_moment *m);
/* Returns when a job of LANE that waits for a time may take a turn, or
 * UINT64_MAX. */
uint64_t srv_jobs_next_ns (struct srv_jobs *j, enum srv_job_lane lane);
/* Returns whether a job that changes the image takes its turns at this moment, so
 * that it is too early for work that supposes that changes have ended. */
bool srv_jobs_go_on (struct srv_jobs *j, const struct srv_moment *m);

#endif
