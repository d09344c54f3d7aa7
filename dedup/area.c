/* SPDX-License-Identifier: BSD-3-Clause */
/* The store's areas: ranges of anchored clusters with refcount 1 that no
 * guest entry points to.  An area is recorded when it is allocated, and used
 * once a durable configuration lists it; one that none lists is garbage,
 * which the sweep of the next session frees.
 *
 * Maintenance only: one caller at a time.
 */
#include "disk.h"

#include <errno.h>

/* --- sizes -------------------------------------------------------------------- */

/* A hit in RAM costs no read of a page: 2^16 buckets take 10 MiB, twice while
 * one is frozen, and hold the hashes of 1 GiB; but no more than a quarter of the
 * clusters that the disk has, because the journal holds a log store twice and the
 * index on disk up to 24 of them.  Larger ones cost more memory than they spare
 * (docs/ARCHITECTURE.md section 8). */
#define SMALLEST_ORDER 10
#define USUAL_ORDER 16
/* Journal areas: as many as hold a log store's entries about twice, at 128 bytes
 * of records each; but an area has a least size. */
#define LEAST_AREAS 4
#define USUAL_AREAS 16

/* Clusters of an area that are changed or looked at under one hold of the
 * lock. */
#ifdef DEDUP_MUTATIONS
#define CLUSTERS_PER_HOLD 24   /* so that the crash harness sees halves */
#else
#define CLUSTERS_PER_HOLD 4096
#endif

static uint64_t
holds (unsigned order)
{
  return ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 93 / 100;
}

unsigned
dedup_default_order (uint64_t nr_clusters)
{
  unsigned order = SMALLEST_ORDER;

  while (order < USUAL_ORDER && holds (order) < nr_clusters / 4)
    order++;
  return order;
}

uint32_t
dedup_default_areas (unsigned order, uint32_t area_size)
{
  uint64_t wanted = ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 128 * 2;

  wanted = div_round_up (wanted, area_size);
  return (uint32_t) MIN_OF (MAX_OF (wanted, LEAST_AREAS), USUAL_AREAS);
}

uint32_t
dedup_default_area_size (unsigned order, uint64_t cluster_size)
{
  uint64_t size = ((uint64_t) DEDUP_BUCKET_SLOTS << order) * 128 / 8;

  size = round_up_pow2 (size, DEDUP_AREA_UNIT);
  return (uint32_t) round_up_pow2 (size, cluster_size);
}

/* --- allocate and free ------------------------------------------------------------ */

/* Records that a range's tables may take at the most: each refcount block and
 * anchor table two or three, and the range's own. */
static size_t
area_records (struct dedup_disk *d, uint64_t count)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->img);

  return (size_t) (4 * (count / g->refblock_entries + count / g->l2_entries)
                   + 32);
}

/* -EAGAIN: the lock was let go; look again. */
static int
area_room_locked (struct dedup_disk *d, uint64_t count, bool *flushed)
{
  int r;

  if (dedup_journal_room_locked (d->journal, area_records (d, count), 0))
    return 0;
  if (*flushed)
    return -ENOSPC;
  *flushed = true;
  lock_release (d->lock);
  r = dedup_flush (d);
  lock_acquire (d->lock);
  return r < 0 ? r : -EAGAIN;
}

/* One REFCOUNT record, as one group: all or nothing. */
static int
set_part (struct dedup_disk *d, uint64_t host_idx, uint64_t count, bool used)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx,
    .count = (uint32_t) count, .refcount = used, .anchored = used,
  };
  struct qcow2_run run = { .host_idx = host_idx, .count = count,
                           .trimmed = true };
  struct qcow2_txn txn;
  bool flushed = false;
  int r;

  qcow2_txn_begin (d->img, &txn);
  lock_acquire (d->lock);
  for (;;) {
    r = area_room_locked (d, count, &flushed);
    if (r == -EAGAIN)
      continue;
    if (r < 0)
      break;
    r = qcow2_prepare_host_locked (&txn, host_idx, count);
    if (r == 0) {
      dedup_change_locked (d, &txn, &c);
      qcow2_guard_put_locked (d->img, host_idx, count, used);
    }
    if (r == 0 && !used)
      qcow2_quarantine_locked (d->img, &run,
                               dedup_journal_seq_locked (d->journal));
    dedup_journal_end_locked (d->journal);
    if (r != -EAGAIN)
      break;
    lock_release (d->lock);
    r = qcow2_txn_load (&txn);
    lock_acquire (d->lock);
    if (r < 0)
      break;
  }
  qcow2_txn_end_locked (&txn);
  lock_release (d->lock);
  return r;
}

