/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses what clients wrote plain, while the server is idle; the job "compress"
 * (compress-when=idle, dedup-compress.h).
 *
 * It starts when no client has changed anything for some seconds, and something was
 * written since it ran before.  As soon as a client changes something, it takes no more
 * steps until the server is idle again; while clients read, it rests between steps.
 *
 * If it is cancelled, what it did not get to waits until it starts again, when something
 * was written.  With the server it ends, and what it did is kept; the next server looks at
 * everything again.
 *
 * Threads: one step at a time; progress is asked for on any thread.
 */
#include "compress-job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "image-internal.h"
#include "root-lock.h"

struct srv_compress {
  struct srv_image *image;      /* constant */
  struct dedup_compress_work *c;
  struct srv_root_lock lock;
};

static void
log_done (const struct srv_compress *x)
{
  struct dedup_compress_figures f;

  dedup_compress_figures (x->c, &f);
  if (f.compressed_bytes > 0 || f.doubtful > 0)
    log_line (x->image->log, f.doubtful ? LOG_ERROR : LOG_INFO, "%s: compressed: %"
              PRIu64 " of %" PRIu64 " bytes of plain data; %" PRIu64 " clusters do not "
              "shrink, %" PRIu64 " may be needed by disks that are not compressed, %" PRIu64
              " are doubtful", x->image->path, f.compressed_bytes, f.read_bytes,
              f.too_large, f.shared, f.doubtful);
}

static int
step (void *opaque)
{
  struct srv_compress *x = opaque;
  int r = dedup_compress_step (x->c);

  if (r == 0)
    log_done (x);
  return r;
}

static bool
slows_clients (void *opaque)
{
  const struct srv_compress *x = opaque;

  return dedup_compress_met_readers (x->image->pool);
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  struct srv_compress *x = opaque;
  struct dedup_compress_figures f;

  dedup_compress_figures (x->c, &f);
  *done = f.read_bytes;
  *total = f.found_bytes;
}

static void
describe (void *opaque, char *buf, size_t len)
{
  struct srv_compress *x = opaque;
  struct dedup_compress_figures f;

  dedup_compress_figures (x->c, &f);
  snprintf (buf, len, "%" PRIu64 " bytes were compressed", f.compressed_bytes);
}

static void
end (void *opaque, int result)
{
  struct srv_compress *x = opaque;

  (void) result;
  dedup_compress_end (x->c);
  free (x);
}

const struct srv_job_ops srv_job_compress = {
  .type = "compress", .when = SRV_JOB_WHEN_IDLE, .can_pause = true, .can_cancel = true,
  .changes = true, .step = step, .progress = progress, .describe = describe,
  .slows_clients = slows_clients, .end = end,
};

int
srv_compress_new (struct srv_image *image, struct srv_compress **out)
{
  struct srv_compress *x = calloc (1, sizeof *x);
  const struct dedup_compress_params p = {
    .lock = srv_root_lock, .unlock = srv_root_unlock, .opaque = &x->lock,
  };
  int r;

  if (x == NULL)
    return -ENOMEM;
  x->image = image;
  x->lock.exports = &image->exports;
  r = dedup_compress_begin (image->pool, &p, &x->c);
  if (r < 0) {
    free (x);
    return r;
  }
  *out = x;
  return 0;
}
