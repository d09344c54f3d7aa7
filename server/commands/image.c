/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands on the image and the server as a whole: query-status, flush, checkpoint,
 * query-settings, set, quit.
 *
 * A setting is checked with all others before the first of them changes.  Settings last
 * until the server ends.
 *
 * Threads: the loop and the worker of control.h.  Settings are changed by one command
 * at a time, and read by any.
 */
#include "commands-private.h"

#include <errno.h>
#include <string.h>

#define MAX_COMMIT_INTERVAL_MS 3600000  /* an hour, as the key commit-interval */

/* --- query-status --------------------------------------------------------------- */

static int
run_query_status (void *opaque, const struct qmp_caller *caller, json_t *args,
                  json_t **ret, struct qmp_error *e)
{
  struct srv_control *c = opaque;
  struct srv_image_info i;
  const char *status;

  srv_image_info (c->image, &i);
  status = __atomic_load_n (&c->quitting, __ATOMIC_RELAXED) ? "shutdown"
    : i.failed ? "io-error" : "running";
  *ret = json_pack ("{s:b, s:b, s:s, s:b}", "running",
                    strcmp (status, "running") == 0, "singlestep", 0,
                    "status", status, "read-only", !i.writable || i.failed);
  if (*ret && i.read_only_reason[0])
    json_object_set_new (*ret, "reason", srv_json_text (i.read_only_reason));
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

/* --- flush and checkpoint --------------------------------------------------------- */

static int
run_flush (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  return srv_command_result (srv_image_flush (srv_control_image (opaque)), NULL,
                             e);
}

static int
run_checkpoint (void *opaque, const struct qmp_caller *caller, json_t *args,
                json_t **ret, struct qmp_error *e)
{
  struct fault f = { 0 };
  int r = srv_image_checkpoint (srv_control_image (opaque), &f);

  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "checkpoint");
  return r;
}

/* --- Settings ---------------------------------------------------------------------- */

static const char *const levels[] = {
  [LOG_ERROR] = "error", [LOG_INFO] = "info", [LOG_DEBUG] = "debug",
};

