/* SPDX-License-Identifier: BSD-3-Clause */
/* Clusters ahead: free ones at the file's end that zeroes were written to, for
 * small writes that are flushed at once.
 *
 * Where the host's file gets its first data, a flush has to commit the file
 * system's own tables too, which takes longer than the data.  Where data was
 * before, it writes the data only.  So while clients flush after little data,
 * some clusters are written and synced ahead of them, by the commit job.
 * Clusters that were freed and are used again need no such help.
 *
 * They are reserved in memory only: a crash, like a close, leaves free
 * clusters.  Protected by the image lock; the zeroes are written without it.
 */
#include "disk.h"

#ifdef DEDUP_MUTATIONS         /* the crash harness works with few */
#define AHEAD_BYTES (UINT64_C (16) << 10)
#define LITTLE_BYTES (UINT64_C (2) << 10)
#define AHEAD_FLUSHES 2
#else
/* Short, as a client's flush may have to wait for them. */
#define AHEAD_BYTES (UINT64_C (2) << 20)
/* What is little for one write, and between two flushes. */
#define LITTLE_BYTES (UINT64_C (64) << 10)
/* Flushes that tell. */
#define AHEAD_FLUSHES 32
#endif
/* Flushes after which older ones count half. */
#define AHEAD_WINDOW 128

static uint64_t
wanted (const struct dedup_disk *d)
{
  return AHEAD_BYTES >> d->cluster_bits;
}

static uint64_t
few (const struct dedup_disk *d)
{
  return MAX_OF (LITTLE_BYTES >> d->cluster_bits, 1);
}

void
dedup_ahead_count_locked (struct dedup_disk *d, uint64_t nr)
{
  assert (lock_held (d->lock));
  d->ahead.clusters += nr;
}

void
dedup_ahead_flushed_locked (struct dedup_disk *d)
{
  struct dedup_ahead *a = &d->ahead;

  assert (lock_held (d->lock));
  if (++a->flushes >= AHEAD_WINDOW) {
    a->flushes /= 2;
    a->clusters /= 2;
  }
}

bool
dedup_ahead_small_locked (const struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return d->ahead.flushes >= AHEAD_FLUSHES &&
    d->ahead.clusters <= d->ahead.flushes * few (d);
}

bool
dedup_ahead_due_locked (const struct dedup_disk *d)
{
  return dedup_ahead_small_locked (d) && !d->ahead.filling &&
    d->recovery_bit &&           /* nothing is written to a clean image */
    wanted (d) >= 4 * few (d) && d->ahead.run[1].count == 0;
}

bool
dedup_ahead_take_locked (struct dedup_disk *d, uint64_t nr,
                         struct qcow2_run *run)
{
  struct dedup_ahead *a = &d->ahead;

  assert (lock_held (d->lock));
  if (a->run[0].count == 0) {
    a->run[0] = a->run[1];
    a->run[1].count = 0;
  }
  if (nr > few (d) || a->run[0].count == 0)
    return false;
  *run = (struct qcow2_run) { .host_idx = a->run[0].host_idx,
                              .count = MIN_OF (nr, a->run[0].count) };
  a->run[0].host_idx += run->count;
  a->run[0].count -= run->count;
  return true;
}

void
dedup_ahead_give_back_locked (struct dedup_disk *d)
{
  size_t i;

  assert (lock_held (d->lock));
  for (i = 0; i < 2; i++) {
    if (d->ahead.run[i].count > 0)
      qcow2_unreserve_locked (d->img, &d->ahead.run[i]);
    d->ahead.run[i].count = 0;
  }
}

int
dedup_ahead_area (struct io_store *io, uint64_t host_off, uint64_t size)
{
  return io_pwrite_zeroes (io, host_off, size);
}

/* 1: written and durable; 0: there was data before. */
static int
prepare (struct dedup_disk *d, const struct qcow2_run *run)
{
  const uint64_t off = run->host_idx << d->cluster_bits;
  uint64_t data = 0;
  int64_t size = io_size (d->io);
  int r;

  if (size < 0)
    return (int) size;
  /* Inside the file it may lie in a hole, where data was given back. */
  if (off < (uint64_t) size &&
      (io_next_data (d->io, off, &data) < 0 ||
       data < off + (run->count << d->cluster_bits)))
    return 0;
  r = io_pwrite_zeroes (d->io, off, run->count << d->cluster_bits);
  if (r == 0)
    r = dedup_sync (d);
  return r < 0 ? r : 1;
}

void
dedup_ahead_fill (struct dedup_disk *d)
{
  struct dedup_ahead *a = &d->ahead;
  struct qcow2_run run;
  int r = 0;

  LOCK_FOR_SCOPE (d->lock);
  if (!dedup_ahead_due_locked (d))
    return;
  if (qcow2_reserve_locked (d->img, wanted (d), &run) < 0) {
    a->flushes = a->clusters = 0;       /* not for some time */
    return;
  }
  a->filling = true;
  if (!qcow2_guarded_locked (d->img, run.host_idx, run.count)) {
    lock_release (d->lock);
    r = prepare (d, &run);
    lock_acquire (d->lock);
  }
  a->filling = false;
  if (r == 1) {
    a->run[1] = run;
    return;
  }
  if (r == 0)
    qcow2_unreserve_locked (d->img, &run);
  else
    qcow2_unreserve_unbacked_locked (d->img, &run);
  a->flushes = a->clusters = 0;         /* not for some time */
}
