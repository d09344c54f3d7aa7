/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes zeroes to free clusters at the file's end ahead of small writes that
 * are flushed at once.
 *
 * Where the host's file gets its first data, a flush has to commit the file
 * system's own tables too, which takes longer than writing the data.  Where
 * there was data before, it writes only the data.  So while clients flush after
 * little data, the commit job writes and syncs some clusters ahead of them.
 * Clusters that were freed and are used again do not need it.
 *
 * Two runs are kept: one from which writes take clusters, and the next.  They
 * are reserved in memory only: a crash, like a close, leaves free clusters.
 *
 * Protected by the image lock; the zeroes are written without it.
 */
#include "upkeep-private.h"

#ifdef DEDUP_MUTATIONS         /* the crash harness writes little */
#define TARGET_BYTES (UINT64_C (16) << 10)
#define SMALL_WRITE_BYTES (UINT64_C (2) << 10)
#define LEAST_FLUSHES 2
#else
/* Bytes of one run: few, as a client's flush may have to wait for them. */
#define TARGET_BYTES (UINT64_C (2) << 20)
/* The most that a small write has, and that is written between two flushes. */
#define SMALL_WRITE_BYTES (UINT64_C (64) << 10)
/* Flushes from which on clients are judged by them. */
#define LEAST_FLUSHES 32
#endif

/* Number of flushes at which those so far are counted as half as many. */
#define FLUSH_WINDOW 128

/* Return TARGET_BYTES and SMALL_WRITE_BYTES in clusters. */
static uint64_t
target_clusters (const struct dedup_base *b)
{
  return TARGET_BYTES >> b->cluster_bits;
}

static uint64_t
small_write_clusters (const struct dedup_base *b)
{
  return MAX_OF (SMALL_WRITE_BYTES >> b->cluster_bits, 1);
}

void
dedup_prewrite_count_locked (struct dedup_prewrite *pw, uint64_t nr)
{
  assert (lock_held (pw->b->lock));
  pw->clusters += nr;
}

void
dedup_prewrite_flushed_locked (struct dedup_prewrite *pw)
{
  assert (lock_held (pw->b->lock));
  if (++pw->flushes >= FLUSH_WINDOW) {
    pw->flushes /= 2;
    pw->clusters /= 2;
  }
}

/* Returns true if clients flush after little data. */
static bool
writes_are_small (const struct dedup_prewrite *pw)
{
  return pw->flushes >= LEAST_FLUSHES &&
    pw->clusters <= pw->flushes * small_write_clusters (pw->b);
}

bool
dedup_prewrite_due_locked (const struct dedup_prewrite *pw)
{
  assert (lock_held (pw->b->lock));
  return writes_are_small (pw) && !pw->filling &&
    pw->s->gate.recovery_bit &&   /* nothing is written to a clean image */
    target_clusters (pw->b) >= 4 * small_write_clusters (pw->b) &&
    pw->run[1].count == 0;
}

bool
dedup_prewrite_take_locked (struct dedup_prewrite *pw, uint64_t nr,
                            struct qcow2_run *run)
{
  assert (lock_held (pw->b->lock));
  if (pw->run[0].count == 0) {
    pw->run[0] = pw->run[1];
    pw->run[1].count = 0;
  }
  if (nr > small_write_clusters (pw->b) || pw->run[0].count == 0)
    return false;
  *run = (struct qcow2_run) { .host_idx = pw->run[0].host_idx,
                              .count = MIN_OF (nr, pw->run[0].count) };
  pw->run[0].host_idx += run->count;
  pw->run[0].count -= run->count;
  return true;
}

void
dedup_prewrite_give_back_locked (struct dedup_prewrite *pw)
{
  size_t i;

  assert (lock_held (pw->b->lock));
  for (i = 0; i < 2; i++) {
    if (pw->run[i].count > 0)
      qcow2_unreserve_locked (pw->b->img, &pw->run[i]);
    pw->run[i].count = 0;
  }
}

/* Writes zeroes to RUN, which is reserved, and makes them durable.  Returns 1,
 * or 0 if nothing was written, as the file has data there. */
static int
write_ahead (struct dedup_store *s, const struct qcow2_run *run)
{
  const uint64_t off = run->host_idx << s->b->cluster_bits;
  uint64_t data = 0;
  int64_t size = io_size (s->b->io);
  int r;

  if (size < 0)
    return (int) size;
  /* Inside the file the run may lie in a hole, whose space was given back. */
  if (off < (uint64_t) size &&
      (io_next_data (s->b->io, off, &data) < 0 ||
       data < off + (run->count << s->b->cluster_bits)))
    return 0;
  r = io_pwrite_zeroes (s->b->io, off, run->count << s->b->cluster_bits);
  if (r == 0)
    r = dedup_sync (s);
  return r < 0 ? r : 1;
}

/* Forgets the flushes counted so far, so that nothing is due for some time. */
static void
stay_idle (struct dedup_prewrite *pw)
{
  pw->flushes = pw->clusters = 0;
}

void
dedup_prewrite_fill (struct dedup_prewrite *pw)
{
  struct qcow2_run run;
  int r = 0;

  LOCK_FOR_SCOPE (pw->b->lock);
  if (!dedup_prewrite_due_locked (pw))
    return;
  if (qcow2_reserve_locked (pw->b->img, target_clusters (pw->b), &run) < 0) {
    stay_idle (pw);
    return;
  }
  pw->filling = true;
  if (!qcow2_guarded_locked (pw->b->img, run.host_idx, run.count)) {
    lock_release (pw->b->lock);
    r = write_ahead (pw->s, &run);
    lock_acquire (pw->b->lock);
  }
  pw->filling = false;
  if (r == 1) {
    pw->run[1] = run;
    return;
  }
  if (r == 0)
    qcow2_unreserve_locked (pw->b->img, &run);
  else
    qcow2_unreserve_unbacked_locked (pw->b->img, &run);
  stay_idle (pw);
}
