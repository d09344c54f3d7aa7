/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the server and its clients for the files of this room. */
#ifndef DEDUP_CONTROL_PRIVATE_H
#define DEDUP_CONTROL_PRIVATE_H

#include <uv.h>

#include "control.h"
#include "json-stream.h"
#include "lock.h"
#include "socket.h"
#include "tables.h"
#include "text.h"

#define MAX_READ (16 << 10)    /* bytes of a client's input at a time */

/* What other threads tell the loop: an event for all clients, or a command
 * that is done. */
struct post {
  struct post *next;
  struct work *done;           /* of which this post is part; NULL: an event */
  struct text event;           /* a line */
};

struct posts {
  struct post *first, **last;
};

/* A command on its way to the worker and back. */
struct work {
  const struct qmp_command *command;
  json_t *args, *ret;
  struct qmp_error error;
  int result;
  struct work *next;
  struct post post;            /* so that a result needs no memory */
};

/* A client.  Loop thread only, but for WORK while the worker has it. */
struct session {
  struct qmp_server *server;
  struct session *next;        /* in the server's list */
  uv_pipe_t pipe;
  uv_write_t write;
  struct qmp_caller caller;
  bool negotiated;             /* qmp_capabilities came */
  bool busy;                   /* the worker has its command */
  bool reading;                /* read_cb may be called */
  bool resting;                /* others come first */
  bool writing;                /* libuv has SENDING */
  bool ending;                 /* is closed when all is sent */
  bool closing;                /* uv_close was called */
  bool closed;                 /* and is done: freed when not busy */

  char in[MAX_READ];
  size_t in_pos, in_len;       /* what was not looked at yet */
  struct json_stream stream;
  struct text queued, sending; /* output */
  size_t queued_event_bytes;   /* of QUEUED */
  json_t *id;                  /* of the command that runs, or NULL */
  struct work work;
};

/* Calls upward, to files that know more; loop thread only. */
struct hooks {
  void (*may_continue) (struct session *c);    /* output was sent */
  void (*done) (struct session *c);            /* by the worker */
  void (*gone) (struct qmp_server *s);         /* a client is */
};

struct qmp_server {
  /* Constant after open: */
  struct qmp_params p;
  struct hooks hooks;
  struct qmp_tables tables;

  /* Constant after start: */
  uv_thread_t loop_thread, worker_thread;
  bool started;

  struct lock lock;

  /* Protected by lock: */
  struct posts posts;
  size_t posted_bytes;         /* of events */
  bool lost;                   /* events, and the log says so */
  struct work *queue, **queue_end;     /* for the worker */
  pthread_cond_t queued;
  bool stopping;               /* no command begins any more */
  bool deaf;                   /* nothing is posted any more */

  /* Any thread: */
  uv_async_t wake;

  /* Atomic: */
  unsigned nr_listeners;       /* clients that get events */
  bool draining;               /* the loop sends what is queued, and ends */

  /* Loop thread only: */
  uv_loop_t uv;
  uv_pipe_t listener;
  uv_timer_t deadline;         /* of the end */
  struct control_socket socket;
  struct session *sessions;
  unsigned nr_sessions;
  struct json_budget budget;
  bool ended;                  /* the end has begun */

  struct text last_event;      /* set before DRAINING */
};

/* --- connection.c -------------------------------------------------------- */

struct session *session_of_handle (const void *handle);

/* How many bytes wait to be sent. */
size_t session_waiting_bytes (const struct session *c);

/* Queues bytes to be sent. */
void session_send_on_loop (struct session *c, const char *bytes, size_t len);

/* Sends what is queued. */
void session_flush_on_loop (struct session *c);

/* Queues and sends an event, if the client wants events.  A client that does
 * not read them is dropped. */
void session_event_on_loop (struct session *c, const struct text *event);

void session_stop_reading (struct session *c);

/* Closes it at once, or when what is queued was sent. */
void session_close_on_loop (struct session *c);
void session_end_on_loop (struct session *c);

/* The end of uv_close. */
void session_closed_cb (uv_handle_t *handle);

void session_free_if_unused (struct session *c);

/* --- session.c ----------------------------------------------------------- */

/* Takes a connection that waits at the listener. */
void session_accept_on_loop (struct qmp_server *s);

/* Handles input until there is none, or something has to come first. */
void session_continue_on_loop (struct session *c);

/* --- dispatch.c ---------------------------------------------------------- */

/* Does what the client's VALUE asks for: replies, or gives the command to the
 * worker and marks the client as busy. */
void dispatch_on_loop (struct session *c, json_t *value);

/* Sends the reply to the command that the worker has done. */
void dispatch_done_on_loop (struct session *c);

/* Sends a reply: RET if RESULT is 0 (NULL: an empty object), else E. */
void reply_on_loop (struct session *c, int result, const json_t *ret,
                    const struct qmp_error *e);

void greet_on_loop (struct session *c);

/* --- posts.c ------------------------------------------------------------- */

void posts_init (struct posts *p);
void posts_free (struct posts *p);

/* Tells the loop that the worker has done W. */
void post_done (struct qmp_server *s, struct work *w);

/* Handles what was posted: sends events and replies, in the order of the
 * posts. */
void posts_handle_on_loop (struct qmp_server *s);

/* Prints an event with the time of day, as a line. */
void print_event (struct text *t, const char *name, const json_t *data);

void send_event_on_loop (struct qmp_server *s, const struct text *event);

/* --- worker.c ------------------------------------------------------------ */

void worker_main (void *server);
void worker_add (struct qmp_server *s, struct work *w);

/* Returns false if it has begun. */
bool worker_remove (struct qmp_server *s, struct work *w);

/* Runs a command that is in the tables of the server's user. */
int run_command (struct qmp_server *s, const struct qmp_command *command,
                 const struct qmp_caller *caller, json_t *args, json_t **ret,
                 struct qmp_error *e);

static inline struct session *
session_of (struct work *w)
{
  return (struct session *) ((char *) w - offsetof (struct session, work));
}

#endif
