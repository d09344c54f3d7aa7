/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands on jobs: query-jobs, job-cancel, job-pause, job-resume, job-dismiss and
 * block-job-set-speed, in QEMU's shapes, and index-existing and import, which start one.
 *
 * Jobs belong to the image (server-jobs.h) and go on when the client that started them
 * is gone.
 *
 * Threads: the loop of control.h, as no call here waits for a step of a job.
 */
#include "commands-private.h"

#include <errno.h>
#include <string.h>

#include "checked.h"

/* --- query-jobs ---------------------------------------------------------------- */

struct job_page {
  struct srv_page page;
  bool brief;                   /* without details */
};

static json_t *
describe_job (const struct srv_job_info *i, bool brief)
{
  json_t *o = json_pack ("{s:s, s:s, s:s, s:I, s:I, s:I, s:b, s:b, s:b, s:f}",
                         "id", i->id, "type", i->type,
                         "status", srv_job_status_name (i->status),
                         "current-progress", (json_int_t) i->done,
                         "total-progress", (json_int_t) i->total,
                         "speed", (json_int_t) i->rate,
                         "can-pause", i->can_pause, "can-cancel", i->can_cancel,
                         "resumes", i->resumes, "seconds", i->seconds);

  if (o && i->error)
    json_object_set_new (o, "error", srv_json_text (i->error));
  if (o && i->waits_for)
    json_object_set_new (o, "waits-for", srv_json_text (i->waits_for));
  if (o && !brief && i->details && i->details[0])
    json_object_set_new (o, "details", srv_json_text (i->details));
  return o;
}

static int
job_cb (void *opaque, const struct srv_job_info *info)
{
  struct job_page *p = opaque;

  return srv_page_add (&p->page, describe_job (info, p->brief));
}

/* Lists all jobs.  1: not all fit into a reply with their details. */
static int MUST_CHECK
list_jobs (struct srv_image *m, bool brief, json_t **ret)
{
  struct job_page p = { .page.list = json_array (), .brief = brief };
  int r = p.page.list ? srv_job_list (m, job_cb, &p) : -ENOMEM;

  if (r < 0 || (r == 1 && !brief))
    json_decref (p.page.list);
  else
    *ret = p.page.list;
  return r;
}

/* As in QEMU, the list comes in one reply.  SRV_MAX_JOBS fit into it at 0.8 KiB each, and
 * without details, which may name disks in any script, a job has less. */
static int
run_query_jobs (void *opaque, const struct qmp_caller *caller, json_t *args,
                json_t **ret, struct qmp_error *e)
{
  struct srv_image *m = srv_control_image (opaque);
  int r = list_jobs (m, false, ret);

  if (r == 1)
    r = list_jobs (m, true, ret);
  return srv_command_result (MIN_OF (r, 0), NULL, e);
}

/* --- Changes -------------------------------------------------------------------- */

/* Does WHAT to the job that ARGS names, by CALL. */
static int
change_job (void *opaque, const struct qmp_caller *caller, const json_t *args,
            struct qmp_error *e, const char *what,
            int (*call) (struct srv_image *m, const char *id,
                         struct fault *f))
{
  const char *id = srv_arg_string (args, "id");
  struct fault f = { 0 };
  int r = srv_command_result (call (srv_control_image (opaque), id, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "%s '%s'", what, id);
  return r;
}

static int
run_cancel (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  return change_job (opaque, caller, args, e, "job-cancel", srv_job_cancel);
}

static int
run_pause (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  return change_job (opaque, caller, args, e, "job-pause", srv_job_pause);
}

static int
run_resume (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  return change_job (opaque, caller, args, e, "job-resume", srv_job_resume);
}

static int
run_dismiss (void *opaque, const struct qmp_caller *caller, json_t *args,
             json_t **ret, struct qmp_error *e)
{
  return change_job (opaque, caller, args, e, "job-dismiss", srv_job_dismiss);
}

static int
run_set_speed (void *opaque, const struct qmp_caller *caller, json_t *args,
               json_t **ret, struct qmp_error *e)
{
  const char *id = srv_arg_string (args, "device");
  const int64_t speed = srv_arg_int (args, "speed", 0);
  struct fault f = { 0 };
  int r;

  if (speed < 0)
    return qmp_error_set (e, "Parameter 'speed' expects a non-negative value");
  r = srv_job_set_rate (srv_control_image (opaque), id, (uint64_t) speed, &f);
  if (r == -ENOENT)             /* QEMU's class and text */
    r = qmp_error_class (e, "DeviceNotActive", "Block job '%s' not found", id);
  else
    r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "block-job-set-speed '%s', %lld bytes/s",
                   id, (long long) speed);
  return r;
}

