/* SPDX-License-Identifier: BSD-3-Clause */
/* What other threads tell the loop thread, in one queue, so that the order of
 * events and replies is the order in which things happened.
 *
 * An event that is emitted inside a command is posted before the command is
 * done: by the worker, and so before its result is; or by the loop thread,
 * which handles all posts before it replies.  The queue keeps MAX_POSTED bytes
 * of events; more are lost, and the log says so once.  The loop never waits,
 * so that happens only in a flood.
 */
#include <errno.h>
#include <string.h>
#include <sys/time.h>

#include "control-private.h"

#define MAX_POSTED (4 << 20)

void
posts_init (struct posts *p)
{
  p->first = NULL;
  p->last = &p->first;
}

static void
event_free (struct post *p)
{
  text_free (&p->event);
  free (p);
}

void
posts_free (struct posts *p)
{
  struct post *next;

  for (struct post *i = p->first; i != NULL; i = next) {
    next = i->next;
    if (i->done == NULL)
      event_free (i);
  }
  posts_init (p);
}

static void
append_locked (struct qmp_server *s, struct post *p)
{
  assert (lock_held (&s->lock));
  p->next = NULL;
  *s->posts.last = p;
  s->posts.last = &p->next;
  s->posted_bytes += p->event.len;
}

void
post_done (struct qmp_server *s, struct work *w)
{
  w->post.done = w;
  lock_acquire (&s->lock);
  append_locked (s, &w->post);
  lock_release (&s->lock);
  uv_async_send (&s->wake);
}

/* --- Events -------------------------------------------------------------- */

void
print_event (struct text *t, const char *name, const json_t *data)
{
  struct timeval now;

  gettimeofday (&now, NULL);
  text_printf (t, "{\"timestamp\": {\"seconds\": %lld, \"microseconds\": %d}, "
               "\"event\": ", (long long) now.tv_sec, (int) now.tv_usec);
  text_add_quoted (t, name);
  if (data != NULL) {
    text_add_string (t, ", \"data\": ");
    text_add_json (t, data);
  }
  text_add_string (t, "}\r\n");
}

static struct post *
new_event (const char *name, const json_t *data)
{
  struct post *p = calloc (1, sizeof *p);

  if (p == NULL)
    return NULL;
  print_event (&p->event, name, data);
  if (p->event.failed) {
    event_free (p);
    return NULL;
  }
  return p;
}

/* Returns false if the event was not taken.  *FIRST: it is the first for which
 * there is no room.  The loop is woken under the lock, as it may end
 * otherwise. */
static bool
append_event (struct qmp_server *s, struct post *p, bool *first)
{
  LOCK_FOR_SCOPE (&s->lock);

  if (s->deaf)
    return false;
  if (p != NULL && s->posted_bytes + p->event.len <= MAX_POSTED) {
    append_locked (s, p);
    uv_async_send (&s->wake);
    return true;
  }
  *first = !s->lost;
  s->lost = true;
  return false;
}

void
qmp_server_emit (struct qmp_server *s, const char *name, json_t *data)
{
  struct post *p;
  bool first = false;

  if (__atomic_load_n (&s->nr_listeners, __ATOMIC_ACQUIRE) > 0) {
    p = new_event (name, data);
    if (!append_event (s, p, &first) && p != NULL)
      event_free (p);
    if (first)
      log_line (s->p.log, LOG_ERROR, "control socket: there are too many "
                "events; some are lost");
  }
  json_decref (data);
}

/* --- On the loop --------------------------------------------------------- */

static struct post *
take_all (struct qmp_server *s)
{
  struct post *first;

  LOCK_FOR_SCOPE (&s->lock);
  first = s->posts.first;
  posts_init (&s->posts);
  s->posted_bytes = 0;
  return first;
}

void
send_event_on_loop (struct qmp_server *s, const struct text *event)
{
  for (struct session *c = s->sessions; c != NULL; c = c->next)
    session_event_on_loop (c, event);
}

void
posts_handle_on_loop (struct qmp_server *s)
{
  struct post *next;

  for (struct post *p = take_all (s); p != NULL; p = next) {
    next = p->next;
    if (p->done != NULL)
      s->hooks.done (session_of (p->done));      /* may free P */
    else {
      send_event_on_loop (s, &p->event);
      event_free (p);
    }
  }
}
