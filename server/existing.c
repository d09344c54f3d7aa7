/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexing what an image holds already, while it is served: a step at a time,
 * each under the range lock as a write of the same clusters would be
 * (docs/on-disk.md section 8).
 *
 * Threads: one at a time; requests go on beside it.  The loop says when.
 */
#include "internal.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

#define SECOND_NS UINT64_C (1000000000)

/* A line on how far it is: after so much of the disk, not sooner than so long
 * after the last one, and after so long in any case. */
#define PROGRESS_PERCENT 10
#define PROGRESS_MIN_NS SECOND_NS
#define PROGRESS_MAX_NS (600 * SECOND_NS)

int
srv_existing_step (struct srv_export *e, bool all,
                   struct srv_existing *x)
{
  struct srv_range range;
  size_t nr;
  int r;

  r = dedup_existing_next (e->disk, &x->guest_idx, &nr, &x->counts);
  if (r != 1)
    return r;
  srv_range_acquire (&e->ranges, &range, x->guest_idx, x->guest_idx + nr - 1,
                     true);
  r = dedup_existing_index (e->disk, x->guest_idx, nr, all, &x->counts);
  srv_range_release (&e->ranges, &range);
  if (r < 0)
    return r;
  x->guest_idx += nr;
  return 1;
}

static void
say_progress (const struct srv_export *e, struct srv_existing *x)
{
  unsigned percent = (unsigned) (100.0 * (double) x->guest_idx /
                                 (double) e->nr_clusters);
  struct timespec t;
  uint64_t now;

  clock_gettime (CLOCK_MONOTONIC, &t);
  now = (uint64_t) t.tv_sec * SECOND_NS + (uint64_t) t.tv_nsec;
  if (x->said_ns == 0)
    x->said_ns = now;
  if (now - x->said_ns < PROGRESS_MIN_NS ||
      (percent - x->said_percent < PROGRESS_PERCENT &&
       now - x->said_ns < PROGRESS_MAX_NS))
    return;
  x->said_ns = now;
  x->said_percent = percent;
  log_line (e->log, LOG_INFO, "%s: indexing what is there: %u %% done, %" PRIu64
            " clusters are shared now", e->path, percent, x->counts.linked);
}

static void
say_done (const struct srv_export *e)
{
  const struct dedup_existing *c = &e->existing.counts;

  log_line (e->log, c->bad ? LOG_ERROR : LOG_INFO, "%s: what was there is "
            "indexed: %" PRIu64 " clusters were new, %" PRIu64 " are shared now, "
            "%" PRIu64 " were zeroes, %" PRIu64 " could not be read", e->path,
            c->indexed, c->linked, c->zeroed, c->bad);
}

int
srv_existing_background (void *opaque)
{
  struct srv_export *e = opaque;
  int r = srv_existing_step (e, false, &e->existing);

  if (r == -ENOTSUP) {
    log_line (e->log, LOG_INFO, "%s: not deduplicated, so nothing is indexed",
              e->path);
    return 0;
  }
  if (r == 0)
    say_done (e);
  else if (r == 1)
    say_progress (e, &e->existing);
  return r;
}