/* --- Arguments of commands that start a job ----------------------------------- */

const char *
srv_job_args (json_t *args, struct srv_job_options *options)
{
  *options = (struct srv_job_options) {
    .rate = (uint64_t) srv_arg_int (args, "speed", 0),
    .manual_dismiss = !srv_arg_bool (args, "auto-dismiss", true),
  };
  return srv_arg_given (args, "job-id") ? srv_arg_string (args, "job-id") : NULL;
}

/* --- index-existing --------------------------------------------------------------- */

static int
run_index_existing (void *opaque, const struct qmp_caller *caller, json_t *args,
                    json_t **ret, struct qmp_error *e)
{
  struct srv_job_options options;
  const char *id = srv_job_args (args, &options);
  struct fault f = { 0 };
  int r = srv_index_existing_start (srv_control_image (opaque), id, &options,
                                    &f);

  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "index-existing");
  return r;
}

/* --- import ------------------------------------------------------------------------ */

static int
run_import (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  const struct srv_import_params p = {
    .name = srv_arg_string (args, "name"), .uri = srv_arg_string (args, "uri"),
    .size = (uint64_t) srv_arg_int (args, "size", 0),
    .replace = srv_arg_bool (args, "replace", false),
    .force = srv_arg_bool (args, "force", false),
    .resume = srv_arg_bool (args, "resume", false),
  };
  struct srv_job_options options;
  const char *id = srv_job_args (args, &options);
  struct fault f = { 0 };
  int r = srv_import_start (srv_control_image (opaque), id, &p, &options, &f);

  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "import '%s' from %s%s%s", p.name, p.uri,
                   p.replace ? ", replace" : "", p.resume ? ", resume" : "");
  return r;
}

/* --- The table --------------------------------------------------------------------- */

static const struct qmp_member id_args[] = {
  { "id", "str", false, "The job." },
};
static const struct qmp_member speed_args[] = {
  { "device", "str", false, "The job." },
  { "speed", "int", false, "The most bytes a second that it works on; 0: no "
    "limit." },
};
static const struct qmp_member index_existing_args[] = {
  SRV_JOB_ID_ARG,
  { "speed", "size", true, "The most bytes a second that it works on; 0, the "
    "default: no limit." },
  SRV_JOB_DISMISS_ARG,
};

static const struct qmp_member import_args[] = {
  { "name", "str", false, "The name of the disk." },
  { "uri", "str", false, "The NBD export: nbd://HOST/EXPORT, "
    "nbd+unix:///EXPORT?socket=PATH, or with nbds instead of nbd.  The server "
    "connects to it, so PATH is one that the server sees.  For nbds the certificate of "
    "the authority must be in /etc/pki/libnbd/ca-cert.pem, or in "
    "~/.pki/libnbd/ca-cert.pem if the server's user is not root." },
  { "size", "size", true, "The size of the disk in bytes, a multiple of 512, if it is "
    "to be larger than the export." },
  { "replace", "bool", true, "The disk exists: it keeps its size, which must suffice, "
    "and gets the contents at once when they are complete; what it held is lost "
    "then.  Default: false." },
  { "force", "bool", true, "Replace it also while clients have it open.  Their "
    "requests fail from then on, with the NBD error ESHUTDOWN, until they connect "
    "again.  Default: false." },
  { "resume", "bool", true, "If there is a disk NAME.importing, which an earlier import "
    "left, copy only what is missing in it.  The export must not have changed since: "
    "only its size and the last MiB that was copied are compared.  And if this import "
    "ends early, unless by job-cancel, leave NAME.importing for the next one.  Default: "
    "false." },
  SRV_JOB_ID_ARG,
  { "speed", "size", true, "The most bytes of data a second that it copies; 0, the "
    "default: no limit." },
  SRV_JOB_DISMISS_ARG,
};

