/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes events on to the listener of an image.
 *
 * Owns no queue: an event reaches the listener on the thread on which it happened,
 * before the call returns.  So the listener can put the event before the reply of the
 * command that caused it.  Whoever emits may hold locks; the listener promises not to
 * block (server-events.h).
 *
 * Threads: any.  The listener is set before the image has threads.
 */
#include "events.h"

#include <assert.h>
#include <stddef.h>

#include "image-internal.h"

void
srv_image_set_listener (struct srv_image *m,
                        void (*event) (void *opaque,
                                       const struct srv_event *e),
                        void *opaque)
{
  assert (m->loop == NULL);
  m->listener = (struct srv_listener) { .event = event, .opaque = opaque };
}

void
srv_notify (const struct srv_listener *l, const struct srv_event *e)
{
  if (l && l->event)
    l->event (l->opaque, e);
}

void
srv_emit (struct srv_image *m, const struct srv_event *e)
{
  srv_notify (&m->listener, e);
}