/* The range part by part, so that nobody waits for all of a large one.  *DONE:
 * how far it came; what a crash leaves of it is garbage, for no configuration
 * lists it. */
static int
set_area_refcount (struct dedup_disk *d, uint64_t host_idx, uint64_t count,
                   bool used, uint64_t *done)
{
  uint64_t n;
  int r = 0;

  for (*done = 0; *done < count; *done += n) {
    n = MIN_OF (count - *done, CLUSTERS_PER_HOLD);
    r = set_part (d, host_idx + *done, n, used);
    if (r < 0)
      break;
  }
  return r;
}

static int
reserve_area (struct dedup_disk *d, uint64_t count, uint64_t *host_idx)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_reserve_area_locked (d->img, count, host_idx);
}

/* DONE clusters of the area have their refcount already; where they can't be
 * freed, they are left to the next session's sweep. */
static void
unreserve_area (struct dedup_disk *d, uint64_t host_idx, uint64_t count,
                uint64_t done)
{
  struct qcow2_run run = { .host_idx = host_idx + done,
                           .count = count - done };
  uint64_t freed;

  if (set_area_refcount (d, host_idx, done, false, &freed) < 0)
    log_line (d->log, LOG_DEBUG, "%s: part of an area is left to the next "
              "sweep", d->path);
  LOCK_FOR_SCOPE (d->lock);
  qcow2_unreserve_locked (d->img, &run);
}

/* Real space, where the host can promise it: the journal must not meet a
 * full disk. */
static int
allocate_space (struct dedup_disk *d, uint64_t host_off, uint64_t size)
{
  int r = io_allocate (d->io, host_off, size);

  /* Else at least make the file reach behind the area. */
  return r == -EOPNOTSUPP || r == -ENOTSUP
    ? io_pwrite (d->io, "", 1, host_off + size - 1) : r;
}

int
dedup_area_alloc (struct dedup_disk *d, uint64_t size, uint64_t *host_off)
{
  uint64_t count = size >> d->cluster_bits, host_idx, done = 0;
  int r;

  assert (size % d->cluster_size == 0 && count <= UINT32_MAX);
  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = reserve_area (d, count, &host_idx);
  if (r == 0) {
    *host_off = host_idx << d->cluster_bits;
    r = allocate_space (d, *host_off, size);
    if (r == 0)
      r = set_area_refcount (d, host_idx, count, true, &done);
    if (r < 0)
      unreserve_area (d, host_idx, count, done);
  }
  dedup_change_end (d);
  return r;
}

int
dedup_area_free (struct dedup_disk *d, uint64_t host_off, uint64_t size)
{
  uint64_t done;
  int r;

  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = set_area_refcount (d, host_off >> d->cluster_bits,
                         size >> d->cluster_bits, false, &done);
  dedup_change_end (d);
  return r;
}

/* --- the list --------------------------------------------------------------------- */

static uint64_t
journal_area_bytes (const struct dedup_journal_area *a)
{
  return (uint64_t) a->nr_blocks * DEDUP_BLOCK_SIZE;
}

static struct qcow2_area
area_at (const struct dedup_disk *d, size_t i)
{
  const struct dedup_config *c = d->config;

  if (i == 0)
    return (struct qcow2_area) { d->ext.config_off, d->ext.config_size };
  if (--i < c->nr_areas)
    return (struct qcow2_area) { c->areas[i].host_off,
                                 journal_area_bytes (&c->areas[i]) };
  i -= c->nr_areas;
  if (i < c->index.nr_incarnations)
    return (struct qcow2_area) { c->index.incarnations[i].host_off,
                                 c->index.incarnations[i].size_bytes };
  i -= c->index.nr_incarnations;
  if (i < c->index.nr_segments)
    return (struct qcow2_area) { c->index.segments[i].host_off,
                                 c->index.segments[i].size_bytes };
  i -= c->index.nr_segments;
  return (struct qcow2_area) { c->index.limbo[i].host_off, c->index.limbo[i].size_bytes };
}

/* Area I, if it lies in the image. */
static bool
image_area_at (const struct dedup_disk *d, size_t i, struct qcow2_area *a)
{
  *a = area_at (d, i);
  return !dedup_in_store_file (a->host_off);
}

