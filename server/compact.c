/* SPDX-License-Identifier: BSD-3-Clause */
/* Compacts an image while it is served; the job "compact" (dedup-compact.h).
 *
 * The job ends with the server.  What it did is kept, and another one finds what is
 * left.
 *
 * Threads: one step at a time; progress is asked for on any thread.
 */
#include "compact-job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "image-internal.h"
#include "root-lock.h"

struct srv_compact {
  struct srv_image *image;      /* constant */
  struct dedup_compact *c;
  struct srv_root_lock lock;
};

static void
note_done (struct srv_compact *x)
{
  struct dedup_compact_figures f;

  dedup_compact_figures (x->c, &f);
  srv_compact_due_ended (&x->image->compaction.due, f.moved_bytes,
                         f.packed_dead_bytes, f.packed_bytes);
  log_line (x->image->log, f.doubtful ? LOG_ERROR : LOG_INFO, "%s: compacted: %"
            PRIu64 " bytes of disks were moved; %" PRIu64 " of %" PRIu64
            " bytes of compressed data are dead, %" PRIu64 " of them beside data that "
            "is not moved; %" PRIu64 " clusters stay where they "
            "are, %" PRIu64 " of these are doubtful", x->image->path, f.moved_bytes,
            f.packed_dead_bytes, f.packed_bytes, f.shared_dead_bytes, f.left, f.doubtful);
}

static int
step (void *opaque)
{
  struct srv_compact *x = opaque;
  int r = srv_exports_changed_lately (&x->image->exports)
    ? dedup_compact_small_step (x->c) : dedup_compact_step (x->c);

  if (r == 0)
    note_done (x);
  return r;
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  struct srv_compact *x = opaque;
  struct dedup_compact_figures f;

  dedup_compact_figures (x->c, &f);
  *done = f.handled_bytes;
  *total = f.to_move_bytes;
}

static void
describe (void *opaque, char *buf, size_t len)
{
  struct srv_compact *x = opaque;
  struct dedup_compact_figures f;

  dedup_compact_figures (x->c, &f);
  snprintf (buf, len, "pass %u; %" PRIu64 " clusters with %" PRIu64 " dead bytes "
            "chosen, %" PRIu64 " dead bytes beside data that is not moved", f.passes,
            f.clusters, f.dead_bytes, f.shared_dead_bytes);
}

static void
end (void *opaque, int result)
{
  struct srv_compact *x = opaque;

  (void) result;
  dedup_compact_end (x->c);
  free (x);
}

const struct srv_job_ops srv_job_compact = {
  .type = "compact", .can_pause = true, .can_cancel = true, .changes = true,
  .step = step, .progress = progress, .describe = describe, .end = end,
};

int
srv_compact_new (struct srv_image *image, unsigned percent, bool ends,
                 struct srv_compact **out)
{
  struct srv_compact *x = calloc (1, sizeof *x);
  const struct dedup_compact_params q = {
    .percent = percent, .ends = ends, .lock = srv_root_lock, .unlock = srv_root_unlock,
    .opaque = &x->lock,
  };
  int r;

  if (x == NULL)
    return -ENOMEM;
  x->image = image;
  x->lock.exports = &image->exports;
  r = dedup_compact_begin (image->pool, &q, &x->c);
  if (r < 0) {
    free (x);
    return r;
  }
  *out = x;
  return 0;
}
