/* SPDX-License-Identifier: BSD-3-Clause */
/* From a value that a client sent to a command, and from its result to a reply.
 *
 * Arguments are checked on the loop thread, so the worker never sees a command
 * that its table does not allow.  Of several faults in one request, that of the
 * member which comes first is reported.
 */
#include <errno.h>
#include <string.h>

#include "control-private.h"

#define MAX_ID 8192            /* bytes of its strings, and one for each value */

/* Borrowed from the value. */
struct request {
  const char *command;
  json_t *args;                /* NULL: none */
};

static void
add_error (struct text *t, const struct qmp_error *e)
{
  text_add_string (t, "\"error\": {\"class\": ");
  text_add_quoted (t, e->class);
  text_add_string (t, ", \"desc\": ");
  text_add_quoted (t, e->desc);
  text_add_string (t, "}");
}

static void
add_return (struct text *t, const json_t *ret)
{
  text_add_string (t, "\"return\": ");
  if (ret != NULL)
    text_add_json (t, ret);
  else
    text_add_string (t, "{}");
}

static void
add_id (struct text *t, const json_t *id)
{
  text_add_string (t, "\"id\": ");
  text_add_json (t, id);
}

/* QEMU has the id behind a result and before an error. */
static void
print_reply (struct text *t, int result, const json_t *ret, const json_t *id,
             const struct qmp_error *e)
{
  text_add_string (t, "{");
  if (result == 0) {
    add_return (t, ret);
    text_add_string (t, id != NULL ? ", " : "");
  }
  if (id != NULL)
    add_id (t, id);
  if (result < 0) {
    text_add_string (t, id != NULL ? ", " : "");
    add_error (t, e);
  }
  text_add_string (t, "}\r\n");
}

void
reply_on_loop (struct session *c, int result, const json_t *ret,
               const struct qmp_error *e)
{
  struct text t = { 0 };

  print_reply (&t, result, ret, c->id, e);
  if (t.failed)
    session_close_on_loop (c);
  else
    session_send_on_loop (c, t.bytes, t.len);
  text_free (&t);
  json_decref (c->id);
  c->id = NULL;
}

void
greet_on_loop (struct session *c)
{
  json_t *version = version_json (&c->server->p);
  struct text t = { 0 };

  text_add_string (&t, "{\"QMP\": {\"version\": ");
  if (version != NULL)
    text_add_json (&t, version);
  text_add_string (&t, ", \"capabilities\": []}}\r\n");
  json_decref (version);
  if (version == NULL || t.failed)
    session_close_on_loop (c);
  else
    session_send_on_loop (c, t.bytes, t.len);
  text_free (&t);
}

void
dispatch_done_on_loop (struct session *c)
{
  struct work *w = &c->work;

  c->busy = false;
  reply_on_loop (c, w->result, w->ret, &w->error);
  json_decref (w->ret);
  json_decref (w->args);
  memset (w, 0, sizeof *w);
  session_flush_on_loop (c);
  session_free_if_unused (c);
}

/* --- Requests ------------------------------------------------------------ */

/* Adds the bytes of V to *BYTES, and stops when these are more than MAX_ID. */
static void
add_bytes (const json_t *v, size_t *bytes)
{
  json_t *value = (json_t *) v, *member;        /* jansson's iteration does not change it */
  const char *key;
  size_t i;

  *bytes += json_is_string (v) ? json_string_length (v) : 1;
  if (json_is_object (v))
    json_object_foreach (value, key, member) {
      *bytes += strlen (key);
      if (*bytes > MAX_ID)
        return;
      add_bytes (member, bytes);
    }
  else if (json_is_array (v))
    json_array_foreach (value, i, member) {
      if (*bytes > MAX_ID)
        return;
      add_bytes (member, bytes);
    }
}

/* Replies repeat the id, on the thread that has all clients, and wait in memory until
 * they are read.  QEMU has no limit. */
static bool
id_is_small (const json_t *id)
{
  size_t bytes = 0;

  add_bytes (id, &bytes);
  return bytes <= MAX_ID;
}

