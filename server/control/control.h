/* SPDX-License-Identifier: BSD-3-Clause */
/* The manual of server/control/: a server of QMP's wire protocol on a Unix
 * socket, for any table of commands.
 *
 * The room knows the wire and nothing of images.  Its user describes commands,
 * events and types in tables (struct qmp_schema); the room checks arguments
 * against them, calls the commands, sends the events, and prints the tables
 * (query-schema, qmp_schema_print_pod).  It has four commands of its own:
 * qmp_capabilities, query-version, query-commands and query-schema.
 *
 * Threads: one that runs libuv's loop and never blocks, and one worker that
 * runs the commands which may block, one at a time over all clients.
 */
#ifndef DEDUP_CONTROL_H
#define DEDUP_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"

#define QMP_MAX_CLIENTS 128    /* more are refused */

/* --- The tables ---------------------------------------------------------- */

/* A member of an object.  TYPE is "str", "bool", "any", "number" (any JSON
 * number), "int" (int64), "size" (int64, not negative), the name of a struct
 * qmp_type, or one of these in brackets, "[str]", for a list.  DOC is a
 * sentence or two of plain text, with units. */
struct qmp_member {
  const char *name, *type;
  bool optional;
  const char *doc;
};

/* A value of an enumeration. */
struct qmp_value {
  const char *name, *doc;
};

/* An object (MEMBERS) or an enumeration (VALUES); the other one is empty. */
struct qmp_type {
  const char *name;
  enum { QMP_OBJECT, QMP_ENUM } kind;
  const struct qmp_member *members;
  size_t nr_members;
  const struct qmp_value *values;
  size_t nr_values;
  const char *doc;
};

/* The client that sent a command; for logs. */
struct qmp_caller {
  pid_t pid;
  uid_t uid;
};

struct qmp_error {
  char class[32];
  char desc[512];              /* one line */
};

/* Fills E with the class GenericError, which nearly all errors have, and
 * returns -EINVAL. */
int qmp_error_set (struct qmp_error *e, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Likewise with another class; QEMU's are few: CommandNotFound,
 * DeviceNotActive, DeviceNotFound, KVMMissingCap. */
int qmp_error_class (struct qmp_error *e, const char *class,
                     const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

struct qmp_command {
  const char *name;
  const struct qmp_member *args;
  size_t nr_args;
  const char *returns;         /* a type as in a member; NULL: empty object */
  bool instant;                /* runs on the loop thread: 1 ms, no blocking */

  /* OPAQUE is that of struct qmp_params.  ARGS is an object that agrees with
   * the table; the room keeps it.  *RET, NULL before the call, becomes a new
   * value, or stays NULL for an empty object.  Returns 0, or -errno with E
   * filled; if E is empty, the errno's text is sent. */
  int (*run) (void *opaque, const struct qmp_caller *caller, json_t *args,
              json_t **ret, struct qmp_error *e);
  const char *doc;
};

struct qmp_event {
  const char *name;
  const struct qmp_member *members;
  size_t nr_members;
  const char *doc;
};

/* Tables on one subject; a server joins several. */
struct qmp_schema {
  const char *title, *doc;     /* of a section in the manual page */
  const struct qmp_command *commands;
  size_t nr_commands;
  const struct qmp_event *events;
  size_t nr_events;
  const struct qmp_type *types;
  size_t nr_types;
};

#define QMP_ARRAY(a) (a), sizeof (a) / sizeof (a)[0]

/* Checks that tables agree with each other: that names are unique, that types
 * exist, and that all have a text.  Fills F and returns -EINVAL if not. */
int qmp_schema_check (const struct qmp_schema *const *schemas, size_t nr,
                      struct fault *f) MUST_CHECK;

/* Prints the commands, events and types as sections of a manual page in POD,
 * with the room's own commands first. */
void qmp_schema_print_pod (const struct qmp_schema *const *schemas, size_t nr,
                           FILE *to);

/* --- The server ---------------------------------------------------------- */

struct qmp_params {
  const char *path;            /* of the socket */
  const struct qmp_schema *const *schemas;
  size_t nr_schemas;
  void *opaque;                /* for commands */
  const char *package;         /* in the greeting: name and version */
  unsigned major, minor, micro;
  const struct log_sink *log;  /* one line for each client and refusal */
};

struct qmp_server;

/* Creates the socket at PATH with mode 0600, in place of one that no server
 * listens on.  Clients can connect and wait from here on.  No thread is
 * started, so that the process may fork.  P's pointers must stay valid until
 * qmp_server_free.  Returns 0 or -errno with F filled; FAULT_BUSY: a server
 * listens on PATH. */
int qmp_server_open (const struct qmp_params *p, struct qmp_server **out,
                     struct fault *f) MUST_CHECK;

/* Starts the threads, after a fork.  Returns 0 or -errno. */
int qmp_server_start (struct qmp_server *s) MUST_CHECK;

/* Sends an event with DATA (an object, or NULL), of which it takes the
 * reference, to each client that has finished its negotiation.  Never blocks;
 * any thread, with whatever locks, until qmp_server_free.  An event that is
 * emitted inside a command reaches clients before the command's reply. */
void qmp_server_emit (struct qmp_server *s, const char *name, json_t *data);

/* Ends the service, started or not: the command that runs is finished, EVENT
 * (NULL: none) with DATA is sent behind its reply, what is queued is sent for a
 * second at most, and the socket is removed.  Later events are dropped.  Not to
 * be called by a command. */
void qmp_server_stop (struct qmp_server *s, const char *event, json_t *data);

/* Frees S, which was stopped.  NULL is allowed. */
void qmp_server_free (struct qmp_server *s);

#endif
