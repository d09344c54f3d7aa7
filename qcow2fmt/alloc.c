/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocates host clusters: knows which ones are free, and which ones have
 * refcount 0 but must not be used yet.
 *
 * A cluster with refcount 0 is in one of these states:
 *
 *   not scanned   the scan (scan.c) has not read its refcount in the file yet
 *   known free    a bit in `free`; may be reserved.  Whether the host may hold
 *                 data there is left to stale.c
 *   reserved      taken by a caller; no set has a bit for it
 *   quarantined   freed by a record that is not known durable yet (law 6);
 *                 see quarantine.c
 *   kept          not to be used before the next open
 *   past the frontier
 *
 * A reservation takes known free clusters, next-fit; if there are none, it
 * moves the frontier.  The frontier never passes the bound: the clusters that
 * refcount table and anchor can cover, and on a device its end.  The content
 * of a free cluster is unknown, past the frontier as well: whoever reserves
 * one writes all of it, or reads none of it.
 *
 * The scan trusts refcounts.  So in the part that is not scanned yet, no
 * cluster with refcount 0 may be in use, or waiting, unless it is marked:
 * quarantined and kept clusters there are marked busy, and released ones are
 * left for the scan to find.  Hence reserved clusters never lie in that part.
 * It ends at the frontier at the time of the first reservation or scan, which
 * is after the replay, because the replay may move the frontier.
 *
 * If there is no memory for a bit, a cluster is lost until the next open, but
 * never used too early: if a busy bit cannot be set, the scan ends.
 *
 * It has no threads; the image's lock protects it.  Its only I/O is at open: it
 * reads refcount blocks, from the last one down to one that counts something.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "bitset.h"
#include "checked.h"
#include "image.h"

/* These limit how many runs of free clusters one reservation looks at: one of
 * some clusters, one of a single run for data that is moved, and one of a whole
 * area. */
#define MAX_LOOK 64
#define MAX_LOOK_RUN 1024
#define MAX_LOOK_AREA 65536

/* Limits how many refcount blocks are read at open.  If more of them count
 * nothing, the frontier is put behind the rest, and the scan finds the free
 * clusters there. */
#define MAX_TAIL_BLOCKS 4096

/* --- Open ---------------------------------------------------------------- */

/* Marks clusters busy where the scan, which is still to come, would take them
 * for free.  Ends the scan if there is no memory. */
static void
set_busy (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  uint64_t first = MAX_OF (host_idx, a->scan_next);
  uint64_t end = MIN_OF (host_idx + count, a->scan_end);

  if (first < end && qcow2_bitset_set (a->busy, first, end - first) < 0)
    a->scan_next = a->scan_end = a->frontier;
}

/* Moves the frontier behind the last cluster that refcount block B counts.
 * Returns 1 if it counts any, else 0.  A block that cannot be read is taken to
 * count all of its clusters. */
static int
tail_block (struct qcow2_image *img, uint64_t b, uint8_t *buf)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t off = img->reftable.v[b];
  int r;

  if (off == 0 || off % geo->cluster_size != 0 || off >= QCOW2_MAX_HOST_OFF)
    return 0;                  /* a bad offset is an error when it is used */
  r = io_pread (img->io, buf, geo->cluster_size, off);
  for (uint64_t i = geo->refblock_entries; i-- > 0; )
    if (r < 0 || qcow2_refcount_get (geo->refcount_bits, buf, i) != 0) {
      img->alloc.frontier = MAX_OF (img->alloc.frontier,
                                    b * geo->refblock_entries + i + 1);
      return 1;
    }
  return 0;
}

/* Finds the frontier: behind the last cluster that a refcount block counts.
 * The size of the file does not tell it: a device, or a file that was made
 * large, continues behind it with unknown bytes; and counted clusters may lie
 * past the end of the file, because they were never written, or lost with a
 * tail that was cut off. */
