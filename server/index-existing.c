/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexes the data that a disk held before it was served, a step at a time; the job
 * "index-existing".
 *
 * A step holds the range lock for its clusters exclusively, as a write of them
 * would (docs/on-disk.md section 8), so clients are served meanwhile.
 *
 * Reading and hashing take nearly all of the time.  So the job counts the clusters
 * that have to be read first, from the tables alone, and its progress is how many
 * of them were.
 *
 * Threads: one step at a time; progress is asked for on any thread.
 */
#include "index-existing.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "checked.h"
#include "clock.h"

#define SECOND_NS UINT64_C (1000000000)

/* A progress line is logged after this share of the disk, but not sooner than
 * the minimum after the last line, and at the latest after the maximum. */
#define PROGRESS_PERCENT 10
#define PROGRESS_MIN_NS SECOND_NS
#define PROGRESS_MAX_NS (600 * SECOND_NS)

/* A client that changes something beside a step waits for as long as the step has the
 * image's lock and a processor.  So steps are short meanwhile. */
#define BUSY_NS SECOND_NS
#define BUSY_BYTES (UINT64_C (256) << 10)

/* Returns how many clusters a step takes at the most. */
static uint64_t
max_clusters (const struct srv_disk *d)
{
  const uint64_t last = d->last_change_ns == NULL ? 0 :
    __atomic_load_n (d->last_change_ns, __ATOMIC_RELAXED);

  if (last == 0 || clock_now_ns () - last >= BUSY_NS)
    return UINT64_MAX;
  return MAX_OF (1, BUSY_BYTES >> d->cluster_bits);
}

int
srv_index_existing_step (struct srv_index_existing *x, bool all)
{
  struct srv_disk *d = x->disk;
  struct srv_range range;
  size_t nr;
  int r;

  r = dedup_existing_next (d->pool, &x->guest_idx, &nr, &x->counts);
  if (r != 1)
    return r;
  nr = (size_t) MIN_OF (nr, max_clusters (d));
  r = srv_range_acquire (&d->ranges, &range, x->guest_idx,
                         x->guest_idx + nr - 1, true);
  if (r < 0)
    return r;
  r = dedup_existing_index (d->pool, x->guest_idx, nr, all, &x->counts);
  srv_range_release (&d->ranges, &range);
  if (r < 0)
    return r;
  x->guest_idx += nr;
  return 1;
}

static void
log_progress (struct srv_index_existing *x)
{
  unsigned percent = (unsigned) (100.0 * (double) x->done /
                                 (double) MAX_OF (x->total, 1));
  const uint64_t now = clock_now_ns ();

  if (x->logged_ns == 0)
    x->logged_ns = now;
  if (now - x->logged_ns < PROGRESS_MIN_NS ||
      (percent - x->logged_percent < PROGRESS_PERCENT &&
       now - x->logged_ns < PROGRESS_MAX_NS))
    return;
  x->logged_ns = now;
  x->logged_percent = percent;
  log_line (x->log, LOG_INFO, "%s: indexing existing data: %u %% done, "
            "%" PRIu64 " clusters shared so far", x->path, percent,
            x->counts.linked);
}

static void
log_done (const struct srv_index_existing *x)
{
  const struct dedup_existing *c = &x->counts;

  log_line (x->log, c->bad ? LOG_ERROR : LOG_INFO, "%s: existing data is "
            "indexed: %" PRIu64 " clusters were new to the index, %" PRIu64
            " are shared now, %" PRIu64 " held zeroes and were freed, %" PRIu64
            " could not be read", x->path, c->indexed, c->linked, c->zeroed,
            c->bad);
}

/* --- The job --------------------------------------------------------------- */

struct srv_index_existing *
srv_index_existing_new (struct srv_disk *disk, const char *path,
                        const struct log_sink *log, bool remember)
{
  struct srv_index_existing *x = calloc (1, sizeof *x);

  if (x)
    *x = (struct srv_index_existing) {
      .disk = disk, .path = path, .log = log, .remember = remember,
    };
  return x;
}

static void
set_progress (struct srv_index_existing *x)
{
  const unsigned bits = x->disk->cluster_bits;

  __atomic_store_n (&x->done, x->counts.read << bits, __ATOMIC_RELAXED);
  __atomic_store_n (&x->total, MAX_OF (x->found, x->counts.read) << bits,
                    __ATOMIC_RELAXED);
}

/* Counts some clusters that are to be read.  Returns whether all are counted. */
static int
count (struct srv_index_existing *x)
{
  return dedup_existing_count (x->disk->pool, &x->count_idx, &x->found);
}

/* Lets the image remember the job, if it is to. */
static int
note_begin (struct srv_index_existing *x)
{
  int r = x->remember ? dedup_note_indexing (x->disk->pool, true) : 0;

  x->remember &= r < 0;
  return r;
}

static int
index_next (struct srv_index_existing *x)
{
  int r = srv_index_existing_step (x, false);

  set_progress (x);
  if (r == 0)
    log_done (x);
  else if (r == 1)
    log_progress (x);
  return r;
}

static int
step (void *opaque)
{
  struct srv_index_existing *x = opaque;
  int r = note_begin (x);

  if (r == 0)
    r = count (x);
  if (r == 0)
    r = index_next (x);
  if (r != -ENOTSUP)
    return r;
  log_line (x->log, LOG_INFO, "%s: existing data is not indexed, as the image is "
            "not deduplicated", x->path);
  return 0;
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  const struct srv_index_existing *x = opaque;

  *done = __atomic_load_n (&x->done, __ATOMIC_RELAXED);
  *total = __atomic_load_n (&x->total, __ATOMIC_RELAXED);
}

/* The image forgets the job, unless the next server is to go on with it.  If that
 * cannot be written, the next server looks at all data once more. */
static void
end (void *opaque, int result)
{
  struct srv_index_existing *x = opaque;
  struct dedup_pool *pool = x->disk->pool;

  if ((result == 0 || result == -ECANCELED) && dedup_was_indexing (pool) &&
      dedup_note_indexing (pool, false) < 0)
    log_line (x->log, LOG_ERROR, "%s: that existing data is indexed could not be "
              "noted", x->path);
  free (x);
}

const struct srv_job_ops srv_job_index_existing = {
  .type = "index-existing", .can_pause = true, .can_cancel = true,
  .resumes = true, .changes = true, .keeps_trying = true, .step = step,
  .progress = progress, .end = end,
};
