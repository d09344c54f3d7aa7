/* SPDX-License-Identifier: BSD-3-Clause */
/* Scrubs an image while it is served; the job "scrub" (dedup-scrub.h).
 *
 * The image remembers that a scrub runs, and how far it came.  So the job begins
 * again when the image is served next, unless it was cancelled.  Findings go to the
 * listener and to the log, a limited number of each; the image remembers the bad
 * clusters in any case.
 *
 * While no client uses the image, a step has several threads, so that some read while
 * others hash.  Otherwise it reads and hashes 32 KiB, as clients may wait for the medium
 * or a processor.
 *
 * Threads: one step at a time, whose other threads end with it; progress is asked for
 * on any thread.
 */
#include "scrub-job.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "clock.h"
#include "image-internal.h"

/* Places that are told of one scrub.  One bad cluster may be shown by thousands. */
#define MAX_EVENTS 1000u
#define MAX_LINES 100u

/* Threads of a step while no client uses the image, and batches that each of them
 * takes: together some milliseconds of work. */
#define THREADS 2
#define BATCHES 4
/* A client counts as one that uses the image for so long. */
#define BUSY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

struct srv_scrub {
  /* Constant: */
  struct srv_image *image;
  struct dedup_pool *pool;
  const char *path;             /* for messages */
  const struct log_sink *log;
  bool restart;

  /* One step at a time: */
  struct dedup_scrub *scrub;    /* NULL: it has not begun */
  unsigned nr_told;             /* by one thread at a time */
  uint64_t nr_requests;         /* of clients, as they were seen last */
  uint64_t used_ns;             /* when there were new ones; 0: never */

  /* Atomic: */
  uint64_t done, total;         /* bytes */
  uint64_t bad;                 /* clusters */
};

/* --- Findings --------------------------------------------------------------- */

static const char *
reason (const struct dedup_scrub_finding *f)
{
  return f->why == DEDUP_SCRUB_UNREADABLE ? "the cluster cannot be read"
    : "the cluster has other bytes than were stored";
}

static void
log_finding (const struct srv_scrub *x, const struct dedup_scrub_finding *f)
{
  if (f->disk == NULL)
    return;                     /* the cluster was logged */
  log_line (x->log, LOG_ERROR, "%s: scrub: %s%s shows it at 0x%" PRIx64,
            x->path, f->disk[0] ? "disk " : "the active disk", f->disk,
            f->guest_off);
}

static void
found_cb (void *opaque, const struct dedup_scrub_finding *f)
{
  struct srv_scrub *x = opaque;
  const struct srv_event e = {
    .kind = SRV_EVENT_SCRUB_FINDING, .reason = reason (f), .name = f->disk,
    .offset = f->guest_off, .length = f->len, .host_offset = f->host_off,
  };

  if (x->nr_told < MAX_LINES)
    log_finding (x, f);
  if (x->nr_told++ < MAX_EVENTS)
    srv_emit (x->image, &e);
}

static void
log_summary (const struct srv_scrub *x, const struct dedup_scrub_figures *f)
{
  const uint64_t bad = f->different + f->unreadable;

  log_line (x->log, bad ? LOG_ERROR : LOG_INFO, "%s: scrub: %" PRIu64
            " clusters are good, %" PRIu64 " have other bytes than were stored, "
            "%" PRIu64 " cannot be read, %" PRIu64 " have no hash, %" PRIu64
            " were written meanwhile, %" PRIu64 " are doubtful", x->path,
            f->good, f->different, f->unreadable, f->unknown, f->changed,
            f->doubtful);
}

/* --- The job ----------------------------------------------------------------- */

static int
begin (struct srv_scrub *x)
{
  const struct dedup_scrub_params p = {
    .restart = x->restart, .found = found_cb, .opaque = x,
  };

  return x->scrub ? 0 : dedup_scrub_begin (x->pool, &p, &x->scrub);
}

