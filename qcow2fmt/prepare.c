/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the refcount blocks and anchor tables that a change needs.
 *
 * A new table is put into a cluster of table-reserve.c.  Each step is a
 * complete change, which is applied and reported to the log.
 *
 * Refcount blocks.  A missing block is made in a newly reserved cluster C.
 * C's own refcount must be in a block that exists, or in the new block itself
 * if that covers C.  If the block of C is missing as well, C becomes that
 * block first, and the search starts over: the next cluster then most likely
 * lies in the range of the new block.  So there is no recursion.  A cluster
 * that the caller has reserved is never taken, because it is reserved.  The
 * refcount table itself never grows here: the allocator's bound keeps clusters
 * inside the range that it covers (plan.c makes it larger at open).
 *
 * It has no threads; the image's lock protects it.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

/* --- Refcount blocks and anchor tables ------------------------------------- */

/* Makes refcount block B in cluster C, which is reserved.  The block of C is
 * B, or is pinned. */
static int
make_block (struct qcow2_txn *txn, uint64_t b, uint64_t c)
{
  struct qcow2_change change = {
    .type = QCOW2_CHANGE_REFBLOCK, .table_idx = b,
    .host_off = c << txn->img->header.geo.cluster_bits,
  };
  int r = qcow2_anchor_need_range_locked (txn, c, 1);

  if (r == 0)
    r = qcow2_change_locked (txn, &change);
  if (r == 0)
    qcow2_set_refcount_locked (txn, c, 1, false);
  return r;
}

/* Makes block B, or the missing block of the cluster that B would be made
 * in. */
static int
make_some_block (struct qcow2_txn *txn, uint64_t b)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *t;
  struct qcow2_run run;
  uint64_t own;
  int r = qcow2_table_reserve_take_locked (txn, &run);

  if (r < 0)
    return r;
  own = qcow2_refblock_of (img, run.host_idx);
  if (!qcow2_has_refblock (img, own))
    r = make_block (txn, own, run.host_idx);
  else {
    r = qcow2_refblock_locked (txn, run.host_idx, &t);
    if (r == 0)
      r = make_block (txn, b, run.host_idx);
  }
  if (r < 0)
    qcow2_table_reserve_put_locked (img, &run);
  return r;
}

/* Makes the refcount block of HOST_IDX if it is missing, and pins its slice. */
static int
need_block (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  uint64_t b = qcow2_refblock_of (img, host_idx);
  struct qcow2_slice *t;
  int r = 0;

  if (b >= img->reftable.nr)
    return -ENOSPC;
  while (!qcow2_has_refblock (img, b) && r == 0)
    r = make_some_block (txn, b);
  if (r == 0)
    r = qcow2_refblock_locked (txn, host_idx, &t);
  return r;
}

int
qcow2_prepare_meta_locked (struct qcow2_txn *txn, uint64_t host_idx)
{
  int r;

  assert (lock_held (&txn->img->lock));
  r = need_block (txn, host_idx);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, host_idx, 1);
  return r;
}

/* Makes the anchor table of part P. */
static int
make_anchor_table (struct qcow2_txn *txn, uint64_t p)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_change change = {
    .type = QCOW2_CHANGE_ANCHOR_TABLE, .table_idx = p,
  };
  struct qcow2_run run;
  int r = qcow2_table_reserve_take_locked (txn, &run);

  if (r < 0)
    return r;
  change.host_off = run.host_idx << img->header.geo.cluster_bits;
  r = qcow2_prepare_meta_locked (txn, run.host_idx);
  if (r == 0)
    r = qcow2_change_locked (txn, &change);
  if (r == 0)
    qcow2_set_refcount_locked (txn, run.host_idx, 1, false);
  else
    qcow2_table_reserve_put_locked (img, &run);
  return r;
}

static int
need_anchor_table (struct qcow2_txn *txn, uint64_t p)
{
  int r = 0;

  if (p >= txn->img->anchor.l1.nr)
    return -ENOSPC;
  if (!qcow2_anchor_has_part (txn->img, p))
    r = make_anchor_table (txn, p);
  if (r == 0)
    r = qcow2_anchor_need_locked (txn, p);
  return r;
}

int
qcow2_prepare_host_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           uint64_t count)
{
  struct qcow2_image *img = txn->img;
  uint64_t per = qcow2_refcount_slice (&img->header.geo), last, i;
  int r = 0;

  assert (lock_held (&img->lock));
  if (count == 0)
    return 0;
  if (__builtin_add_overflow (host_idx, count - 1, &last))
    return -EINVAL;
  for (i = host_idx / per; i <= last / per && r == 0; ++i)
    r = need_block (txn, i * per);
  if (img->anchor.l1.nr == 0)
    return r;
  for (i = qcow2_anchor_part_of (img, host_idx);
       i <= qcow2_anchor_part_of (img, last) && r == 0; ++i)
    r = need_anchor_table (txn, i);
  return r;
}
