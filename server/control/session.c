/* SPDX-License-Identifier: BSD-3-Clause */
/* One client: how it is let in, and its input.
 *
 * Commands are handled in their order, one at a time.  The socket is read only
 * when all that was read before has been handled; so a client has MAX_READ
 * bytes of input here and one value that is not whole yet (json-stream.h
 * bounds it).
 *
 * While more than MAX_WAITING bytes of output wait to be sent, no further
 * command of the client is handled, and its socket is not read.  Replies
 * therefore are bounded by MAX_WAITING and one reply.  A client that closes
 * its side for writing gets the replies to what it sent.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "control-private.h"

#define MAX_WAITING (64 << 10)

/* --- Input --------------------------------------------------------------- */

static bool
may_handle_more (const struct session *c)
{
  return !c->busy && !c->closing && !c->server->ended &&
    session_waiting_bytes (c) <= MAX_WAITING;
}

/* Handles input up to the end of one value or error. */
static void
handle_one_on_loop (struct session *c)
{
  struct qmp_error e = { "", "" };
  json_t *value = NULL;
  enum json_item item;
  size_t taken;

  item = json_stream_read (&c->stream, c->in + c->in_pos,
                           c->in_len - c->in_pos, &taken, &value, &e);
  c->in_pos += taken;
  if (item == JSON_VALUE)
    dispatch_on_loop (c, value);
  else if (item == JSON_ERROR)
    reply_on_loop (c, -EINVAL, NULL, &e);
  json_decref (value);
}

static void
alloc_cb (uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
  struct session *c = session_of_handle (handle);

  *buf = uv_buf_init (c->in, sizeof c->in);
}

static void
read_cb (uv_stream_t *stream, ssize_t len, const uv_buf_t *buf)
{
  struct session *c = session_of_handle (stream);

  if (len == 0)
    return;
  if (len < 0) {
    session_end_on_loop (c);
    return;
  }
  session_stop_reading (c);
  c->in_pos = 0;
  c->in_len = len;
  /* libuv reads up to 32 times in a row what it can.  Others come first. */
  c->resting = len == sizeof c->in;
  session_continue_on_loop (c);
  if (c->resting)
    uv_async_send (&c->server->wake);
  c->resting = false;
}

static void
read_on_loop (struct session *c)
{
  if (c->reading || c->resting || c->ending || c->in_pos < c->in_len ||
      !may_handle_more (c))
    return;
  c->reading = true;
  if (uv_read_start ((uv_stream_t *) &c->pipe, alloc_cb, read_cb) < 0)
    session_close_on_loop (c);
}

void
session_continue_on_loop (struct session *c)
{
  while (c->in_pos < c->in_len && may_handle_more (c))
    handle_one_on_loop (c);
  session_flush_on_loop (c);
  if (c->ending && !c->busy && !c->writing)
    session_close_on_loop (c);
  read_on_loop (c);
}

/* --- Begin --------------------------------------------------------------- */

static bool
is_gone (const struct session *c)
{
  struct pollfd p = { .events = 0 };

  return uv_fileno ((const uv_handle_t *) &c->pipe, &p.fd) == 0 &&
    poll (&p, 1, 0) > 0 && p.revents & POLLHUP;
}

/* Closes clients that went away while their command waits for the worker.  A
 * command that did not begin is dropped. */
static void
close_gone_on_loop (struct qmp_server *s)
{
  struct session *next;

  for (struct session *c = s->sessions; c != NULL; c = next) {
    next = c->next;
    if (!c->busy || !is_gone (c))
      continue;
    if (worker_remove (s, &c->work)) {
      json_decref (c->work.args);
      c->busy = false;
    }
    session_close_on_loop (c);
  }
}

static bool
too_many (struct qmp_server *s)
{
  if (s->nr_sessions >= QMP_MAX_CLIENTS)
    close_gone_on_loop (s);
  return s->nr_sessions >= QMP_MAX_CLIENTS;
}

/* Returns NULL, or why the client is refused. */
static const char *
reason_to_refuse (struct session *c)
{
  uv_os_fd_t fd;

  if (uv_fileno ((uv_handle_t *) &c->pipe, &fd) < 0 ||
      control_socket_peer (fd, &c->caller) < 0)
    return "it cannot be identified";
  if (c->caller.uid != 0 && c->caller.uid != geteuid ())
    return "only root and the server's user may connect";
  if (too_many (c->server))
    return "there are too many clients";
  return NULL;
}

static struct session *
new_session (struct qmp_server *s)
{
  struct session *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  c->server = s;
  json_stream_init (&c->stream, &s->budget);
  if (uv_pipe_init (&s->uv, &c->pipe, 0) < 0) {
    free (c);
    return NULL;
  }
  c->pipe.data = c;
  return c;
}

static void
add_to_list (struct session *c)
{
  c->next = c->server->sessions;
  c->server->sessions = c;
  c->server->nr_sessions++;
}

static void
refuse_on_loop (struct session *c, const char *why)
{
  log_line (c->server->p.log, LOG_INFO, "control socket: pid %ld of uid %ld is "
            "refused: %s", (long) c->caller.pid, (long) c->caller.uid, why);
  c->closing = true;
  uv_close ((uv_handle_t *) &c->pipe, session_closed_cb);
}

void
session_accept_on_loop (struct qmp_server *s)
{
  struct session *c = new_session (s);
  const char *why;

  if (c == NULL)
    return;
  if (uv_accept ((uv_stream_t *) &s->listener, (uv_stream_t *) &c->pipe) < 0) {
    c->closing = true;
    uv_close ((uv_handle_t *) &c->pipe, session_closed_cb);
    return;
  }
  why = reason_to_refuse (c);
  if (why != NULL) {
    refuse_on_loop (c, why);
    return;
  }
  add_to_list (c);
  log_line (s->p.log, LOG_INFO, "control socket: pid %ld of uid %ld has "
            "connected", (long) c->caller.pid, (long) c->caller.uid);
  greet_on_loop (c);
  session_continue_on_loop (c);
}