static int
run_query_settings (void *opaque, const struct qmp_caller *caller, json_t *args,
                    json_t **ret, struct qmp_error *e)
{
  struct srv_control *c = opaque;
  const enum log_level level = __atomic_load_n (&c->log_level,
                                                __ATOMIC_RELAXED);

  *ret = json_pack ("{s:I, s:s, s:I, s:I}", "commit-interval",
                    (json_int_t) srv_image_commit_interval (c->image),
                    "log-level", levels[level], "job-speed",
                    (json_int_t) __atomic_load_n (&c->job_speed,
                                                  __ATOMIC_RELAXED),
                    "space-low", (json_int_t) srv_image_space_low (c->image));
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

static enum log_level
parse_log_level (const char *name)
{
  for (unsigned i = 0; i < sizeof levels / sizeof levels[0]; i++)
    if (strcmp (name, levels[i]) == 0)
      return i;
  return LOG_INFO;
}

static void
set_log_level (struct srv_control *c, enum log_level level)
{
  __atomic_store_n (&c->log_level, level, __ATOMIC_RELAXED);
  c->set_log_level (c->opaque, level);
}

static void
set_job_speed (struct srv_control *c, uint64_t speed)
{
  __atomic_store_n (&c->job_speed, speed, __ATOMIC_RELAXED);
  srv_image_set_job_rate (c->image, speed);
}

/* Applies settings that were checked.  A higher log level is set at once, so that the
 * line on this command is logged; a lower one by the caller, after that line. */
static void
apply (struct srv_control *c, const json_t *args, enum log_level level)
{
  if (srv_arg_given (args, "commit-interval"))
    srv_image_set_commit_interval (
      c->image, (unsigned) srv_arg_int (args, "commit-interval", 0));
  if (srv_arg_given (args, "job-speed"))
    set_job_speed (c, (uint64_t) srv_arg_int (args, "job-speed", 0));
  if (srv_arg_given (args, "space-low"))
    srv_image_set_space_low (c->image,
                             (uint64_t) srv_arg_int (args, "space-low", 0));
  if (level > c->log_level)
    set_log_level (c, level);
}

static int
run_set (void *opaque, const struct qmp_caller *caller, json_t *args,
         json_t **ret, struct qmp_error *e)
{
  CLEANUP_FREE char *text = json_dumps (args, JSON_ENSURE_ASCII);
  struct srv_control *c = opaque;
  enum log_level level = c->log_level;
  int r = 0;

  if (srv_arg_int (args, "commit-interval", 0) > MAX_COMMIT_INTERVAL_MS)
    r = qmp_error_set (e, "commit-interval must be at most %d milliseconds",
                       MAX_COMMIT_INTERVAL_MS);
  else {
    if (srv_arg_given (args, "log-level"))
      level = parse_log_level (srv_arg_string (args, "log-level"));
    apply (c, args, level);
  }
  srv_command_log (c, caller, r, e, "set %s", text ? text : "");
  if (level < c->log_level)
    set_log_level (c, level);
  return r;
}

/* --- quit ----------------------------------------------------------------------------- */

static int
run_quit (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  struct srv_control *c = opaque;

  srv_command_log (c, caller, 0, e, "quit");
  if (!__atomic_exchange_n (&c->quitting, true, __ATOMIC_RELAXED))
    c->quit (c->opaque);
  return 0;
}

/* --- The table ------------------------------------------------------------------------ */

#define SETTINGS(optional)                                                       \
  { "commit-interval", "size", optional, "Writes that clients do not flush are "  \
    "made durable so often, in milliseconds, 0 for never; at most 3600000." },    \
  { "log-level", "LogLevel", optional, "Which lines are logged." },               \
  { "job-speed", "size", optional, "The most bytes a second that all jobs "       \
    "together work on; 0: no limit." },                                            \
  { "space-low", "size", optional, "Space is low when fewer bytes are available "   \
    "for new data; 0: a twentieth of the host's file system, at most 10 GiB." }

static const struct qmp_member set_args[] = { SETTINGS (true) };
static const struct qmp_member settings_members[] = { SETTINGS (false) };

static const struct qmp_member status_members[] = {
  { "running", "bool", false, "Whether \"status\" is \"running\"." },
  { "singlestep", "bool", false, "False." },
  { "status", "RunState", false, "The state of the server." },
  { "read-only", "bool", false, "Whether nobody can write to the image." },
  { "reason", "str", true, "Why that is so, for people." },
};
static const struct qmp_value run_states[] = {
  { "running", "The image is served." },
  { "io-error", "The image is served, but nobody can write to it any more, after an "
    "error of the storage or damage in the image." },
  { "shutdown", "The server is about to end." },
};
static const struct qmp_value log_levels[] = {
  { "error", "Errors only." },
  { "info", "Errors, and a line on each thing that was done: the default." },
  { "debug", "Details, too, such as all clients that come and go." },
};
static const struct qmp_type types[] = {
  { .name = "StatusInfo", .kind = QMP_OBJECT, .members = status_members,
    .nr_members = sizeof status_members / sizeof status_members[0],
    .doc = "The state of the server." },
  { .name = "RunState", .kind = QMP_ENUM, .values = run_states,
    .nr_values = sizeof run_states / sizeof run_states[0],
    .doc = "States of the server: some of those that QEMU has." },
  { .name = "Settings", .kind = QMP_OBJECT, .members = settings_members,
    .nr_members = sizeof settings_members / sizeof settings_members[0],
    .doc = "What can be set." },
  { .name = "LogLevel", .kind = QMP_ENUM, .values = log_levels,
    .nr_values = sizeof log_levels / sizeof log_levels[0],
    .doc = "Which lines are logged." },
};

static const struct qmp_command commands[] = {
  { "query-status", NULL, 0, "StatusInfo", true, run_query_status,
    "Tells whether the server works, as QEMU does." },
  { "flush", NULL, 0, NULL, false, run_flush,
    "Makes all writes durable that were answered before." },
  { "checkpoint", NULL, 0, NULL, false, run_checkpoint,
    "Makes all writes durable, and writes all changed tables of the image in their "
    "places, so that a recovery has little to do." },
  { "query-settings", NULL, 0, "Settings", true, run_query_settings,
    "Tells what \"set\" can change." },
  { "set", QMP_ARRAY (set_args), NULL, true, run_set,
    "Changes settings, until the server ends.  If one of them is wrong, none is "
    "changed." },
  { "quit", NULL, 0, NULL, true, run_quit,
    "Ends the server as SIGTERM does: requests that are under way are answered, and "
    "the image is closed cleanly.  The reply comes first, then the event "
    "SHUTDOWN." },
};

const struct qmp_schema srv_image_commands = {
  .title = "The server", .doc = "The image and the server as a whole.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
