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

  if (r == 0 && (!can_drop (host_idx, *refcount, *anchored) ||
                 qcow2_guarded_locked (txn->img, host_idx, 1)))
    r = -EINVAL;
  return r;
}

static bool
misaligned (const struct qcow2_image *img, uint64_t entry)
{
  return !(entry & QCOW2_L2_COMPRESSED) &&
    (entry & QCOW2_OFFSET_MASK) % img->header.geo.cluster_size != 0;
}

int
qcow2_prepare_drop_locked (struct qcow2_txn *txn, uint64_t entry)
{
  struct qcow2_image *img = txn->img;
  uint64_t idx, count, refcount;
  bool anchored;
  int r = 0;

  assert (lock_held (&img->lock));
  if (misaligned (img, entry))
    return -EINVAL;
  if (!clusters_of (img, entry, &idx, &count))
    return 0;
  for (uint64_t i = 0; i < count && r == 0; ++i)
    r = look (txn, idx + i, &refcount, &anchored);
  if (r == 0 && img->direct.on)
    return qcow2_direct_reserve_locked (img);
  if (r == 0 && !(entry & QCOW2_L2_COMPRESSED) && !anchored && refcount > 1)
    r = qcow2_prepare_host_locked (txn, idx, 1);
  return r;
}

static void
free_cluster (struct qcow2_txn *txn, uint64_t host_idx, bool trimmed)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_run run = { .host_idx = host_idx, .count = 1,
                           .trimmed = trimmed };

  qcow2_set_refcount_locked (txn, host_idx, 0, false);
  qcow2_quarantine_locked (img, &run, img->log.seq_locked ?
                           img->log.seq_locked (img->log.opaque) : 0);
}

static void
drop_compressed (struct qcow2_txn *txn, uint64_t host_idx, bool trimmed)
{
  uint64_t refcount;
  bool anchored;
  int r = look (txn, host_idx, &refcount, &anchored);

  assert (r == 0);
  (void) r;
  if (refcount == 1)
    free_cluster (txn, host_idx, trimmed);
  else
    qcow2_set_refcount_locked (txn, host_idx, refcount - 1, anchored);
}

static void
drop_data (struct qcow2_txn *txn, uint64_t host_idx, bool trimmed)
{
  struct qcow2_image *img = txn->img;
  uint64_t refcount;
  bool anchored;
  int r = look (txn, host_idx, &refcount, &anchored);

  assert (r == 0);
  (void) r;
  if (anchored && refcount == 2 && !qcow2_is_held_locked (img, host_idx))
    free_cluster (txn, host_idx, trimmed);
  else if (anchored)
    qcow2_set_refcount_locked (txn, host_idx, refcount - 1, true);
  else if (refcount == 1)
    free_cluster (txn, host_idx, trimmed);
  else if (img->anchor.l1.nr > 0)
    qcow2_set_refcount_locked (txn, host_idx, refcount, true);
  else
    qcow2_set_refcount_locked (txn, host_idx, refcount - 1, false);
}

int
qcow2_drop_locked (struct qcow2_txn *txn, uint64_t entry, bool trimmed)
{
  struct qcow2_image *img = txn->img;
  uint64_t idx, count, refcount;
  bool anchored;
  int r = 0;

  assert (lock_held (&img->lock));
  if (misaligned (img, entry))
    return -EINVAL;
  if (!clusters_of (img, entry, &idx, &count))
    return 0;
  for (uint64_t i = 0; i < count && r == 0; ++i)
    r = look (txn, idx + i, &refcount, &anchored);
  assert (r != -EAGAIN);       /* prepared under this hold of the lock */
  if (r < 0)
    return r;
  if (img->direct.on) {
    qcow2_direct_drop_locked (img, &(struct qcow2_run) {
        idx, count, trimmed });
    return 0;
  }
  if (!(entry & QCOW2_L2_COMPRESSED))
    drop_data (txn, idx, trimmed);
  else
    for (uint64_t i = 0; i < count; ++i)
      drop_compressed (txn, idx + i, trimmed);
  return 0;
}