static int
find_tail (struct qcow2_image *img)
{
  uint64_t per = img->header.geo.refblock_entries;
  CLEANUP_FREE uint8_t *buf = aligned_new (img->header.geo.cluster_size);
  unsigned looked = 0;

  if (!buf)
    return -ENOMEM;
  for (uint64_t b = img->reftable.nr; b-- > img->alloc.frontier / per; ) {
    if (img->reftable.v[b] == 0)
      continue;
    if (++looked > MAX_TAIL_BLOCKS) {
      img->alloc.frontier = MAX_OF (img->alloc.frontier, (b + 1) * per);
      return 0;
    }
    if (tail_block (img, b, buf) == 1)
      return 0;
  }
  return 0;
}

/* A tail of a file up to this size, and a quarter of what comes before, is
 * taken to be left by a crash: the scan finds it free, so that it is used
 * again or given back to the host.  A longer one is taken to be intended, and
 * would be too much to scan. */
#ifdef DEDUP_MUTATIONS         /* the crash harness has small images */
#define SHORT_TAIL (UINT64_C (256) << 10)
#else
#define SHORT_TAIL (UINT64_C (1) << 30)
#endif

/* Moves the frontier to the end of the file if only a short tail is behind
 * it. */
static void
take_in_short_tail (struct qcow2_image *img)
{
  const unsigned bits = img->header.geo.cluster_bits;
  const uint64_t end = div_round_up (img->file_size, UINT64_C (1) << bits);

  if (io_max_size (img->io) == UINT64_MAX && end > img->alloc.frontier &&
      end - img->alloc.frontier <=
      (SHORT_TAIL >> bits) + img->alloc.frontier / 4)
    img->alloc.frontier = end;
}

static void
set_bound (struct qcow2_image *img)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t bound = qcow2_refcount_coverage (img);

  bound = MIN_OF (bound, QCOW2_MAX_HOST_OFF >> geo->cluster_bits);
  bound = MIN_OF (bound, io_max_size (img->io) >> geo->cluster_bits);
  if (img->anchor.l1.nr > 0)
    bound = MIN_OF (bound, img->anchor.l1.nr * geo->l2_entries);
  img->alloc.bound = bound;
}

/* Keeps NR clusters from HOST_IDX on, which hold a table, from being found
 * free. */
static void
keep (struct qcow2_image *img, uint64_t host_idx, uint64_t nr)
{
  const uint64_t limit = qcow2_host_end (img);

  if (host_idx == 0 || host_idx >= limit)
    return;
  nr = MIN_OF (nr, limit - host_idx);
  img->alloc.frontier = MAX_OF (img->alloc.frontier, host_idx + nr);
  set_busy (&img->alloc, host_idx, nr);
}

/* Keeps T, and the tables that it names, from being found free by the scan or
 * lying past the frontier: they are in use, whatever a damaged refcount
 * says. */
static void
keep_tables (struct qcow2_image *img, const struct qcow2_flat *t)
{
  unsigned bits = img->header.geo.cluster_bits;
  uint64_t end = div_round_up (t->host_off + t->nr * sizeof (be64),
                               img->header.geo.cluster_size);

  for (uint64_t i = 0; i < t->nr; ++i)
    keep (img, (t->v[i] & QCOW2_OFFSET_MASK) >> bits, 1);
  keep (img, t->host_off >> bits, end - (t->host_off >> bits));
}

int
qcow2_alloc_init (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  int r = 0;

  memset (a, 0, sizeof *a);
  a->frontier = 1;
  a->scan_end = UINT64_MAX;
  set_bound (img);
  a->free = qcow2_bitset_new ();
  a->busy = qcow2_bitset_new ();
  a->stale = qcow2_bitset_new ();
  a->suspect = qcow2_bitset_new ();
  a->garbage = qcow2_bitset_new ();
  a->released = qcow2_bitset_new ();
  if (!a->free || !a->busy || !a->stale || !a->suspect || !a->garbage ||
      !a->released)
    r = -ENOMEM;
  if (r == 0)
    r = find_tail (img);
  if (r == 0)
    take_in_short_tail (img);
  if (r == 0 && img->writable) {
    keep_tables (img, &img->l1);
    keep_tables (img, &img->reftable);
    keep_tables (img, &img->anchor.l1);
  }
  if (r < 0)
    qcow2_alloc_free (img);
  return r;
}

