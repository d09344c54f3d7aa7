/* SPDX-License-Identifier: BSD-3-Clause */
/* Defragmentation while the server is idle: moves data that rewriting has
 * scattered and that clients have read in sequence (defragment=idle).
 *
 * The job takes one marked unit (scattered.h) after the other, and moves it in
 * pieces of one operation each (dedup_defragment), every one under the range
 * lock, as a write of it would be.  It takes the mark away first, and tries
 * each piece once.  So the job ends, and a unit is moved again only if a
 * reader finds it scattered again.
 *
 * Threads: one step at a time, beside requests.  The loop decides when; it
 * knows the time of the last change, and asks here for that of the last read.
 * Progress is asked for on any thread.
 */
#include "defragment.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "clock.h"

/* A sequential reader that has stopped for so long has ended. */
#define READER_ENDED_NS (UINT64_C (3) * 1000 * 1000 * 1000)
/* Clients that have read within this time compete with the job for the disk.
 */
#define READERS_BUSY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

/* --- When --------------------------------------------------------------- */

static bool
happened_within (const uint64_t *when_ns, uint64_t period_ns)
{
  uint64_t when = __atomic_load_n (when_ns, __ATOMIC_RELAXED);

  return when != 0 && clock_now_ns () < when + period_ns;
}

static bool
has_work (const struct srv_defragment *j)
{
  return __atomic_load_n (&j->guest_idx, __ATOMIC_RELAXED) <
    __atomic_load_n (&j->end_idx, __ATOMIC_RELAXED) ||
    __atomic_load_n (&j->disk->scattered.nr_marked, __ATOMIC_RELAXED) > 0;
}

static bool
is_read_in_sequence (const struct srv_defragment *j)
{
  return happened_within (&j->disk->scattered.sequential_ns, READER_ENDED_NS);
}

bool
srv_defragment_is_due (const struct srv_defragment *j)
{
  return has_work (j) && !is_read_in_sequence (j);
}

/* --- A step ------------------------------------------------------------- */

int
srv_defragment_piece (struct srv_disk *d, uint64_t guest_idx, size_t nr)
{
  struct srv_range range;
  int r;

  r = srv_range_acquire (&d->ranges, &range, guest_idx, guest_idx + nr - 1,
                         true);
  if (r < 0)
    return r;
  r = dedup_defragment (d->pool, guest_idx, nr);
  srv_range_release (&d->ranges, &range);
  return r;
}

/* Logs what was done since the last line, when there is nothing left to do. */
static void
log_done (struct srv_defragment *j)
{
  if (j->pieces > 0 || j->failed > 0)
    log_line (j->log, LOG_DEBUG, "%s: defragmented: %" PRIu64 " pieces, %"
              PRIu64 " bytes; %" PRIu64 " pieces could not be moved%s%s",
              j->path, j->pieces, j->bytes, j->failed, j->failed ? ": " : "",
              j->failed ? strerror (-j->why) : "");
  j->pieces = j->bytes = j->failed = 0;
}

static bool
take_unit (struct srv_defragment *j)
{
  struct srv_scattered *g = &j->disk->scattered;
  const unsigned bits = g->unit_bits - g->cluster_bits;
  uint64_t unit;

  if (!srv_scattered_take (g, &unit))
    return false;
  __atomic_store_n (&j->guest_idx, unit << bits, __ATOMIC_RELAXED);
  __atomic_store_n (&j->end_idx, MIN_OF ((unit + 1) << bits, g->nr_clusters),
                    __ATOMIC_RELAXED);
  return true;
}

static void
count (struct srv_defragment *j, int r)
{
  if (r < 0) {
    j->failed++;
    j->why = r;
    return;
  }
  j->pieces += r > 0;
  j->bytes += (uint64_t) r << j->disk->cluster_bits;
}

static void
move_piece (struct srv_defragment *j)
{
  const size_t nr = (size_t) MIN_OF (j->end_idx - j->guest_idx,
                                     srv_disk_max_piece (j->disk));

  count (j, srv_defragment_piece (j->disk, j->guest_idx, nr));
  __atomic_add_fetch (&j->guest_idx, nr, __ATOMIC_RELAXED);
  __atomic_add_fetch (&j->done, (uint64_t) nr << j->disk->cluster_bits,
                      __ATOMIC_RELAXED);
}

int
srv_defragment_step (struct srv_defragment *j)
{
  if (j->guest_idx < j->end_idx || take_unit (j))
    move_piece (j);
  if (has_work (j))
    return 1;
  log_done (j);
  return 0;
}

/* --- The job ------------------------------------------------------------ */

static int
step_cb (void *opaque)
{
  return srv_defragment_step (opaque);
}

/* A step that finds nothing to do ends the job at once. */
static bool
is_ready (void *opaque)
{
  const struct srv_defragment *j = opaque;

  return !has_work (j) || !is_read_in_sequence (j);
}

static bool
slows_clients (void *opaque)
{
  const struct srv_defragment *j = opaque;

  return happened_within (&j->disk->scattered.read_ns, READERS_BUSY_NS);
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  const struct srv_defragment *j = opaque;
  const struct srv_scattered *g = &j->disk->scattered;
  const uint64_t next = __atomic_load_n (&j->guest_idx, __ATOMIC_RELAXED);
  const uint64_t end = __atomic_load_n (&j->end_idx, __ATOMIC_RELAXED);

  *done = __atomic_load_n (&j->done, __ATOMIC_RELAXED);
  *total = *done + ((end - MIN_OF (next, end)) << g->cluster_bits) +
    ((uint64_t) __atomic_load_n (&g->nr_marked, __ATOMIC_RELAXED)
     << g->unit_bits);
}

static void
end_cb (void *opaque, int result)
{
  struct srv_defragment *j = opaque;

  (void) result;
  __atomic_store_n (&j->done, 0, __ATOMIC_RELAXED);
}

const struct srv_job_ops srv_job_defragment = {
  .type = "defragment", .when = SRV_JOB_WHEN_IDLE, .can_pause = true,
  .changes = true, .step = step_cb, .progress = progress,
  .is_ready = is_ready, .slows_clients = slows_clients, .end = end_cb,
};
