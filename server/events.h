/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes events on to the listener of an image (events.c). */
#ifndef DEDUP_EVENTS_H
#define DEDUP_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "server-events.h"

/* The listener, for parts of an image that do not know the whole: such a part keeps
 * a pointer to the listener of its image. */
struct srv_listener {           /* constant after srv_image_start */
  void (*event) (void *opaque, const struct srv_event *e);
  void *opaque;
};

/* Tells the listener, if L is not NULL and has one.  Any thread; locks may be
 * held. */
void srv_notify (const struct srv_listener *l, const struct srv_event *e);
/* Tells the listener of M. */
void srv_emit (struct srv_image *m, const struct srv_event *e);

/* Lets an event of some kind pass once a second.  Clients can cause those kinds as often
 * as they like, and who listens must not be lost in them. */
struct srv_event_rate {         /* atomic */
  uint64_t told_ns;             /* when the last one passed; 0: never */
  uint64_t untold;              /* how many did not since then */
};

/* Returns whether an event may be sent now, and then in *UNTOLD how many were left out
 * since the last one.  Any thread. */
bool srv_event_may_pass (struct srv_event_rate *r, uint64_t *untold);

#endif
