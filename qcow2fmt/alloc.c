/* SPDX-License-Identifier: BSD-3-Clause */
/* The allocator: which host clusters are free, and which are free but must
 * not be used yet.
 *
 * A cluster with refcount 0 is in one of these places:
 *
 *   not scanned   the file's refcounts there were not looked at yet (scan.c)
 *   known free    a bit in `free`; may be reserved.  Whether the host may hold
 *                 data there is stale.c's
 *   reserved      some caller's; nothing here says so but the missing bit
 *   quarantined   freed by a record that is not known durable yet (law 6)
 *   kept          not to be used before the next open
 *   past the frontier
 *
 * Reserving takes known free clusters next-fit, else moves the frontier.  The
 * frontier never passes the bound: what refcount table and anchor can hold,
 * and on a device its end.  What a cluster held that is free is unknown, past
 * the frontier as well: whoever takes one writes all of it, or reads none.
 *
 * The scan trusts refcounts, so in the part that is not scanned, nothing
 * with refcount 0 may be in use or waiting: what is quarantined or kept
 * there is marked busy, and what is released there is left for the scan to
 * find.  Hence reserved clusters never lie in that part.  Its end is the
 * frontier at the time of the first reservation or scan: after the replay,
 * which may move the frontier.
 *
 * While a new place of refcount table, snapshot table or anchor L1 is not in
 * the file's header, nothing leaves quarantine: the old place, freed by the
 * same group, is what the next open reads.
 *
 * Where memory for a bit is wanting, a cluster is lost until the next open,
 * never used too early: if a busy bit cannot be set, the scan ends.
 *
 * Protected by the image's lock.  The one read, at open, is of refcount
 * blocks, from the last one down to one that counts something.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "bitmap.h"
#include "checked.h"
#include "image.h"

/* Runs of free clusters looked at for one reservation, of some clusters, and
 * of a whole area. */
#define MAX_LOOK 64
#define MAX_LOOK_AREA 65536

/* Refcount blocks read at open at the most.  Where more of them count nothing,
 * the frontier is put behind the rest, and the scan finds what is free there. */
#define MAX_TAIL_BLOCKS 4096

/* --- Open ---------------------------------------------------------------- */

/* Keep the scan away from clusters that it would take for free. */
static void
set_busy (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  uint64_t first = MAX_OF (host_idx, a->scan_next);
  uint64_t end = MIN_OF (host_idx + count, a->scan_end);

  if (first < end && qcow2_bitmap_set (a->busy, first, end - first) < 0)
    a->scan_next = a->scan_end = a->frontier;
}

/* If block B counts anything, the frontier goes behind that: 1.  One that
 * can't be read may count all that it could. */
static int
tail_block (struct qcow2_image *img, uint64_t b, uint8_t *buf)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t off = img->reftable.v[b];
  int r;

  if (off == 0 || off % geo->cluster_size != 0 || off >= QCOW2_MAX_HOST_OFF)
    return 0;                  /* a bad one stops whoever needs it */
  r = io_pread (img->io, buf, geo->cluster_size, off);
  for (uint64_t i = geo->refblock_entries; i-- > 0; )
    if (r < 0 || qcow2_refcount_get (geo->refcount_bits, buf, i) != 0) {
      img->alloc.frontier = MAX_OF (img->alloc.frontier,
                                    b * geo->refblock_entries + i + 1);
      return 1;
    }
  return 0;
}

/* The frontier comes from what is counted, not from the size of the file: a
 * device, or a file that was made large, goes on behind it, with bytes that
 * nobody knows; and counted clusters may lie past the end of the file, written
 * never, or lost with a tail that was cut off. */
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

/* A short tail of a file is what a crash left there: the scan finds it free, so
 * that it is used again or given back.  A long one is somebody's wish, and too
 * much to look at. */
#ifdef DEDUP_MUTATIONS         /* the crash harness has small images */
#define SHORT_TAIL (UINT64_C (256) << 10)
#else
#define SHORT_TAIL (UINT64_C (1) << 30)
#endif

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

/* NR clusters from HOST_IDX on hold a table. */
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

/* The tables that T names, and T itself, are in use, whatever a damaged
 * refcount says: neither the scan nor the frontier shall find them free. */
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

