/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the listener of an image that a request failed.
 *
 * Only errors of the image or its host are told, not those of a client that asked for
 * what cannot be (a range past the end, a write to a snapshot).  A disk that is broken
 * fails thousands of requests a second, so there is one event a second for each type
 * of request; its reason says how many errors were not told before it.
 *
 * Threads: any, without locks.
 */
#include "io-errors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "image-internal.h"

static bool
is_of_image (const struct srv_disk *d, int err)
{
  return err == EIO || err == ENOSPC || err == ENOMEM ||
    (err == EROFS && d->writable);
}

static void
tell (struct srv_image *m, struct srv_disk *d, struct srv_event *e,
      uint64_t untold)
{
  char name[512], reason[160];

  srv_exports_name (&m->exports, d->root, name, sizeof name);
  if (untold > 0)
    snprintf (reason, sizeof reason, "%s (and %" PRIu64 " like it before)",
              strerror (e->error), untold);
  else
    snprintf (reason, sizeof reason, "%s", strerror (e->error));
  e->name = name;
  e->reason = reason;
  srv_emit (m, e);
}

void
srv_io_failed (void *opaque, struct srv_disk *d, enum srv_request type,
               uint64_t guest_off, uint64_t len, int err)
{
  struct srv_image *m = opaque;
  struct srv_event e = {
    .kind = SRV_EVENT_IO_ERROR, .operation = srv_request_name (type),
    .error = err, .offset = guest_off, .length = len,
  };
  uint64_t untold;

  if (!is_of_image (d, err) ||
      !srv_event_may_pass (&m->io_errors.rates[type], &untold))
    return;
  tell (m, d, &e, untold);
  srv_watch_wake (&m->watch);
}