static size_t
count_areas (const struct dedup_disk *d)
{
  return 1 + d->config->nr_areas + d->config->index.nr_incarnations +
    d->config->index.nr_limbo + d->config->index.nr_segments;
}

int
dedup_areas (struct dedup_disk *d, struct qcow2_area **areas, size_t *nr)
{
  size_t i, all = d->has_store ? count_areas (d) : 0;

  *nr = 0;
  *areas = calloc (all + 1, sizeof **areas);
  if (*areas == NULL)
    return -ENOMEM;
  for (i = 0; i < all; i++)
    if (image_area_at (d, i, &(*areas)[*nr]))
      ++*nr;
  return 0;
}

bool
dedup_area_contains (const struct dedup_disk *d, uint64_t host_idx)
{
  uint64_t off = host_idx << d->cluster_bits;
  size_t i, nr = count_areas (d);

  for (i = 0; i < nr; i++) {
    struct qcow2_area a;

    if (image_area_at (d, i, &a) &&
        off >= a.host_off && off - a.host_off < a.size)
      return true;
  }
  return d->index != NULL && dedup_index_will_free (d->index, off);
}

/* --- are they what they should be? ------------------------------------------------ */

/* *N: how many clusters from HOST_IDX on, at most COUNT, are as they should
 * be. */
static int
check_part (struct dedup_disk *d, uint64_t host_idx, uint64_t count,
            uint64_t *n)
{
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (d->img, &txn);
  for (;;) {
    lock_acquire (d->lock);
    r = qcow2_anchored_run_locked (&txn, host_idx, count, 1, n);
    lock_release (d->lock);
    if (r != -EAGAIN)
      break;
    r = qcow2_txn_load (&txn);
    if (r < 0)
      break;
  }
  qcow2_txn_end (&txn);
  return r;
}

/* All of it: what is freed later, or written over, must not be a guest's.
 * That is some nanoseconds for each cluster, and one table read for a few
 * hundred. */
static int
check_area (struct dedup_disk *d, struct qcow2_area a, bool *ok)
{
  uint64_t idx = a.host_off >> d->cluster_bits, n;
  uint64_t end = (a.host_off + a.size) >> d->cluster_bits;
  int r = 0;

  for (; idx < end && *ok && r == 0; idx += n) {
    r = check_part (d, idx, MIN_OF (end - idx, CLUSTERS_PER_HOLD), &n);
    *ok = r < 0 || n > 0;
  }
  return r;
}

int
dedup_area_guard (struct dedup_disk *d, struct fault *f)
{
  size_t i, nr = count_areas (d);

  LOCK_FOR_SCOPE (d->lock);
  for (i = 0; i < nr; i++) {
    struct qcow2_area a;
    uint64_t idx, count;

    if (!image_area_at (d, i, &a))
      continue;
    idx = a.host_off >> d->cluster_bits;
    count = a.size >> d->cluster_bits;
    if (qcow2_guarded_locked (d->img, idx, count))
      return fault_corrupt (f, a.host_off, "an area of the store overlaps "
                            "the image's tables");
    qcow2_guard_put_locked (d->img, idx, count, true);
  }
  return 0;
}

void
dedup_area_back (struct dedup_disk *d)
{
  const struct dedup_config *c = d->config;
  int r = io_fill_holes (d->io, d->ext.config_off, d->ext.config_size);
  size_t i;

  for (i = 0; i < c->nr_areas && r == 0; i++)
    r = io_fill_holes (d->io, c->areas[i].host_off,
                       journal_area_bytes (&c->areas[i]));
  if (r == 0)
    r = qcow2_back_tables (d->img);
  if (r < 0)
    log_line (d->log, LOG_DEBUG, "%s: space for what is overwritten: %s",
              d->path, strerror (-r));
}

/* While bit 48 is set, the tables are what they should be only after the
 * replay. */
int
dedup_guard (struct dedup_disk *d, bool tables, struct fault *f)
{
  int r = 0;

  if (!d->writable)
    return 0;
  if (tables)
    r = qcow2_guard_begin (d->img, f);
  return r < 0 ? r : dedup_area_guard (d, f);
}

int
dedup_area_check (struct dedup_disk *d, bool *ok)
{
  size_t i, nr = count_areas (d);
  struct qcow2_area a;
  int r = 0;

  *ok = true;
  for (i = 0; i < nr && *ok && r == 0; i++)
    if (image_area_at (d, i, &a))
      r = check_area (d, a, ok);
  return r;
}
