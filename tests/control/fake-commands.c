/* SPDX-License-Identifier: BSD-3-Clause */
/* What the commands of the test's table do; struct fake_world is their OPAQUE.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "fake-commands.h"

static const char *
string_arg (json_t *args, const char *name)
{
  return json_string_value (json_object_get (args, name));
}

static json_int_t
int_arg (json_t *args, const char *name)
{
  return json_integer_value (json_object_get (args, name));
}

/* --- As qemu-storage-daemon ---------------------------------------------- */

static int
run_empty_list (void *opaque, const struct qmp_caller *caller, json_t *args,
                json_t **ret, struct qmp_error *e)
{
  *ret = json_array ();
  return 0;
}

/* A job of QEMU has emitted "created" and "running" when its command is
 * answered, and the rest later. */
#define REST_US 300000

static void
emit_status (struct fake_world *w, const char *status)
{
  qmp_server_emit (w->server, "JOB_STATUS_CHANGE",
                   json_pack ("{s:s, s:s}", "status", status, "id", w->job));
}

static void *
job_main (void *opaque)
{
  struct fake_world *w = opaque;

  usleep (REST_US);
  emit_status (w, "waiting");
  emit_status (w, "pending");
  emit_status (w, "concluded");
  __atomic_store_n (&w->job_state, FAKE_JOB_CONCLUDED, __ATOMIC_RELEASE);
  return NULL;
}

static int
job_state (struct fake_world *w)
{
  return __atomic_load_n (&w->job_state, __ATOMIC_ACQUIRE);
}

static int
run_create (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;

  if (job_state (w) != FAKE_JOB_NONE)
    return qmp_error_set (e, "Job ID '%s' already in use", w->job);
  snprintf (w->job, sizeof w->job, "%s", string_arg (args, "job-id"));
  __atomic_store_n (&w->job_state, FAKE_JOB_RUNNING, __ATOMIC_RELEASE);
  emit_status (w, "created");
  emit_status (w, "running");
  return -pthread_create (&w->job_thread, NULL, job_main, w);
}

static int
run_query_jobs (void *opaque, const struct qmp_caller *caller, json_t *args,
                json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;

  *ret = json_array ();
  if (job_state (w) == FAKE_JOB_CONCLUDED)
    json_array_append_new (*ret, json_pack (
      "{s:i, s:s, s:i, s:s, s:s}", "current-progress", 1, "status",
      "concluded", "total-progress", 1, "type", "create", "id", w->job));
  return 0;
}

static int
run_job (void *opaque, const struct qmp_caller *caller, json_t *args,
         json_t **ret, struct qmp_error *e)
{
  return qmp_error_set (e, "Job not found");
}

static int
run_dismiss (void *opaque, const struct qmp_caller *caller, json_t *args,
             json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;

  if (job_state (w) != FAKE_JOB_CONCLUDED ||
      strcmp (string_arg (args, "id"), w->job) != 0)
    return qmp_error_set (e, "Job not found");
  pthread_join (w->job_thread, NULL);
  emit_status (w, "null");
  __atomic_store_n (&w->job_state, FAKE_JOB_NONE, __ATOMIC_RELEASE);
  return 0;
}

static int
run_block_job (void *opaque, const struct qmp_caller *caller, json_t *args,
               json_t **ret, struct qmp_error *e)
{
  return qmp_error_class (e, "DeviceNotActive", "Block job '%s' not found",
                          string_arg (args, "device"));
}

static int
run_export_del (void *opaque, const struct qmp_caller *caller, json_t *args,
                json_t **ret, struct qmp_error *e)
{
  return qmp_error_set (e, "Export '%s' is not found",
                        string_arg (args, "id"));
}

static int
run_transaction (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  if (json_array_size (json_object_get (args, "actions")) == 0)
    return 0;
  return qmp_error_set (e, "Transaction aborted using Abort action");
}

static int
run_nothing (void *opaque, const struct qmp_caller *caller, json_t *args,
             json_t **ret, struct qmp_error *e)
{
  return 0;
}

/* --- Our own ------------------------------------------------------------- */

static int
run_echo (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  *ret = json_incref (json_object_get (args, "value"));
  return 0;
}

static void
note_run (struct fake_world *w, int change)
{
  unsigned now = __atomic_add_fetch (&w->nr_at_once, change, __ATOMIC_ACQ_REL);

  if (now > __atomic_load_n (&w->max_at_once, __ATOMIC_ACQUIRE))
    __atomic_store_n (&w->max_at_once, now, __ATOMIC_RELEASE);
}

static int
run_wait (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;

  note_run (w, 1);
  usleep (int_arg (args, "ms") * 1000);
  note_run (w, -1);
  __atomic_add_fetch (&w->nr_runs, 1, __ATOMIC_ACQ_REL);
  return 0;
}

static int
run_emit (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;
  const json_int_t nr = int_arg (args, "count");

  for (json_int_t i = 0; i < nr; i++)
    qmp_server_emit (w->server, "FAKE_EVENT", json_pack ("{s:I}", "number", i));
  return 0;
}

static int
run_large (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  const size_t len = int_arg (args, "bytes");
  char *s = malloc (len + 1);

  if (s == NULL)
    return -ENOMEM;
  memset (s, 'x', len);
  s[len] = '\0';
  *ret = json_string_nocheck (s);
  free (s);
  return 0;
}

static int
run_fail (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  return -ENOSPC;
}

static int
run_who (void *opaque, const struct qmp_caller *caller, json_t *args,
         json_t **ret, struct qmp_error *e)
{
  *ret = json_pack ("{s:I, s:I}", "pid", (json_int_t) caller->pid, "uid",
                    (json_int_t) caller->uid);
  return 0;
}