void
qcow2_alloc_free (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;

  qcow2_bitset_free (a->free);
  qcow2_bitset_free (a->busy);
  qcow2_bitset_free (a->stale);
  qcow2_bitset_free (a->suspect);
  qcow2_bitset_free (a->garbage);
  qcow2_bitset_free (a->released);
  free (a->q);
  memset (a, 0, sizeof *a);
}

void
qcow2_alloc_set_bound_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  set_bound (img);
}

/* --- States -------------------------------------------------------------- */

void
qcow2_alloc_fix_scan_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  if (img->alloc.scan_end == UINT64_MAX)
    img->alloc.scan_end = img->alloc.frontier;
}

/* Removes clusters from `free`, and so from `stale` and `suspect`. */
static void
not_free (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  qcow2_bitset_clear (a->free, host_idx, count);
  qcow2_stale_clear (a, host_idx, count);
}

void
qcow2_alloc_used_locked (struct qcow2_image *img, uint64_t host_idx,
                         uint64_t count)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  not_free (a, host_idx, count);
  a->frontier = MAX_OF (a->frontier, host_idx + count);
}

/* Returns how many of the clusters, from the first one on, can be free. */
static uint64_t
can_be_free (const struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  uint64_t end = MIN_OF (host_idx + count, MIN_OF (a->bound, a->frontier));

  return end > host_idx ? end - host_idx : 0;
}

void
qcow2_alloc_found_free_locked (struct qcow2_image *img, uint64_t host_idx,
                               uint64_t count)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  count = can_be_free (a, host_idx, count);
  /* If there is no memory, they are lost until the next open. */
  if (qcow2_bitset_set (a->free, host_idx, count) == 0)
    qcow2_stale_put (a, host_idx, count);
}

/* Turns suspects that were freed in this session into stale clusters: nothing
 * refers to them. */
static void
trust_released (struct qcow2_alloc *a, uint64_t first, uint64_t end)
{
  uint64_t n;

  for (; (first = qcow2_bitset_next (a->released, first)) < end; first += n) {
    n = qcow2_bitset_run (a->released, first, end - first);
    qcow2_bitset_clear (a->released, first, n);
    qcow2_bitset_clear (a->suspect, first, n);
    qcow2_stale_put (a, first, n);
  }
}

void
qcow2_alloc_scanned_free_locked (struct qcow2_image *img, uint64_t host_idx,
                                 uint64_t count)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  count = can_be_free (a, host_idx, count);
  if (qcow2_bitset_set (a->free, host_idx, count) < 0)
    return;
  qcow2_suspect_put (a, host_idx, count);
  trust_released (a, host_idx, host_idx + count);
}

void
qcow2_alloc_keep_locked (struct qcow2_image *img, uint64_t host_idx,
                         uint64_t count)
{
  assert (lock_held (&img->lock));
  set_busy (&img->alloc, host_idx, count);
}

/* --- Reservation --------------------------------------------------------- */

/* Finds a run of at most WANTED free clusters at or after *AT, and moves *AT
 * behind it.  Returns false if there is none. */
static bool
next_run (const struct qcow2_alloc *a, uint64_t *at, uint64_t wanted,
          struct qcow2_run *run)
{
  uint64_t idx = qcow2_bitset_next (a->free, *at);

  if (idx == QCOW2_BITSET_NONE)
    return false;
  run->host_idx = idx;
  run->count = qcow2_bitset_run (a->free, idx, wanted);
  *at = idx + run->count;
  return true;
}

/* Returns the first run of WANTED free clusters from the cursor on, wrapping
 * around at the end, or the longest of the first MAX_LOOK runs.  A count of 0
 * means that there is none. */
