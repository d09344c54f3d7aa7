/* SPDX-License-Identifier: BSD-3-Clause */
/* Dropping the reference that an L2 entry's old value was.
 *
 *   compressed              each host cluster it touches: refcount - 1
 *   anchored                refcount - 1; left with the anchor's own: freed,
 *                           unless held (hold.c frees it later)
 *   not anchored, 1         freed
 *   not anchored, above 1   the reference passes to the anchor: the refcount
 *                           stays, and nobody has to know which of the other
 *                           owners would now have to have COPIED
 *   a table (guard.c)       refcount - 1, but the table's own reference stays, and
 *                           the anchor's.  An L2 table of the disk that is not
 *                           written in place is copied before: then the
 *                           cluster is one of the above
 *
 * Freed clusters go to quarantine with the log's present sequence number
 * (law 6).  A request prepares all its drops, then makes all its changes under
 * the same hold of the lock: what was prepared stays pinned, so dropping needs
 * no load, also where two drops meet in one cluster; each drop looks at the
 * refcount of its own moment.
 *
 * An unanchored refcount never grows (only held, anchored clusters are
 * linked), so "above 1" at a drop was true when it was prepared, and the
 * anchor table was made then.
 *
 * Protected by the image's lock.
 */
#include <errno.h>

#include "checked.h"
#include "image.h"

/* The host clusters that ENTRY refers to; false: none. */
static bool
clusters_of (const struct qcow2_image *img, uint64_t entry, uint64_t *first,
             uint64_t *count)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t off, len;

  if (entry & QCOW2_L2_COMPRESSED) {
    /* Both below 2^62: no overflow. */
    qcow2_compressed_extent (img, entry, &off, &len);
    *first = off >> geo->cluster_bits;
    *count = ((off + len - 1) >> geo->cluster_bits) - *first + 1;
    return true;
  }
  *first = (entry & QCOW2_OFFSET_MASK) >> geo->cluster_bits;
  *count = 1;
  return *first != 0;
}

/* Could one reference be dropped, beside the anchor's? */
static bool
can_drop (uint64_t host_idx, uint64_t refcount, bool anchored)
{
  return host_idx != 0 && refcount > (anchored ? 1 : 0);
}

static int
look (struct qcow2_txn *txn, uint64_t host_idx, uint64_t *refcount,
      bool *anchored)
{
  int r = qcow2_get_refcount_locked (txn, host_idx, refcount, anchored);

  if (r == 0 && !can_drop (host_idx, *refcount, *anchored) &&
      !qcow2_guard_stays_locked (txn->img, host_idx))
    r = -EINVAL;
  return r;
}

/* How many of NR clusters from HOST_IDX on are all in the guard, or none of
 * them?  Those that are, one by one. */
static uint64_t
guarded_alike (struct qcow2_image *img, uint64_t host_idx, uint64_t nr)
{
  uint64_t next = qcow2_next_guarded_locked (img, host_idx);

  return next == host_idx ? 1 : MIN_OF (nr, next - host_idx);
}

static bool
misaligned (const struct qcow2_image *img, uint64_t entry)
{
  return !(entry & QCOW2_L2_COMPRESSED) &&
    (entry & QCOW2_OFFSET_MASK) % img->header.geo.cluster_size != 0;
}

/* How many of at most NR clusters from HOST_IDX on are as the first one is,
 * and lie in its slice of the refcount block and its anchor part?  At least 1,
 * or -errno. */
static int
look_run (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr,
          uint64_t *count, uint64_t *refcount, bool *anchored)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *geo = &img->header.geo;
  struct qcow2_slice *block;
  uint64_t n;
  int r = look (txn, host_idx, refcount, anchored);

  if (r == 0)
    r = qcow2_refblock_locked (txn, host_idx, &block);
  if (r < 0)
    return r;
  nr = MIN_OF (nr, qcow2_refcount_slice (geo) -
               host_idx % qcow2_refcount_slice (geo));
  nr = MIN_OF (nr, geo->l2_entries - host_idx % geo->l2_entries);
  nr = guarded_alike (img, host_idx, nr);
  for (n = 1; n < nr; n++)
    if (qcow2_refblock_get_locked (img, block, host_idx + n) != *refcount ||
        qcow2_anchor_test_locked (img, host_idx + n) != *anchored)
      break;
  *count = n;
  return 0;
}

/* The disk's L2 tables in this cluster that are copied before they change: copy
 * them now. */
static int
copy_tables (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  int r = 0;

  if (!qcow2_guard_stays_locked (img, host_idx))
    return 0;
  for (uint64_t i = 0; i < img->l1.nr && r == 0; ++i)
    if ((img->l1.v[i] & QCOW2_OFFSET_MASK) >> g->cluster_bits == host_idx &&
        !(img->l1.v[i] & QCOW2_L2_COPIED) &&
        i * g->l2_entries < g->nr_clusters)
      r = qcow2_prepare_entry_locked (txn, QCOW2_ROOT_ACTIVE,
                                      i * g->l2_entries);
  return r;
}

/* Can a reference to each be dropped?  PREPARE: copy the disk's tables among
 * them.  TO_ANCHOR: make what passing them to the anchor needs. */