static const struct qmp_member job_info[] = {
  { "id", "str", false, "The job." },
  { "type", "str", false, "What it does: \"index-existing\", \"disks\" (counts "
    "references after clones, and frees deleted disks), \"defragment\", "
    "\"import\", \"scrub\", \"compact\", \"compress\" (compresses what was written "
    "plain)." },
  { "status", "JobStatus", false, "Its state." },
  { "current-progress", "size", false, "How much is done, in bytes that were "
    "worked on." },
  { "total-progress", "size", false, "How much is to be done in all, as it is known "
    "now; 0: that is not known yet." },
  { "error", "str", true, "Why it failed, if it did." },
  { "speed", "size", false, "The limit in bytes a second; 0: none." },
  { "can-pause", "bool", false, "Whether job-pause works." },
  { "can-cancel", "bool", false, "Whether job-cancel works." },
  { "resumes", "bool", false, "Whether it goes on by itself after a restart of the "
    "server." },
  { "seconds", "number", false, "Since it was started, or that it took." },
  { "waits-for", "str", true, "Why its last step failed, if that is tried "
    "again." },
  { "details", "str", true, "A line for people.  It is left out of all jobs if the list "
    "has more than 60 KiB with it." },
};
static const struct qmp_value job_states[] = {
  { "undefined", "Not used." },
  { "created", "It was just started." },
  { "running", "It runs, or waits for its turn." },
  { "paused", "It was paused." },
  { "ready", "Not used." },
  { "standby", "It was ready and paused." },
  { "waiting", "It has done its work." },
  { "pending", "It is about to conclude." },
  { "aborting", "It failed or was cancelled." },
  { "concluded", "It has ended, and can be dismissed." },
  { "null", "It is forgotten." },
};

static const struct qmp_type types[] = {
  { .name = "JobInfo", .kind = QMP_OBJECT, .members = job_info,
    .nr_members = sizeof job_info / sizeof job_info[0],
    .doc = "A job." },
  { .name = "JobStatus", .kind = QMP_ENUM, .values = job_states,
    .nr_values = sizeof job_states / sizeof job_states[0],
    .doc = "States of jobs, as QEMU has them." },
};

static const struct qmp_command commands[] = {
  { "query-jobs", NULL, 0, "[JobInfo]", true, run_query_jobs,
    "Lists the jobs, in the order in which they were started." },
  { "job-cancel", QMP_ARRAY (id_args), NULL, true, run_cancel,
    "Ends a job before it has done its work.  What it did so far stays." },
  { "job-pause", QMP_ARRAY (id_args), NULL, true, run_pause,
    "Lets a job pause before its next step." },
  { "job-resume", QMP_ARRAY (id_args), NULL, true, run_resume,
    "Lets a paused job go on." },
  { "job-dismiss", QMP_ARRAY (id_args), NULL, true, run_dismiss,
    "Forgets a job that has concluded." },
  { "block-job-set-speed", QMP_ARRAY (speed_args), NULL, true, run_set_speed,
    "Limits the speed of a job." },
  { "index-existing", QMP_ARRAY (index_existing_args), NULL, true,
    run_index_existing,
    "Starts a job that indexes, and shares, the data that the active disk got while "
    "other programs wrote to it.  A job that runs when the server ends is continued "
    "when the image is served next, without a limit of its own; one that is cancelled is "
    "not." },
  { "import", QMP_ARRAY (import_args), NULL, false, run_import,
    "Starts a job that makes a disk with the contents of an NBD export.  What the "
    "export says reads as zeroes costs nothing.  While the job runs the disk is called "
    "NAME.importing, and nobody should open it; it gets its name when it is complete.  "
    "A job that fails, is cancelled, or ends with the server deletes it, unless it was "
    "started with \"resume\"; a crash leaves it, and disk-delete deletes it.  No import "
    "goes on by itself after a restart: NBD has no version or time of change by which "
    "the server could tell that the export still has the contents of which it has "
    "copied a part, and a disk must not be mixed from two states.  Who knows that it "
    "has them says \"resume\".  If only the last step is refused, because NAME "
    "was made or opened meanwhile, NAME.importing stays, and is complete.  The reason "
    "of a failure is in the \"details\" of the job, which query-jobs has until it is "
    "dismissed, and in the log.  Files are imported through a program that exports "
    "them, such as L<qemu-nbd(8)> for any format: the server opens no file that a client "
    "names." },
};

const struct qmp_schema srv_job_commands = {
  .title = "Jobs",
  .doc = "Long work is done by jobs, beside the clients: while these change "
    "something, jobs work for a fifth of the time. The job \"disks\" works for a "
    "tenth of it while these use the image.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
