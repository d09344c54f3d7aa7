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

#include "clock.h"
#include "image-internal.h"

#define PAUSE_NS UINT64_C (1000000000)

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

bool
srv_event_may_pass (struct srv_event_rate *r, uint64_t *untold)
{
  const uint64_t now = clock_now_ns ();
  uint64_t told = __atomic_load_n (&r->told_ns, __ATOMIC_RELAXED);

  if ((told != 0 && now - told < PAUSE_NS) ||
      !__atomic_compare_exchange_n (&r->told_ns, &told, now, false,
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    __atomic_fetch_add (&r->untold, 1, __ATOMIC_RELAXED);
    return false;
  }
  *untold = __atomic_exchange_n (&r->untold, 0, __ATOMIC_RELAXED);
  return true;
}