static int
look_all (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr, bool prepare,
          bool to_anchor)
{
  uint64_t n, refcount;
  bool anchored;
  int r = 0;

  for (; nr > 0; host_idx += n, nr -= n) {
    r = prepare ? copy_tables (txn, host_idx) : 0;
    if (r == 0)
      r = look_run (txn, host_idx, nr, &n, &refcount, &anchored);
    if (r == 0 && to_anchor && !anchored && refcount > 1)
      r = qcow2_prepare_host_locked (txn, host_idx, n);
    if (r < 0)
      break;
  }
  return r;
}

int
qcow2_prepare_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr)
{
  struct qcow2_image *img = txn->img;
  bool compressed = entry & QCOW2_L2_COMPRESSED;
  uint64_t idx, count;
  int r;

  assert (lock_held (&img->lock));
  if (misaligned (img, entry))
    return -EINVAL;
  if (!clusters_of (img, entry, &idx, &count))
    return 0;
  r = look_all (txn, idx, compressed ? count : nr, true,
                !compressed && !img->direct.on);
  return r == 0 && img->direct.on ? qcow2_direct_reserve_locked (img) : r;
}

static void
set_refcounts (struct qcow2_txn *txn, const struct qcow2_run *run,
               uint64_t refcount, bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = run->host_idx,
    .count = (uint32_t) run->count, .refcount = refcount,
    .anchored = anchored,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);             /* prepared */
  (void) r;
}

static void
free_run (struct qcow2_txn *txn, const struct qcow2_run *run)
{
  struct qcow2_image *img = txn->img;

  set_refcounts (txn, run, 0, false);
  if (qcow2_guard_left_locked (img, run->host_idx)) {   /* a run of one */
    qcow2_alloc_keep_locked (img, run->host_idx, run->count);
    return;
  }
  qcow2_quarantine_locked (img, run, img->log.seq_locked ?
                           img->log.seq_locked (img->log.opaque) : 0);
}

/* The cluster of a table that stays.  A reference that was never counted is
 * none to drop. */
static void
drop_table (struct qcow2_txn *txn, uint64_t host_idx, uint64_t refcount,
            bool anchored)
{
  struct qcow2_run run = { host_idx, 1, false };

  if (refcount > (anchored ? 2 : 1))
    set_refcounts (txn, &run, refcount - 1, anchored);
}

static void
drop_compressed (struct qcow2_txn *txn, uint64_t host_idx, bool trimmed)
{
  struct qcow2_run run = { host_idx, 1, trimmed };
  uint64_t refcount;
  bool anchored;
  int r = look (txn, host_idx, &refcount, &anchored);

  assert (r == 0);
  (void) r;
  if (qcow2_guard_stays_locked (txn->img, host_idx))
    drop_table (txn, host_idx, refcount, anchored);
  else if (refcount == 1)
    free_run (txn, &run);
  else
    set_refcounts (txn, &run, refcount - 1, anchored);
}

/* How many clusters of RUN are held, or not held, as the first one is? */
static uint64_t
same_holds (const struct qcow2_image *img, const struct qcow2_run *run,
            bool *held)
{
  uint64_t n = 1;

  *held = qcow2_is_held_locked (img, run->host_idx);
  if (img->holds.nr == 0)
    return run->count;
  while (n < run->count &&
         qcow2_is_held_locked (img, run->host_idx + n) == *held)
    n++;
  return n;
}

/* RUN's clusters are all alike. */
static void
drop_alike (struct qcow2_txn *txn, const struct qcow2_run *run,
            uint64_t refcount, bool anchored, bool held)
{
  if (anchored && refcount == 2 && !held)
    free_run (txn, run);
  else if (anchored)
    set_refcounts (txn, run, refcount - 1, true);
  else if (refcount == 1)
    free_run (txn, run);
  else if (txn->img->anchor.l1.nr > 0)
    set_refcounts (txn, run, refcount, true);
  else
    set_refcounts (txn, run, refcount - 1, false);
}

static void
drop_run (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr, bool trimmed)
{
  struct qcow2_run run = { host_idx, 0, trimmed };
  uint64_t refcount;
  bool anchored, held;
  int r;

  for (; nr > 0; run.host_idx += run.count, nr -= run.count) {
    r = look_run (txn, run.host_idx, nr, &run.count, &refcount, &anchored);
    assert (r == 0);           /* looked at before */
    (void) r;
    if (qcow2_guard_stays_locked (txn->img, run.host_idx)) {
      drop_table (txn, run.host_idx, refcount, anchored);
      continue;
    }
    run.count = same_holds (txn->img, &run, &held);
    drop_alike (txn, &run, refcount, anchored, held);
  }
}

int
qcow2_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr,
                   bool trimmed)
{
  struct qcow2_image *img = txn->img;
  bool compressed = entry & QCOW2_L2_COMPRESSED;
  uint64_t idx, count;
  int r;

  assert (lock_held (&img->lock));
  if (misaligned (img, entry))
    return -EINVAL;
  if (!clusters_of (img, entry, &idx, &count))
    return 0;
  if (!compressed)
    count = nr;
  /* Again: another drop of the same request may have met these clusters. */
  r = look_all (txn, idx, count, false, false);
  assert (r != -EAGAIN);       /* prepared under this hold of the lock */
  if (r < 0)
    return r;
  if (img->direct.on)
    qcow2_direct_drop_locked (img, &(struct qcow2_run) {
        idx, count, trimmed });
  else if (!compressed)
    drop_run (txn, idx, count, trimmed);
  else
    for (uint64_t i = 0; i < count; ++i)
      drop_compressed (txn, idx + i, trimmed);
  return 0;
}