static int
run_quit (void *opaque, const struct qmp_caller *caller, json_t *args,
          json_t **ret, struct qmp_error *e)
{
  struct fake_world *w = opaque;

  w->quit (w->opaque);
  return 0;
}

/* --- The table ----------------------------------------------------------- */

static const struct qmp_member id_args[] = {
  { "id", "str", false, "A name." },
};

static const struct qmp_member speed_args[] = {
  { "device", "str", false, "A name." },
  { "speed", "int", false, "Bytes per second." },
};

static const struct qmp_member export_args[] = {
  { "id", "str", false, "A name." },
  { "mode", "BlockExportRemoveMode", true, "How." },
};

static const struct qmp_member create_args[] = {
  { "job-id", "str", false, "A name." },
  { "options", "any", false, "What is made." },
};

static const struct qmp_value mode_values[] = {
  { "safe", "Not while it is in use." },
  { "hard", "At once." },
};

static const struct qmp_member transaction_args[] = {
  { "actions", "[TransactionAction]", false, "What to do." },
  { "properties", "TransactionProperties", true, "How." },
};

static const struct qmp_member action_members[] = {
  { "type", "TransactionActionKind", false, "A kind." },
  { "data", "Abort", false, "Nothing." },
};

static const struct qmp_value action_values[] = {
  { "abort", "Gives up." },
};

static const struct qmp_member properties_members[] = {
  { "completion-mode", "ActionCompletionMode", true, "Together or not." },
};

static const struct qmp_value completion_values[] = {
  { "individual", "One by one." },
  { "grouped", "Together." },
};

static const struct qmp_type types[] = {
  { "BlockExportRemoveMode", QMP_ENUM, NULL, 0, QMP_ARRAY (mode_values),
    "A mode." },
  { "TransactionAction", QMP_OBJECT, QMP_ARRAY (action_members), NULL, 0,
    "An action." },
  { "TransactionActionKind", QMP_ENUM, NULL, 0, QMP_ARRAY (action_values),
    "A kind of action." },
  { "TransactionProperties", QMP_OBJECT, QMP_ARRAY (properties_members),
    NULL, 0, "Properties." },
  { "ActionCompletionMode", QMP_ENUM, NULL, 0, QMP_ARRAY (completion_values),
    "A mode." },
  { "Abort", QMP_OBJECT, NULL, 0, NULL, 0, "Nothing." },
};

static const struct qmp_member echo_args[] = {
  { "value", "any", false, "A value." },
};

static const struct qmp_member wait_args[] = {
  { "ms", "size", false, "Milliseconds." },
};

static const struct qmp_member emit_args[] = {
  { "count", "size", false, "How many events." },
};

static const struct qmp_member large_args[] = {
  { "bytes", "size", false, "How many bytes." },
};

static const struct qmp_member check_args[] = {
  { "string", "str", true, "A string." },
  { "number", "number", true, "A number." },
  { "bool", "bool", true, "True or false." },
  { "sizes", "[size]", true, "Sizes." },
  { "modes", "[BlockExportRemoveMode]", true, "Modes." },
};

static const struct qmp_command commands[] = {
  { "query-jobs", NULL, 0, "[any]", true, run_query_jobs, "Returns jobs." },
  { "blockdev-create", QMP_ARRAY (create_args), NULL, false, run_create,
    "Starts a job." },
  { "query-block-exports", NULL, 0, "[any]", false, run_empty_list,
    "Returns []." },
  { "job-cancel", QMP_ARRAY (id_args), NULL, true, run_job, "Fails." },
  { "job-pause", QMP_ARRAY (id_args), NULL, false, run_job, "Fails." },
  { "job-dismiss", QMP_ARRAY (id_args), NULL, false, run_dismiss,
    "Forgets the job." },
  { "block-job-set-speed", QMP_ARRAY (speed_args), NULL, true, run_block_job,
    "Fails." },
  { "block-export-del", QMP_ARRAY (export_args), NULL, false, run_export_del,
    "Fails." },
  { "transaction", QMP_ARRAY (transaction_args), NULL, false,
    run_transaction, "Fails if there is anything to do." },
  { "echo", QMP_ARRAY (echo_args), "any", true, run_echo, "Echoes." },
  { "echo-slowly", QMP_ARRAY (echo_args), "any", false, run_echo, "Echoes." },
  { "check", QMP_ARRAY (check_args), NULL, true, run_nothing,
    "Does nothing." },
  { "wait", QMP_ARRAY (wait_args), NULL, false, run_wait, "Waits." },
  { "emit", QMP_ARRAY (emit_args), NULL, false, run_emit, "Emits events." },
  { "emit-at-once", QMP_ARRAY (emit_args), NULL, true, run_emit,
    "Emits events." },
  { "large", QMP_ARRAY (large_args), "str", true, run_large, "Is large." },
  { "fail", NULL, 0, NULL, true, run_fail, "Fails with an errno only." },
  { "who", NULL, 0, "any", true, run_who, "Tells who asks." },
  { "quit", NULL, 0, NULL, true, run_quit, "Ends the server." },
};

static const struct qmp_member event_members[] = {
  { "number", "int", false, "A number." },
};

static const struct qmp_event events[] = {
  { "FAKE_EVENT", QMP_ARRAY (event_members), "Tells nothing." },
  { "SHUTDOWN", NULL, 0, "Tells of the end." },
};

const struct qmp_schema fake_schema = {
  "COMMANDS OF THE TEST", "They do nothing.",
  QMP_ARRAY (commands), QMP_ARRAY (events), QMP_ARRAY (types),
};
