/* SPDX-License-Identifier: BSD-3-Clause */
/* A table of commands for tests of server/control/.
 *
 * Some have names, arguments and answers of qemu-storage-daemon's commands, as
 * far as those answer with an error or with something constant; so the wire
 * can be compared.  Others emit events, wait, or return something large. */
#ifndef DEDUP_FAKE_COMMANDS_H
#define DEDUP_FAKE_COMMANDS_H

#include <pthread.h>

#include "control.h"

enum fake_job { FAKE_JOB_NONE, FAKE_JOB_RUNNING, FAKE_JOB_CONCLUDED };

struct fake_world {
  struct qmp_server *server;   /* for events */
  void (*quit) (void *opaque);
  void *opaque;

  /* Worker thread only, but for the job's thread while there is a job: */
  char job[64];
  pthread_t job_thread;

  /* Atomic: */
  int job_state;               /* enum fake_job */
  unsigned nr_runs, nr_at_once, max_at_once;   /* of the command "wait" */
};

extern const struct qmp_schema fake_schema;

#endif
