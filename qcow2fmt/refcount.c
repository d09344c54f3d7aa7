/* SPDX-License-Identifier: BSD-3-Clause */
/* Refcounts of host clusters, and making the tables that hold them.
 *
 * A refcount block that is missing is made of a freshly reserved cluster C.
 * C's own refcount has to live somewhere: in a block that exists, or in the
 * new block itself if that covers C.  If the block of C is missing as well,
 * C becomes *that* block first, and the search starts over: the next cluster
 * then most likely lies in the range just made.  So there is no recursion,
 * each step is a complete change (REFBLOCK, REFCOUNT), and a cluster that the
 * caller has reserved is never taken, because it is reserved.
 *
 * The refcount table itself never grows here: the allocator's bound keeps
 * clusters inside what it covers (plan.c makes it bigger at open).
 *
 * Protected by the image's lock.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

uint64_t
qcow2_refcount_get (unsigned bits, const uint8_t *block, uint64_t i)
{
  be16 w16;
  be32 w32;
  be64 w64;

  switch (bits) {
  case 8:
    return block[i];
  case 16:
    memcpy (&w16, block + i * 2, 2);
    return be16_load (w16);
  case 32:
    memcpy (&w32, block + i * 4, 4);
    return be32_load (w32);
  case 64:
    memcpy (&w64, block + i * 8, 8);
    return be64_load (w64);
  default:                     /* 1, 2, 4: the first is the least significant */
    return block[i * bits / 8] >> i * bits % 8 & ((1u << bits) - 1);
  }
}

void
qcow2_refcount_put (unsigned bits, uint8_t *block, uint64_t i, uint64_t value)
{
  be16 w16 = be16_make ((uint16_t) value);
  be32 w32 = be32_make ((uint32_t) value);
  be64 w64 = be64_make (value);
  unsigned shift, mask;

  switch (bits) {
  case 8:
    block[i] = (uint8_t) value;
    break;
  case 16:
    memcpy (block + i * 2, &w16, 2);
    break;
  case 32:
    memcpy (block + i * 4, &w32, 4);
    break;
  case 64:
    memcpy (block + i * 8, &w64, 8);
    break;
  default:
    shift = i * bits % 8;
    mask = ((1u << bits) - 1) << shift;
    block += i * bits / 8;
    *block = (uint8_t) ((*block & ~mask) | ((unsigned) value << shift & mask));
  }
}

uint64_t
qcow2_refcount_coverage (const struct qcow2_image *img)
{
  /* At most 2^20 entries (8 MiB) of 2^24 clusters each: no overflow. */
  return img->reftable.nr * img->header.geo.refblock_entries;
}

uint64_t
qcow2_countable_clusters (const struct qcow2_image *img)
{
  return qcow2_refcount_coverage (img);
}

static uint64_t
block_of (const struct qcow2_image *img, uint64_t host_idx)
{
  return host_idx / img->header.geo.refblock_entries;
}

static bool
has_block (const struct qcow2_image *img, uint64_t b)
{
  return b < img->reftable.nr && img->reftable.v[b] != 0;
}

/* A block is about to be read.  What the anchor says is data is no block: a
 * damaged refcount table must not lead to writing there.  Not while replaying,
 * when the one may be newer than the other.  -EAGAIN: it is not, and what is
 * missing is noted. */
static int
before_load (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_image *img = txn->img;
  uint64_t idx = host_off >> img->header.geo.cluster_bits;
  int r = 0;

  if (!img->replaying)
    r = qcow2_anchor_need_range_locked (txn, idx, 1);
  if (r < 0)
    return r;
  if (!img->replaying && qcow2_anchor_test_locked (img, idx))
    return -EIO;
  return -EAGAIN;
}

int
qcow2_refblock_locked (struct qcow2_txn *txn, uint64_t host_idx,
                       struct qcow2_slice **out)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t b = block_of (img, host_idx);
  size_t within = host_idx % g->refblock_entries * g->refcount_bits / 8;
  int r = 0;

  assert (lock_held (&img->lock));
  *out = NULL;
  if (has_block (img, b))
    *out = qcow2_cache_get_locked (txn, img->reftable.v[b], within, &r);
  return r == -EAGAIN ? before_load (txn, img->reftable.v[b]) : r;
}

uint64_t
qcow2_refblock_get_locked (const struct qcow2_image *img,
                           const struct qcow2_slice *t, uint64_t host_idx)
{
  const struct qcow2_geometry *geo = &img->header.geo;

  return qcow2_refcount_get (geo->refcount_bits, t->data,
                             host_idx % qcow2_refcount_slice (geo));
}

int
qcow2_get_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           uint64_t *refcount, bool *anchored)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *t;
  int r;

  assert (lock_held (&img->lock));
  r = qcow2_refblock_locked (txn, host_idx, &t);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, host_idx, 1);
  if (r < 0)
    return r;
  *refcount = t ? qcow2_refblock_get_locked (img, t, host_idx) : 0;
  *anchored = qcow2_anchor_test_locked (img, host_idx);
  return 0;
}

int
qcow2_anchored_run_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           uint64_t count, uint64_t refcount, uint64_t *n)
{
  struct qcow2_image *img = txn->img;
  uint64_t per = qcow2_refcount_slice (&img->header.geo);
  struct qcow2_slice *t;
  int r;

  assert (lock_held (&img->lock));
  *n = 0;
  count = MIN_OF (count, per - host_idx % per);
  r = qcow2_refblock_locked (txn, host_idx, &t);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, host_idx, count);
  while (r == 0 && t && *n < count &&
         qcow2_refblock_get_locked (img, t, host_idx + *n) == refcount &&
         qcow2_anchor_test_locked (img, host_idx + *n))
    ++*n;
  return r;
}

/* Cluster C, which is reserved, becomes refcount block B.  The block of C is
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

/* One step towards having block B: make it, or the block of the cluster that
 * it would have been made of. */
static int
make_some_block (struct qcow2_txn *txn, uint64_t b)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *t;
  struct qcow2_run run;
  uint64_t own;
  int r = qcow2_pool_take_locked (txn, &run);

  if (r < 0)
    return r;
  own = block_of (img, run.host_idx);
  if (!has_block (img, own))
    r = make_block (txn, own, run.host_idx);
  else {
    r = qcow2_refblock_locked (txn, run.host_idx, &t);
    if (r == 0)
      r = make_block (txn, b, run.host_idx);
  }
  if (r < 0)
    qcow2_pool_put_locked (img, &run);
  return r;
}

/* There is the block of HOST_IDX, and its slice is pinned. */
static int
need_block (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  uint64_t b = block_of (img, host_idx);
  struct qcow2_slice *t;
  int r = 0;

  if (b >= img->reftable.nr)
    return -ENOSPC;
  while (!has_block (img, b) && r == 0)
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

/* Make the anchor table of part P. */
static int
make_anchor_table (struct qcow2_txn *txn, uint64_t p)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_change change = {
    .type = QCOW2_CHANGE_ANCHOR_TABLE, .table_idx = p,
  };
  struct qcow2_run run;
  int r = qcow2_pool_take_locked (txn, &run);

  if (r < 0)
    return r;
  change.host_off = run.host_idx << img->header.geo.cluster_bits;
  r = qcow2_prepare_meta_locked (txn, run.host_idx);
  if (r == 0)
    r = qcow2_change_locked (txn, &change);
  if (r == 0)
    qcow2_set_refcount_locked (txn, run.host_idx, 1, false);
  else
    qcow2_pool_put_locked (img, &run);
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
