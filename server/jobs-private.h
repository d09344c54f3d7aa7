/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what jobs.c and job-turns.c share. */
#ifndef DEDUP_JOBS_PRIVATE_H
#define DEDUP_JOBS_PRIVATE_H

#include "jobs.h"

struct srv_job {
  /* Constant: */
  const struct srv_job_ops *ops;
  void *opaque;                 /* of ops; freed when HAS_ENDED is true */
  char id[SRV_MAX_JOB_ID + 1];
  bool by_itself, manual_dismiss;
  uint64_t started_ns;

  /* Protected by the lock: */
  struct srv_job *next;
  enum srv_job_status status;
  bool pause_asked, cancel_asked;
  bool has_ended;               /* what the calls of ops would say is below */
  bool in_turn;
  uint64_t rate, not_before_ns; /* of the limit */
  struct {
    int why;                    /* -errno of the last step; 0: it succeeded */
    unsigned delay_ms;
    uint64_t not_before_ns;
    bool logged;
  } retry;
  int result;                   /* of ops->end */
  uint64_t ended_ns, done, total;
  char details[SRV_MAX_JOB_TEXT];

  /* Of the turn; only the thread that has it: */
  int step_result;
  uint64_t took_ns, bytes;
};

uint64_t srv_jobs_now_ns (const struct srv_jobs *j);
/* Changes the state along one edge of the graph in server-jobs.h. */
void srv_job_set_status_locked (struct srv_jobs *j, struct srv_job *job,
                                enum srv_job_status status);
/* Brings a job that has ended to its last state, and frees it if nobody is to
 * dismiss it. */
void srv_job_conclude_locked (struct srv_jobs *j, struct srv_job *job);
/* Gets what OPS says of the progress, or what it said at the end. */
void srv_job_progress_locked (struct srv_jobs *j, struct srv_job *job,
                              uint64_t *done, uint64_t *total);
/* Keeps what OPS says, as it cannot be asked after its end. */
void srv_job_note_end_locked (struct srv_jobs *j, struct srv_job *job,
                              int result);

#endif
