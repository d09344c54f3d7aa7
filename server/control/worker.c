/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker thread, which runs the commands that may block, one at a time over all
 * clients, in the order in which they came.  So two clients' changes never overlap.
 *
 * Each client has one command in the queue at most, which is a part of its session, so that
 * waiting in the queue needs no memory.  A command that has begun always ends, also if its
 * client is gone or the server stops.  One that has not begun may be taken out again
 * (worker_remove), and is left in the queue when the server stops, which then answers it.
 * The lock is not held while a command runs.
 */
#include <errno.h>
#include <string.h>

#include "control-private.h"

static struct work *
next_work (struct qmp_server *s)
{
  struct work *w;

  LOCK_FOR_SCOPE (&s->lock);
  while (s->queue == NULL && !s->stopping)
    lock_wait (&s->lock, &s->queued);
  if (s->stopping)
    return NULL;
  w = s->queue;
  s->queue = w->next;
  if (s->queue == NULL)
    s->queue_end = &s->queue;
  return w;
}

void
worker_add (struct qmp_server *s, struct work *w)
{
  LOCK_FOR_SCOPE (&s->lock);

  w->next = NULL;
  *s->queue_end = w;
  s->queue_end = &w->next;
  pthread_cond_signal (&s->queued);
}

bool
worker_remove (struct qmp_server *s, struct work *w)
{
  struct work **p = &s->queue;

  LOCK_FOR_SCOPE (&s->lock);
  while (*p != NULL && *p != w)
    p = &(*p)->next;
  if (*p == NULL)
    return false;
  *p = w->next;
  if (*p == NULL)
    s->queue_end = p;
  return true;
}

int
run_command (struct qmp_server *s, const struct qmp_command *command,
             const struct qmp_caller *caller, json_t *args, json_t **ret,
             struct qmp_error *e)
{
  int r = command->run (s->p.opaque, caller, args, ret, e);

  if (r < 0 && e->class[0] == '\0')
    qmp_error_set (e, "%s", strerror (-r));
  return r;
}

void
worker_main (void *server)
{
  struct qmp_server *s = server;
  struct work *w;

  while ((w = next_work (s)) != NULL) {
    w->result = run_command (s, w->command, &session_of (w)->caller, w->args,
                             &w->ret, &w->error);
    post_done (s, w);
  }
}
