/* SPDX-License-Identifier: BSD-3-Clause */
/* The manual of server/commands/: the commands and events of an image that is served,
 * on a control socket.
 *
 * The room joins an image (server.h) and a server of QMP's wire (control.h): it has
 * the tables of commands, and turns what the listener of the image hears into events.
 * A program calls, in this order:
 *
 *   srv_control_open   before the image is opened: creates the socket, so that an error
 *                      changes nothing; starts no thread, so that the process may fork
 *   srv_control_attach with the open image, before srv_image_start
 *   srv_control_start  after the fork, and after srv_image_start: commands run
 *   srv_control_stop   before requests to the image end
 *   srv_image_close    (server.h)
 *   srv_control_free
 *
 * Commands run on threads of control.h, beside the requests of clients.
 */
#ifndef DEDUP_COMMANDS_H
#define DEDUP_COMMANDS_H

#include "cleanup.h"
#include "control.h"
#include "fault.h"
#include "log.h"
#include "server.h"

struct srv_control;

struct srv_control_params {
  const char *path;             /* of the socket; copied */
  const char *image_path;       /* for messages; copied */
  const struct log_sink *log;
  /* Begins to end the process, as a signal would, and returns at once: the command
   * quit.  It leads to a call of srv_control_stop on another thread. */
  void (*quit) (void *opaque);
  /* Chooses which lines the log has from now on: errors only, information also, or
   * all.  Any thread. */
  void (*set_log_level) (void *opaque, enum log_level level);
  enum log_level log_level;     /* at the beginning */
  void *opaque;
};

/* Creates the socket.  Clients may connect from now on, and wait.  -EADDRINUSE and
 * others, with a fault. */
int srv_control_open (const struct srv_control_params *p,
                      struct srv_control **out, struct fault *f) MUST_CHECK;
/* Lets commands work on IMAGE, and becomes its listener. */
void srv_control_attach (struct srv_control *c, struct srv_image *image);
/* Starts to answer clients. */
int srv_control_start (struct srv_control *c) MUST_CHECK;
/* Ends what srv_control_open began, started or not: waits for the command that is under
 * way, tells clients that the server ends (the
 * event SHUTDOWN), ends their connections and removes the socket.  C may be NULL.  Later
 * events of the image are dropped. */
void srv_control_stop (struct srv_control *c);
/* Frees C, which may be NULL, when the image is closed. */
void srv_control_free (struct srv_control *c);

/* The tables of all commands and events of this room, for control.h. */
extern const struct qmp_schema *const srv_schemas[];
extern const size_t srv_nr_schemas;

#endif
