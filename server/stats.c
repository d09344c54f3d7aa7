/* SPDX-License-Identifier: BSD-3-Clause */
/* Puts together the figures of an image that is served.
 *
 * Everything is a copy of what others keep: the meter counts requests, the pool counts
 * what was stored and shared, the watch measures space from time to time.  Nothing is
 * read from the disk here, and no lock is held for longer than a copy takes.
 *
 * Threads: any.
 */
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "image-internal.h"

static void
set_reason (struct srv_stats *s, const char *reason)
{
  s->read_only = true;
  snprintf (s->read_only_reason, sizeof s->read_only_reason, "%s", reason);
}

/* An image that was to be written, and is not, is marked corrupt (dedup/mode.c). */
static void
find_read_only (const struct srv_image *m, struct srv_stats *s)
{
  char reason[sizeof s->read_only_reason];

  if (s->now.failed_by) {
    snprintf (reason, sizeof reason, "%s (%s)", s->now.failed_what,
              strerror (s->now.failed_by));
    set_reason (s, reason);
  } else if (m->read_only_because)
    set_reason (s, m->read_only_because);
  else if (!m->writable)
    set_reason (s, "the image is marked corrupt");
}

void
srv_image_stats (struct srv_image *m, struct srv_stats *s)
{
  memset (s, 0, sizeof *s);
  s->started_at = m->opened_at;
  s->uptime_ns = clock_now_ns () - m->opened_ns;
  s->cluster_size = srv_disk_preferred_block (m->exports.active);
  s->nr_clients = srv_clients_count (&m->clients);
  srv_meter_sum (m->accounts.meter, s->requests);
  dedup_get_now (m->pool, &s->now);
  srv_watch_get (&m->watch, s);
  s->space.status = srv_space_status (&m->space);
  find_read_only (m, s);
}
