/* SPDX-License-Identifier: BSD-3-Clause */
/* The server: its socket, its two threads, and its end.
 *
 * Threads: the loop thread does all that has to do with clients, and never
 * blocks; the worker (worker.c) runs commands that may.  Both are started
 * after the host program has forked, with all signals blocked, as those belong
 * to that program.
 *
 * The end: the worker finishes its command and is joined; then the loop sends
 * what is queued, for END_MS at most, closes all, and is joined.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "control-private.h"

#define END_MS 1000

/* All clients together; one value of the largest size fits. */
#define MAX_INPUT_BYTES ((size_t) 192 << 20)

static void
close_handle (uv_handle_t *h)
{
  if (!uv_is_closing (h))
    uv_close (h, NULL);
}

/* --- Loop ---------------------------------------------------------------- */

static void
connection_cb (uv_stream_t *listener, int status)
{
  struct qmp_server *s = listener->data;

  if (status == 0)
    session_accept_on_loop (s);
}

static void
close_sessions_on_loop (struct qmp_server *s)
{
  while (s->sessions != NULL)
    session_close_on_loop (s->sessions);
}

/* A client is gone: lets the loop end if it was the last one of a server that
 * ends. */
static void
session_gone_on_loop (struct qmp_server *s)
{
  if (!s->ended || s->sessions != NULL)
    return;
  close_handle ((uv_handle_t *) &s->deadline);
  close_handle ((uv_handle_t *) &s->wake);
}

static void
deadline_cb (uv_timer_t *timer)
{
  struct qmp_server *s = timer->data;

  close_sessions_on_loop (s);
  session_gone_on_loop (s);
}

/* Sends the last event, and closes each client when what is queued for it was
 * sent. */
static void
begin_end_on_loop (struct qmp_server *s)
{
  struct session *next;

  s->ended = true;
  if (s->last_event.len > 0 && !s->last_event.failed)
    send_event_on_loop (s, &s->last_event);
  close_handle ((uv_handle_t *) &s->listener);
  (void) uv_timer_start (&s->deadline, deadline_cb, END_MS, 0);
  for (struct session *c = s->sessions; c != NULL; c = next) {
    next = c->next;
    session_end_on_loop (c);
  }
  session_gone_on_loop (s);
}

static void
continue_all_on_loop (struct qmp_server *s)
{
  struct session *next;

  for (struct session *c = s->sessions; c != NULL; c = next) {
    next = c->next;
    session_continue_on_loop (c);
  }
}

static void
wake_cb (uv_async_t *wake)
{
  struct qmp_server *s = wake->data;

  posts_handle_on_loop (s);
  if (__atomic_load_n (&s->draining, __ATOMIC_ACQUIRE) && !s->ended)
    begin_end_on_loop (s);
  continue_all_on_loop (s);
}

static void
loop_main (void *server)
{
  struct qmp_server *s = server;

  uv_run (&s->uv, UV_RUN_DEFAULT);
}

/* --- Open and start ------------------------------------------------------ */

static void
init (struct qmp_server *s, const struct qmp_params *p)
{
  s->p = *p;
  s->hooks = (struct hooks) {
    .may_continue = session_continue_on_loop,
    .done = dispatch_done_on_loop,
    .gone = session_gone_on_loop,
  };
  s->tables = (struct qmp_tables) { p->schemas, p->nr_schemas };
  s->budget.max = MAX_INPUT_BYTES;
  s->queue_end = &s->queue;
  posts_init (&s->posts);
  lock_init (&s->lock);
  pthread_cond_init (&s->queued, NULL);
}

void
qmp_server_free (struct qmp_server *s)
{
  if (s == NULL)
    return;
  control_socket_close (&s->socket);
  posts_free (&s->posts);
  text_free (&s->last_event);
  pthread_cond_destroy (&s->queued);
  lock_destroy (&s->lock);
  free (s);
}

int
qmp_server_open (const struct qmp_params *p, struct qmp_server **out,
                 struct fault *f)
{
  struct qmp_server *s;
  int r = qmp_schema_check (p->schemas, p->nr_schemas, f);

  if (r < 0)
    return r;
  s = calloc (1, sizeof *s);
  if (s == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  init (s, p);
  r = control_socket_open (&s->socket, p->path, f);
  if (r < 0) {
    qmp_server_free (s);
    return r;
  }
  *out = s;
  return 0;
}

static int
init_handles (struct qmp_server *s)
{
  int r;

  if ((r = uv_async_init (&s->uv, &s->wake, wake_cb)) < 0 ||
      (r = uv_timer_init (&s->uv, &s->deadline)) < 0 ||
      (r = uv_pipe_init (&s->uv, &s->listener, 0)) < 0 ||
      (r = uv_pipe_open (&s->listener, s->socket.fd)) < 0)
    return r;
  s->socket.fd = -1;           /* the handle closes it */
  s->wake.data = s->deadline.data = s->listener.data = s;
  return uv_listen ((uv_stream_t *) &s->listener, QMP_MAX_CLIENTS,
                    connection_cb);
}

static void
close_walked (uv_handle_t *h, void *opaque)
{
  close_handle (h);
}

static void
close_uv (struct qmp_server *s)
{
  int r;

  uv_walk (&s->uv, close_walked, NULL);
  uv_run (&s->uv, UV_RUN_DEFAULT);
  r = uv_loop_close (&s->uv);
  assert (r == 0);
  (void) r;
}

static void
stop_worker (struct qmp_server *s)
{
  lock_acquire (&s->lock);
  s->stopping = true;
  pthread_cond_signal (&s->queued);
  lock_release (&s->lock);
  uv_thread_join (&s->worker_thread);
}

static int
start_threads (struct qmp_server *s)
{
  sigset_t all, old;
  int r;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = uv_thread_create (&s->worker_thread, worker_main, s);
  if (r == 0) {
    r = uv_thread_create (&s->loop_thread, loop_main, s);
    if (r < 0)
      stop_worker (s);
  }
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return r;
}

int
qmp_server_start (struct qmp_server *s)
{
  int r = uv_loop_init (&s->uv);

  if (r < 0)
    return r;
  r = init_handles (s);
  if (r == 0)
    r = start_threads (s);
  if (r < 0)
    close_uv (s);
  s->started = r == 0;
  return r;
}

/* --- Stop ---------------------------------------------------------------- */

/* Commands that the worker did not begin get no reply. */
static void
forget_queue (struct qmp_server *s)
{
  struct work *next;

  for (struct work *w = s->queue; w != NULL; w = next) {
    next = w->next;
    w->result = qmp_error_set (&w->error, "the server is stopping");
    post_done (s, w);
  }
  s->queue = NULL;
}

static void
deafen (struct qmp_server *s)
{
  LOCK_FOR_SCOPE (&s->lock);

  s->deaf = true;
}

static void
stop_threads (struct qmp_server *s)
{
  stop_worker (s);
  forget_queue (s);
  __atomic_store_n (&s->draining, true, __ATOMIC_RELEASE);
  deafen (s);
  uv_async_send (&s->wake);
  uv_thread_join (&s->loop_thread);
  close_uv (s);
  s->started = false;
}

void
qmp_server_stop (struct qmp_server *s, const char *event, json_t *data)
{
  control_socket_unlink (&s->socket);
  if (event != NULL)
    print_event (&s->last_event, event, data);
  json_decref (data);
  if (s->started)
    stop_threads (s);
}