static int
take_member (struct request *r, const char *key, json_t *value,
             struct qmp_error *e)
{
  if (strcmp (key, "id") == 0)
    return id_is_small (value) ? 0 :
      qmp_error_set (e, "QMP input member 'id' is too large");
  if (strcmp (key, "execute") == 0) {
    r->command = json_string_value (value);
    return r->command != NULL ? 0 :
      qmp_error_set (e, "QMP input member 'execute' must be a string");
  }
  if (strcmp (key, "arguments") == 0) {
    r->args = value;
    return json_is_object (value) ? 0 :
      qmp_error_set (e, "QMP input member 'arguments' must be an object");
  }
  return qmp_error_set (e, "QMP input member '%s' is unexpected", key);
}

static int
parse_request (json_t *value, struct request *r, struct qmp_error *e)
{
  const char *key;
  json_t *member;
  int result = 0;

  memset (r, 0, sizeof *r);
  if (!json_is_object (value))
    return qmp_error_set (e, "QMP input must be a JSON object");
  json_object_foreach (value, key, member)
    if ((result = take_member (r, key, member, e)) < 0)
      return result;
  return r->command != NULL ? 0 :
    qmp_error_set (e, "QMP input lacks member 'execute'");
}

static int
find_command (const struct session *c, const char *name,
              const struct qmp_command **command, struct qmp_error *e)
{
  *command = tables_command (&c->server->tables, name);
  if (!c->negotiated && strcmp (name, "qmp_capabilities") != 0)
    return qmp_error_class (e, "CommandNotFound", "Expecting capabilities "
                            "negotiation with 'qmp_capabilities'");
  return *command != NULL ? 0 :
    qmp_error_class (e, "CommandNotFound", "The command %s has not been found",
                     name);
}

static int
negotiate_on_loop (struct session *c, struct qmp_error *e)
{
  if (c->negotiated)
    return qmp_error_class (e, "CommandNotFound", "Capabilities negotiation "
                            "is already complete, command ignored");
  c->negotiated = true;
  __atomic_add_fetch (&c->server->nr_listeners, 1, __ATOMIC_ACQ_REL);
  return 0;
}

static void
run_instant_on_loop (struct session *c, const struct qmp_command *command,
                     json_t *args)
{
  struct qmp_server *s = c->server;
  struct qmp_error e = { "", "" };
  json_t *ret = NULL;
  int r;

  if (command->run != NULL) {
    r = run_command (s, command, &c->caller, args, &ret, &e);
    posts_handle_on_loop (s);  /* the events of the command */
  }
  else if (strcmp (command->name, "qmp_capabilities") == 0)
    r = negotiate_on_loop (c, &e);
  else
    r = run_own (&s->p, &s->tables, command, args, &ret, &e);
  reply_on_loop (c, r, ret, &e);
  json_decref (ret);
}

/* ARGS: a reference that this takes. */
static void
start_on_loop (struct session *c, const struct qmp_command *command,
               json_t *args)
{
  if (command->instant) {
    run_instant_on_loop (c, command, args);
    json_decref (args);
    return;
  }
  c->work = (struct work) { .command = command, .args = args };
  c->busy = true;
  worker_add (c->server, &c->work);
}

/* Finds the command that VALUE asks for, and its arguments, a new reference,
 * which agree with its table. */
static int
understand (const struct session *c, json_t *value,
            const struct qmp_command **command, json_t **args,
            struct qmp_error *e)
{
  struct request request;
  int r = parse_request (value, &request, e);

  if (r == 0)
    r = find_command (c, request.command, command, e);
  if (r < 0)
    return r;
  *args = request.args != NULL ? json_incref (request.args) : json_object ();
  r = check_args (&c->server->tables, *command, *args, e);
  if (r < 0)
    json_decref (*args);
  return r;
}

void
dispatch_on_loop (struct session *c, json_t *value)
{
  const struct qmp_command *command = NULL;
  struct qmp_error e = { "", "" };
  json_t *args = NULL, *id = json_object_get (value, "id");
  int r;

  c->id = id != NULL && id_is_small (id) ? json_incref (id) : NULL;
  r = understand (c, value, &command, &args, &e);
  if (r < 0)
    reply_on_loop (c, r, NULL, &e);
  else
    start_on_loop (c, command, args);
}