static struct qcow2_run
find_run (const struct qcow2_alloc *a, uint64_t wanted, unsigned max_look)
{
  struct qcow2_run best = { 0 }, run = { 0 };
  uint64_t at = a->cursor;
  bool wrapped = false;

  for (unsigned look = 0; look < max_look && best.count < wanted; ) {
    if (wrapped && at >= a->cursor)
      break;
    if (!next_run (a, &at, wanted, &run)) {
      if (wrapped)
        break;
      wrapped = true;
      at = 0;
      continue;
    }
    look++;
    if (run.count > best.count)
      best = run;
  }
  return best;
}

static void
take (struct qcow2_alloc *a, const struct qcow2_run *run)
{
  not_free (a, run->host_idx, run->count);
  a->cursor = run->host_idx + run->count;
}

static uint64_t
room (const struct qcow2_alloc *a)
{
  return a->bound > a->frontier ? a->bound - a->frontier : 0;
}

/* Reserves a run, of at most WANTED clusters. */
static int
reserve_run (struct qcow2_image *img, uint64_t wanted, struct qcow2_run *run)
{
  struct qcow2_alloc *a = &img->alloc;

  *run = find_run (a, wanted, MAX_LOOK);
  if (run->count > 0) {
    take (a, run);
    return 0;
  }
  run->count = MIN_OF (wanted, room (a));
  if (run->count == 0)
    return -ENOSPC;
  run->host_idx = a->frontier;
  a->frontier += run->count;
  return 0;
}

/* Returns whether a write of a connection that was lost may still reach the run. */
static bool
is_tainted (const struct qcow2_image *img, const struct qcow2_run *run)
{
  const unsigned bits = img->header.geo.cluster_bits;

  return io_tainted (img->io, run->host_idx << bits, run->count << bits);
}

/* Runs that are tainted stay reserved: this session does not use them. */
int
qcow2_reserve_locked (struct qcow2_image *img, uint64_t wanted,
                      struct qcow2_run *run)
{
  int r;

  assert (lock_held (&img->lock));
  qcow2_alloc_fix_scan_locked (img);
  do
    r = reserve_run (img, MAX_OF (wanted, 1), run);
  while (r == 0 && is_tainted (img, run));
  return r;
}

/* The cursor skips 24 times each 1, 2, 4... 1024 clusters: 256 tries see
 * something of every 2 MiB in 200 MB of free clusters of 4 KiB. */
#define SKIP_STEPS 24
#define SKIP_MAX 10

void
qcow2_skip_locked (struct qcow2_image *img, unsigned failed)
{
  assert (lock_held (&img->lock));
  img->alloc.cursor += (UINT64_C (1) << MIN_OF (failed / SKIP_STEPS, SKIP_MAX))
    - 1;
}

bool
qcow2_reserve_one_locked (struct qcow2_image *img, uint64_t host_idx)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  if (qcow2_bitset_next (a->free, host_idx) != host_idx ||
      is_tainted (img, &(struct qcow2_run) { .host_idx = host_idx, .count = 1 }))
    return false;
  not_free (a, host_idx, 1);
  return true;
}

void
qcow2_unreserve_locked (struct qcow2_image *img, const struct qcow2_run *run)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  qcow2_alloc_found_free_locked (img, run->host_idx, run->count);
  /* Then a reservation that is repeated after -EAGAIN gets the same cluster. */
  if (a->cursor == run->host_idx + run->count)
    a->cursor = run->host_idx;
}

void
qcow2_unreserve_unbacked_locked (struct qcow2_image *img,
                                 const struct qcow2_run *run)
{
  assert (lock_held (&img->lock));
  qcow2_alloc_found_free_locked (img, run->host_idx, run->count);
}

/* Reserves COUNT clusters in one run. */
static int
reserve_area (struct qcow2_image *img, uint64_t count, struct qcow2_run *run)
{
  struct qcow2_alloc *a = &img->alloc;

  *run = find_run (a, count, MAX_LOOK_AREA);
  if (run->count >= count) {
    take (a, run);
    return 0;
  }
  if (room (a) < count)
    return -ENOSPC;
  *run = (struct qcow2_run) { .host_idx = a->frontier, .count = count };
  a->frontier += count;
  return 0;
}

