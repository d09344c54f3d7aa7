/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands on scrubs: scrub, which starts one as a job (server/scrub.c), and
 * query-scrub, which tells what the image remembers of them.  What a scrub finds is told by
 * events while it runs; query-scrub only counts it.
 *
 * Threads: the loop of control.h, as no call here waits for a step of the job.
 */
#include "commands-private.h"

#include <errno.h>

static int
run_scrub (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  struct srv_job_options options;
  const char *id = srv_job_args (args, &options);
  struct fault f = { 0 };
  int r = srv_scrub_start (srv_control_image (opaque), id,
                           srv_arg_bool (args, "restart", false), &options, &f);

  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "scrub");
  return r;
}

static int
run_query_scrub (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  struct dedup_scrub_memory m;

  srv_scrub_remembered (srv_control_image (opaque), &m);
  *ret = json_pack ("{s:b, s:I, s:I, s:I, s:b}",
                    "unfinished", m.unfinished,
                    "position", (json_int_t) m.position,
                    "bad-clusters", (json_int_t) m.bad,
                    "healed-clusters", (json_int_t) m.healed,
                    "index-complete", m.complete);
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

/* --- The table ---------------------------------------------------------------- */

static const struct qmp_member scrub_args[] = {
  SRV_JOB_ID_ARG,
  { "restart", "bool", true, "Begin at the start of the file, not where an earlier "
    "scrub ended early.  Default: false." },
  { "speed", "size", true, "The most bytes a second that it reads; 0, the "
    "default: no limit." },
  SRV_JOB_DISMISS_ARG,
};

static const struct qmp_member scrub_info[] = {
  { "unfinished", "bool", false, "Whether a scrub runs, or has ended early." },
  { "position", "size", false, "The bytes of the file below which that scrub has "
    "read everything." },
  { "bad-clusters", "size", false, "Clusters that are known to be bad." },
  { "healed-clusters", "size", false, "Clusters that were healed since the server "
    "started." },
  { "index-complete", "bool", false, "Whether a cluster that differs from the index "
    "is certainly bad." },
};

static const struct qmp_type types[] = {
  { .name = "ScrubInfo", .kind = QMP_OBJECT, .members = scrub_info,
    .nr_members = sizeof scrub_info / sizeof scrub_info[0],
    .doc = "What the image remembers of scrubs." },
};

static const struct qmp_command commands[] = {
  { "scrub", QMP_ARRAY (scrub_args), NULL, true, run_scrub,
    "Starts a job that reads everything that is stored from the medium, and compares "
    "it with the hashes in the index.  A job that is cancelled is not continued; one "
    "that runs when the server ends is continued when the image is served next, without "
    "a limit of its own." },
  { "query-scrub", NULL, 0, "ScrubInfo", true, run_query_scrub,
    "Tells what the image remembers of scrubs." },
};

const struct qmp_schema srv_scrub_commands = {
  .title = "Scrubs",
  .doc = "A scrub finds data that the medium has changed or lost, before somebody "
    "needs it.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