static void
set_progress (struct srv_scrub *x, const struct dedup_scrub_figures *f)
{
  __atomic_store_n (&x->done, f->bytes_read, __ATOMIC_RELAXED);
  __atomic_store_n (&x->total, f->bytes_read + f->bytes_left,
                    __ATOMIC_RELAXED);
  __atomic_store_n (&x->bad, f->different + f->unreadable, __ATOMIC_RELAXED);
}

static uint64_t
count_requests (const struct srv_image *m)
{
  struct srv_request_stats sums[SRV_NR_REQUESTS];
  uint64_t nr = 0;

  srv_meter_sum (m->accounts.meter, sums);
  for (unsigned i = 0; i < SRV_NR_REQUESTS; i++)
    nr += sums[i].count.nr;
  return nr;
}

/* Returns whether clients have used the image within the last second. */
static bool
clients_are_busy (struct srv_scrub *x)
{
  const uint64_t nr = count_requests (x->image), now = clock_now_ns ();

  if (nr != x->nr_requests)
    x->used_ns = now;
  x->nr_requests = nr;
  return x->used_ns != 0 && now - x->used_ns < BUSY_NS;
}

static int
scrub_some (struct dedup_scrub *scrub)
{
  int r = 1;

  for (unsigned i = 0; i < BATCHES && r == 1; i++)
    r = dedup_scrub_step (scrub);
  return r;
}

/* What goes wrong here, the next call of dedup_scrub_step returns. */
static void *
scrub_beside (void *opaque)
{
  (void) scrub_some (opaque);
  return NULL;
}

/* Scrubs with several threads; fewer if they cannot be made. */
static int
scrub_side_by_side (struct dedup_scrub *scrub)
{
  pthread_t threads[THREADS - 1];
  unsigned nr, i;
  int r;

  for (nr = 0; nr < THREADS - 1; nr++)
    if (pthread_create (&threads[nr], NULL, scrub_beside, scrub) != 0)
      break;
  r = scrub_some (scrub);
  for (i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  return r;
}

static int
step (void *opaque)
{
  struct srv_scrub *x = opaque;
  struct dedup_scrub_figures f;
  int r = begin (x);

  if (r == 0)
    r = clients_are_busy (x) ? dedup_scrub_small_step (x->scrub)
      : scrub_side_by_side (x->scrub);
  if (x->scrub == NULL)
    return r;
  dedup_scrub_figures (x->scrub, &f);
  set_progress (x, &f);
  if (r == 0)
    log_summary (x, &f);
  return r;
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  const struct srv_scrub *x = opaque;

  *done = __atomic_load_n (&x->done, __ATOMIC_RELAXED);
  *total = __atomic_load_n (&x->total, __ATOMIC_RELAXED);
}

static void
describe (void *opaque, char *buf, size_t len)
{
  const struct srv_scrub *x = opaque;

  snprintf (buf, len, "%" PRIu64 " bad clusters",
            __atomic_load_n (&x->bad, __ATOMIC_RELAXED));
}

static void
end (void *opaque, int result)
{
  struct srv_scrub *x = opaque;

  if (x->scrub && result == -ECANCELED)
    dedup_scrub_abandon (x->scrub);
  dedup_scrub_end (x->scrub);
  free (x);
}

const struct srv_job_ops srv_job_scrub = {
  .type = "scrub", .can_pause = true, .can_cancel = true, .resumes = true,
  .step = step, .progress = progress, .describe = describe, .end = end,
};

struct srv_scrub *
srv_scrub_new (struct srv_image *image, struct dedup_pool *pool,
               const char *path, const struct log_sink *log, bool restart)
{
  struct srv_scrub *x = calloc (1, sizeof *x);

  if (x)
    *x = (struct srv_scrub) { .image = image, .pool = pool, .path = path,
                              .log = log, .restart = restart,
                              .nr_requests = count_requests (image) };
  return x;
}

bool
srv_scrub_unfinished (struct dedup_pool *pool)
{
  struct dedup_scrub_memory m;

  dedup_scrub_remembered (pool, &m);
  return m.unfinished;
}
