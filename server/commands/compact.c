/* SPDX-License-Identifier: BSD-3-Clause */
/* The command compact, which starts the job that gives back dead compressed data
 * (server/compact.c).  It answers as soon as the job is listed; how far that comes is told
 * by events and query-jobs.  One such job runs at a time: a second command is an error.
 *
 * Threads: the loop of control.h, as the call waits for no step of the job.
 */
#include "commands-private.h"

static int
run_compact (void *opaque, const struct qmp_caller *caller, json_t *args,
             json_t **ret, struct qmp_error *e)
{
  struct srv_job_options options;
  const char *id = srv_job_args (args, &options);
  const int64_t percent = srv_arg_int (args, "dead-percent", 0);
  struct fault f = { 0 };
  int r;

  if (srv_arg_given (args, "dead-percent") && (percent < 1 || percent > 99))
    return qmp_error_set (e, "Parameter 'dead-percent' must be 1 to 99");
  r = srv_compact_start (srv_control_image (opaque), id, (unsigned) percent,
                         &options, &f);
  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "compact");
  return r;
}

static const struct qmp_member compact_args[] = {
  SRV_JOB_ID_ARG,
  { "dead-percent", "int", true, "How much of the space of compressed data may stay "
    "dead, 1 to 99; or unused in sectors behind data of single clusters, where that is "
    "more.  Default: 10." },
  { "speed", "size", true, "The most bytes of disks a second that it moves; 0, the "
    "default: no limit." },
  SRV_JOB_DISMISS_ARG,
};

static const struct qmp_command commands[] = {
  { "compact", QMP_ARRAY (compact_args), NULL, true, run_compact,
    "Starts a job that gives back the space of compressed data which no disk has any "
    "more: it moves what is in use out of clusters that hold little of it.  The job "
    "ends with the server; what it did is kept." },
};

const struct qmp_schema srv_compact_commands = {
  .title = "Compaction",
  .doc = "Compressed data that is overwritten leaves space in its cluster that is free "
    "only when all of the cluster is; query-stats tells how much.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
};
