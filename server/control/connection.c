/* SPDX-License-Identifier: BSD-3-Clause */
/* One client's connection: its output and its end.
 *
 * Bytes to send are collected in one text while libuv sends another.  Events
 * come on their own: a client for which more than MAX_UNREAD bytes of them are
 * collected meanwhile is dropped.  Replies do not count, as session.c bounds
 * them.
 *
 * If a client goes away while the worker has its command, the command is
 * finished, and the session is freed then.
 */
#include <errno.h>
#include <string.h>

#include "control-private.h"

#define MAX_UNREAD (1 << 20)

struct session *
session_of_handle (const void *handle)
{
  return ((const uv_handle_t *) handle)->data;
}

size_t
session_waiting_bytes (const struct session *c)
{
  return c->queued.len + c->sending.len;
}

/* --- End ----------------------------------------------------------------- */

void
session_free_if_unused (struct session *c)
{
  if (!c->closed || c->busy)
    return;
  json_stream_destroy (&c->stream);
  text_free (&c->queued);
  text_free (&c->sending);
  json_decref (c->id);
  free (c);
}

void
session_closed_cb (uv_handle_t *handle)
{
  struct session *c = session_of_handle (handle);

  c->closed = true;
  c->server->hooks.gone (c->server);
  session_free_if_unused (c);
}

static void
remove_from_list (struct session *c)
{
  struct session **p = &c->server->sessions;

  while (*p != NULL && *p != c)
    p = &(*p)->next;
  if (*p == c) {
    *p = c->next;
    c->server->nr_sessions--;
  }
}

void
session_close_on_loop (struct session *c)
{
  if (c->closing)
    return;
  c->closing = true;
  remove_from_list (c);
  if (c->negotiated)
    __atomic_sub_fetch (&c->server->nr_listeners, 1, __ATOMIC_ACQ_REL);
  log_line (c->server->p.log, LOG_DEBUG, "control socket: pid %ld has "
            "disconnected", (long) c->caller.pid);
  uv_close ((uv_handle_t *) &c->pipe, session_closed_cb);
}

void
session_stop_reading (struct session *c)
{
  c->reading = false;
  uv_read_stop ((uv_stream_t *) &c->pipe);
}

void
session_end_on_loop (struct session *c)
{
  c->ending = true;
  session_stop_reading (c);
  if (!c->busy && !c->writing)
    session_close_on_loop (c);
}

/* --- Output -------------------------------------------------------------- */

static void
written_cb (uv_write_t *write, int status)
{
  struct session *c = session_of_handle (write->handle);

  c->writing = false;
  text_free (&c->sending);
  if (status < 0)
    session_close_on_loop (c);
  if (c->closing)
    return;
  session_flush_on_loop (c);
  c->server->hooks.may_continue (c);
}

void
session_flush_on_loop (struct session *c)
{
  uv_buf_t buf;

  if (c->writing || c->closing || c->queued.len == 0)
    return;
  c->sending = c->queued;
  c->queued = (struct text) { 0 };
  c->queued_event_bytes = 0;
  buf = uv_buf_init (c->sending.bytes, c->sending.len);
  c->writing = true;
  if (uv_write (&c->write, (uv_stream_t *) &c->pipe, &buf, 1,
                written_cb) < 0) {
    c->writing = false;
    session_close_on_loop (c);
  }
}

void
session_send_on_loop (struct session *c, const char *bytes, size_t len)
{
  if (c->closing)
    return;
  text_add (&c->queued, bytes, len);
  if (c->queued.failed)
    session_close_on_loop (c);
}

void
session_event_on_loop (struct session *c, const struct text *event)
{
  if (!c->negotiated || c->closing)
    return;
  c->queued_event_bytes += event->len;
  if (c->queued_event_bytes > MAX_UNREAD) {
    log_line (c->server->p.log, LOG_INFO, "control socket: pid %ld is dropped: "
              "it does not read its events", (long) c->caller.pid);
    session_close_on_loop (c);
    return;
  }
  session_send_on_loop (c, event->bytes, event->len);
  session_flush_on_loop (c);
}
