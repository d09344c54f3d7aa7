/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the refcounts of host clusters, and whether they are anchored.
 *
 * A refcount is in a block, which the table cache loads in slices; a missing
 * slice, or a missing part of the anchor, is -EAGAIN, as everywhere in a
 * transaction.  A cluster without a block has refcount 0.  A block that is
 * anchored as data is refused: a damaged refcount table must not make the
 * program write to data.  For that the anchor is read before a block is.
 *
 * It has no threads; the image's lock protects it.  Changing refcounts is left
 * to change.c, and making blocks to prepare.c.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

/* Checks a refcount block that is about to be read.  Returns -EIO if it is
 * anchored as data, because a damaged refcount table must not make the program
 * write there; else -EAGAIN, with what is missing noted in TXN.  A replay does
 * not check that, because then the anchor or the table may be the newer one. */
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
  uint64_t b = qcow2_refblock_of (img, host_idx);
  size_t within = host_idx % g->refblock_entries * g->refcount_bits / 8;
  int r = 0;

  assert (lock_held (&img->lock));
  *out = NULL;
  if (qcow2_has_refblock (img, b))
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

struct range {                 /* of the file, bytes */
  uint64_t host_off, len;
  bool used_once;
};

/* Sets used_once to whether each cluster of a range has exactly one reference,
 * which is not the anchor's. */
static int
look_once_locked (struct qcow2_txn *txn, void *opaque)
{
  const unsigned bits = txn->img->header.geo.cluster_bits;
  struct range *g = opaque;
  uint64_t i, refcount;
  bool anchored;
  int r = 0;

  g->used_once = true;
  for (i = g->host_off >> bits; g->used_once && r == 0 && g->len > 0 &&
         i <= (g->host_off + g->len - 1) >> bits; i++) {
    r = qcow2_get_refcount_locked (txn, i, &refcount, &anchored);
    g->used_once = r == 0 && refcount == 1 && !anchored;
  }
  return r;
}

int
qcow2_used_once (struct qcow2_image *img, uint64_t host_off, uint64_t len,
                 bool *once)
{
  struct range g = { .host_off = host_off, .len = len };
  int r = qcow2_txn_run (img, look_once_locked, &g);

  *once = g.used_once;
  return r;
}