int
qcow2_reserve_area_locked (struct qcow2_image *img, uint64_t count,
                           uint64_t *host_idx)
{
  struct qcow2_run run;
  int r;

  assert (lock_held (&img->lock));
  if (count == 0)
    return -EINVAL;
  qcow2_alloc_fix_scan_locked (img);
  do
    r = reserve_area (img, count, &run);
  while (r == 0 && is_tainted (img, &run));
  if (r == 0)
    *host_idx = run.host_idx;
  return r;
}

/* Returns the number of free clusters, including those past the frontier. */
static uint64_t
all_free (const struct qcow2_alloc *a)
{
  return qcow2_bitset_count (a->free) + room (a);
}

/* Finds COUNT contiguous free clusters.  Returns false if it met none.  Each
 * call continues where the last one ended, so that over time the whole file is
 * looked at, but no call takes long. */
static bool
find_whole_run (struct qcow2_alloc *a, uint64_t count, uint64_t *host_idx)
{
  struct qcow2_run run;

  for (unsigned look = 0; look < MAX_LOOK_RUN; look++) {
    if (!next_run (a, &a->run_cursor, count, &run)) {
      a->run_cursor = 0;
      return false;
    }
    *host_idx = run.host_idx;
    if (run.count == count)
      return true;
  }
  return false;
}

int
qcow2_reserve_run_locked (struct qcow2_image *img, uint64_t count,
                          uint64_t end, uint64_t keep, uint64_t *host_idx)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock) && count > 0);
  qcow2_alloc_fix_scan_locked (img);
  if (all_free (a) < keep || all_free (a) - keep < count)
    return -ENOSPC;
  if (find_whole_run (a, count, host_idx)) {
    not_free (a, *host_idx, count);
    return 0;
  }
  if (room (a) < count || end < count || a->frontier > end - count)
    return -ENOSPC;
  *host_idx = a->frontier;
  a->frontier += count;
  return 0;
}

uint64_t
qcow2_frontier_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.frontier;
}

uint64_t
qcow2_host_frontier (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_frontier_locked (img);
}

uint64_t
qcow2_in_use_locked (struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t idle = qcow2_bitset_count (a->free) + a->nr_quarantined;

  assert (lock_held (&img->lock));
  return a->frontier > idle ? a->frontier - idle : 0;
}

size_t
qcow2_alloc_memory (const struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;

  return qcow2_bitset_memory (a->free) + qcow2_bitset_memory (a->busy) +
    qcow2_bitset_memory (a->stale) + qcow2_bitset_memory (a->suspect) +
    qcow2_bitset_memory (a->garbage) + qcow2_bitset_memory (a->released) +
    a->q_max * sizeof *a->q;
}

/* --- Emptying ------------------------------------------------------------- */

size_t
qcow2_take_stale_locked (struct qcow2_image *img, uint64_t *from,
                         uint64_t clusters, struct qcow2_run *runs, size_t max)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t idx;
  size_t n = 0;

  assert (lock_held (&img->lock));
  while (n < max && clusters > 0) {
    idx = qcow2_bitset_next (a->stale, *from);
    if (idx == QCOW2_BITSET_NONE) {
      *from = 0;
      break;
    }
    runs[n] = (struct qcow2_run) {
      .host_idx = idx, .count = qcow2_bitset_run (a->stale, idx, clusters),
      .emptied = true };
    *from = idx + runs[n].count;
    clusters -= runs[n].count;
    qcow2_bitset_clear (a->free, idx, runs[n].count);
    qcow2_stale_clear (a, idx, runs[n].count);
    n++;
  }
  return n;
}

void
qcow2_put_emptied_locked (struct qcow2_image *img, const struct qcow2_run *runs,
                          size_t nr)
{
  assert (lock_held (&img->lock));
  for (size_t i = 0; i < nr; ++i) {
    qcow2_alloc_found_free_locked (img, runs[i].host_idx, runs[i].count);
    if (runs[i].emptied)
      qcow2_stale_clear (&img->alloc, runs[i].host_idx, runs[i].count);
  }
}