uint64_t
qcow2_host_end (const struct qcow2_image *img)
{
  return MAX_OF (div_round_up (img->file_size, img->header.geo.cluster_size),
                 img->alloc.frontier);
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
  a->free = qcow2_bitmap_new ();
  a->busy = qcow2_bitmap_new ();
  a->stale = qcow2_bitmap_new ();
  a->suspect = qcow2_bitmap_new ();
  a->released = qcow2_bitmap_new ();
  if (!a->free || !a->busy || !a->stale || !a->suspect || !a->released)
    r = -ENOMEM;
  if (r == 0)
    r = qcow2_anchor_resize (img, 0);
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
  qcow2_bitmap_free (img->alloc.free);
  qcow2_bitmap_free (img->alloc.busy);
  qcow2_stale_free (img);
  free (img->alloc.q);
  memset (&img->alloc, 0, sizeof img->alloc);
  qcow2_anchor_free (img);
  qcow2_holds_free (img);
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

/* These clusters are not in `free` any more. */
static void
not_free (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  qcow2_bitmap_clear (a->free, host_idx, count);
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

/* How many of them can be free? */
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
  /* What has no room is lost until the next open. */
  if (qcow2_bitmap_set (a->free, host_idx, count) == 0)
    qcow2_stale_put (a, host_idx, count);
}

/* What was freed in this session is nobody's. */
static void
trust_released (struct qcow2_alloc *a, uint64_t first, uint64_t end)
{
  uint64_t n;

  for (; (first = qcow2_bitmap_next (a->released, first)) < end; first += n) {
    n = qcow2_bitmap_run (a->released, first, end - first);
    qcow2_bitmap_clear (a->released, first, n);
    qcow2_bitmap_clear (a->suspect, first, n);
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
  if (qcow2_bitmap_set (a->free, host_idx, count) < 0)
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

/* Offer a run of at most WANTED free clusters at or after AT; moves AT. */
static bool
next_run (const struct qcow2_alloc *a, uint64_t *at, uint64_t wanted,
          struct qcow2_run *run)
{
  uint64_t idx = qcow2_bitmap_next (a->free, *at);

  if (idx == QCOW2_BITMAP_NONE)
    return false;
  run->host_idx = idx;
  run->count = qcow2_bitmap_run (a->free, idx, wanted);
  *at = idx + run->count;
  return true;
}

/* The first run of WANTED free clusters from the cursor on and around, or
 * the longest one met on the way; a count of 0 is none. */
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

int
qcow2_reserve_locked (struct qcow2_image *img, uint64_t wanted,
                      struct qcow2_run *run)
{
  struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  qcow2_alloc_fix_scan_locked (img);
  wanted = MAX_OF (wanted, 1);
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

/* 24 steps each of 1, 2, 4... 1024 clusters: 256 tries see something of every
 * 2 MiB in 200 MB of free clusters of 4 KiB. */
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
  if (qcow2_bitmap_next (a->free, host_idx) != host_idx)
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
  /* So that asking again after -EAGAIN gives the same cluster again. */
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

int
qcow2_reserve_area_locked (struct qcow2_image *img, uint64_t count,
                           uint64_t *host_idx)
{
  struct qcow2_alloc *a = &img->alloc;
  struct qcow2_run run;

  assert (lock_held (&img->lock));
  if (count == 0)
    return -EINVAL;
  qcow2_alloc_fix_scan_locked (img);
  run = find_run (a, count, MAX_LOOK_AREA);
  if (run.count >= count)
    take (a, &run);
  else if (room (a) >= count) {
    run.host_idx = a->frontier;
    a->frontier += count;
  }
  else
    return -ENOSPC;
  *host_idx = run.host_idx;
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

size_t
qcow2_alloc_memory (const struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;

  return qcow2_bitmap_memory (a->free) + qcow2_bitmap_memory (a->busy) +
    qcow2_bitmap_memory (a->stale) + qcow2_bitmap_memory (a->suspect) +
    qcow2_bitmap_memory (a->released) +
    a->q_max * sizeof *a->q + img->holds.max * sizeof *img->holds.v;
}

/* --- Quarantine ---------------------------------------------------------- */

static struct qcow2_quarantined *
ring_at (const struct qcow2_alloc *a, size_t i)
{
  return &a->q[(a->q_head + i) % a->q_max];
}

static int
grow_ring (struct qcow2_alloc *a)
{
  size_t max = a->q_max ? a->q_max * 2 : 64;
  struct qcow2_quarantined *q = calloc (max, sizeof *q);

  if (!q)
    return -ENOMEM;
  for (size_t i = 0; i < a->q_len; ++i)
    q[i] = *ring_at (a, i);
  free (a->q);
  a->q = q;
  a->q_max = max;
  a->q_head = 0;
  return 0;
}

/* Make one run of *A and B if they touch and agree. */
static bool
join (struct qcow2_run *a, const struct qcow2_run *b)
{
  if (a->trimmed != b->trimmed)
    return false;
  if (b->host_idx + b->count == a->host_idx)
    a->host_idx = b->host_idx;
  else if (a->host_idx + a->count != b->host_idx)
    return false;
  a->count += b->count;
  return true;
}

void
qcow2_quarantine_locked (struct qcow2_image *img, const struct qcow2_run *run,
                         uint64_t seq)
{
  struct qcow2_alloc *a = &img->alloc;
  struct qcow2_quarantined *last;

  assert (lock_held (&img->lock));
  if (run->count == 0)
    return;
  if (mutation (MUTATION_LAW_6_NO_QUARANTINE)) {
    qcow2_alloc_found_free_locked (img, run->host_idx, run->count);
    return;
  }
  a->frontier = MAX_OF (a->frontier, run->host_idx + run->count);
  set_busy (a, run->host_idx, run->count);
  last = a->q_len > 0 ? ring_at (a, a->q_len - 1) : NULL;
  if (last && last->seq > seq)
    seq = last->seq;           /* keep the order: later is safe */
  if (!last || last->seq != seq || !join (&last->run, run)) {
    if (a->q_len == a->q_max && grow_ring (a) < 0) {
      a->frees_lost = true;    /* until the next open */
      return;
    }
    a->q_len++;
    *ring_at (a, a->q_len - 1) = (struct qcow2_quarantined) { seq, *run };
  }
  a->nr_quarantined += run->count;
}

static int
by_host_idx (const void *a, const void *b)
{
  const struct qcow2_run *ra = a, *rb = b;

  return (ra->host_idx > rb->host_idx) - (ra->host_idx < rb->host_idx);
}

size_t
qcow2_coalesce (struct qcow2_run *runs, size_t nr)
{
  size_t n = 0;

  qsort (runs, nr, sizeof *runs, by_host_idx);
  for (size_t i = 0; i < nr; ++i)
    if (n == 0 || !join (&runs[n - 1], &runs[i]))
      runs[n++] = runs[i];
  return n;
}

size_t
qcow2_quarantine_take_locked (struct qcow2_image *img, uint64_t seq,
                              struct qcow2_run *runs, size_t max)
{
  struct qcow2_alloc *a = &img->alloc;
  size_t n;

  assert (lock_held (&img->lock));
  if (img->header_dirty || img->header_writing)
    return 0;
  for (n = 0; n < max && a->q_len > 0 && a->q[a->q_head].seq <= seq; ++n) {
    runs[n] = a->q[a->q_head].run;
    a->nr_quarantined -= runs[n].count;
    a->q_head = (a->q_head + 1) % a->q_max;
    a->q_len--;
  }
  return n;
}

/* What lies in the part that is not scanned will be no suspect. */
static void
remember_released (struct qcow2_alloc *a, uint64_t first, uint64_t end)
{
  int r;

  first = MAX_OF (first, a->scan_next);
  end = MIN_OF (end, a->scan_end);
  if (first < end && (r = qcow2_bitmap_set (a->released, first, end - first)) < 0)
    return;                      /* then it is one */
}

void
qcow2_release_locked (struct qcow2_image *img, const struct qcow2_run *runs,
                      size_t nr)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t first, end;

  assert (lock_held (&img->lock));
  for (size_t i = 0; i < nr; ++i) {
    first = runs[i].host_idx;
    end = first + runs[i].count;
    qcow2_bitmap_clear (a->busy, first, runs[i].count);
    /* The part in [scan_next, scan_end) is for the scan to find. */
    remember_released (a, first, end);
    if (first < a->scan_next)
      qcow2_alloc_found_free_locked (img, first,
                                     MIN_OF (end, a->scan_next) - first);
    first = MAX_OF (first, a->scan_end);
    if (first < end)
      qcow2_alloc_found_free_locked (img, first, end - first);
    if (runs[i].emptied)
      qcow2_stale_clear (a, runs[i].host_idx, runs[i].count);
  }
}

uint64_t
qcow2_quarantined_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.nr_quarantined;
}

uint64_t
qcow2_in_use_locked (struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t idle = qcow2_bitmap_count (a->free) + a->nr_quarantined;

  assert (lock_held (&img->lock));
  return a->frontier > idle ? a->frontier - idle : 0;
}

bool
qcow2_frees_lost_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.frees_lost;
}
