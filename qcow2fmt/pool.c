/* SPDX-License-Identifier: BSD-3-Clause */
/* The pool: free clusters that have real space on the host, for tables.
 *
 * A table is made in memory and reaches the file with a later writeback, long
 * after the client was answered.  Were its place a hole of the file, that
 * writeback could meet a full disk; so could the recovery after a crash, and
 * nobody could open the image before somebody made room.  So each table gets
 * a cluster of this pool, and so much is allocated on the host in advance;
 * the client whose write needs a table that there is no room for is told so.
 *
 * What is in the pool is reserved: in memory only, and free again at the next
 * open.  An empty pool is one more thing that a transaction can miss: filling
 * it is I/O, done without the lock by qcow2_txn_load.
 *
 * The flat tables (L1, refcount table, anchor L1) may be holes as well, in new
 * images and in copies that were made sparse.  They get their space before
 * the first table does.
 *
 * Where the host cannot allocate, zeroes are written, which is as good unless
 * the host copies on write: then nothing can be promised.
 *
 * Protected by the image's lock.
 */
#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "image.h"

/* 64 tables of 4 KiB at once; of clusters of 256 KiB and more, one. */
#define FILL_BYTES (UINT64_C (256) << 10)

/* Single clusters tried when the host has no space for a run: some free ones
 * have space still, others were punched. */
#define FILL_TRIES 64

/* A table may need a refcount block, which needs a cluster as well: who found
 * too few has put back what he took, so that some may be there.  A fill adds
 * one at least, or fails: else he would ask for ever. */
#define POOL_LOW 4

_Static_assert (FILL_BYTES >> QCOW2_MIN_CLUSTER_BITS <= QCOW2_POOL_MAX,
                "a fill fits in the pool");

int
qcow2_pool_take_locked (struct qcow2_txn *txn, struct qcow2_run *run)
{
  struct qcow2_pool *p = &txn->img->pool;

  assert (lock_held (&txn->img->lock));
  if (p->nr == 0)
    return qcow2_txn_missing_locked (txn, QCOW2_MISSING_SPACE, 0);
  *run = (struct qcow2_run) { .host_idx = p->v[--p->nr], .count = 1 };
  return 0;
}

/* On top, so that asking again after -EAGAIN gives the same cluster again. */
void
qcow2_pool_put_locked (struct qcow2_image *img, const struct qcow2_run *run)
{
  struct qcow2_pool *p = &img->pool;

  assert (lock_held (&img->lock));
  assert (run->count == 1);
  if (p->nr == QCOW2_POOL_MAX)
    qcow2_unreserve_locked (img, run);
  else
    p->v[p->nr++] = run->host_idx;
}

void
qcow2_pool_give_back_locked (struct qcow2_image *img)
{
  struct qcow2_pool *p = &img->pool;
  struct qcow2_run run = { .count = 1 };

  assert (lock_held (&img->lock));
  while (p->nr > 0) {
    run.host_idx = p->v[--p->nr];
    qcow2_unreserve_locked (img, &run);
  }
}

/* --- Filling ------------------------------------------------------------- */

int
qcow2_back_locked (struct qcow2_image *img, const struct qcow2_run *run)
{
  unsigned bits = img->header.geo.cluster_bits;
  uint64_t off = run->host_idx << bits, len = run->count << bits;
  int r;

  assert (lock_held (&img->lock));
  lock_release (&img->lock);
  r = io_allocate (img->io, off, len);
  if (r == -EOPNOTSUPP)
    r = io_pwrite_zeroes (img->io, off, len);
  lock_acquire (&img->lock);
  return r;
}

static int
back_range (struct qcow2_image *img, uint64_t host_off, uint64_t len)
{
  int r;

  if (len == 0)
    return 0;
  lock_release (&img->lock);
  r = io_allocate (img->io, host_off, len);
  lock_acquire (&img->lock);
  return r == -EOPNOTSUPP ? 0 : r;
}

/* Tables looked at: one question each, some tens of milliseconds in all. */
#define MAX_TABLES_BACKED 16384

/* The tables that T names. */
static int
back_named (struct qcow2_image *img, const struct qcow2_flat *t,
            unsigned *left)
{
  const uint64_t size = img->header.geo.cluster_size;
  uint64_t off;
  int r = 0;

  for (uint64_t i = 0; i < t->nr && *left > 0 && r == 0; ++i) {
    off = t->v[i] & QCOW2_OFFSET_MASK;
    if (off == 0 || off % size != 0 || off + size > img->file_size)
      continue;
    --*left;
    r = io_fill_holes (img->io, off, size);
  }
  return r;
}

int
qcow2_back_tables (struct qcow2_image *img)
{
  const struct qcow2_flat *flats[] = { &img->reftable, &img->l1,
                                       &img->anchor.l1 };
  unsigned left = MAX_TABLES_BACKED;
  int r = 0;

  for (size_t i = 0; i < sizeof flats / sizeof flats[0] && r == 0; ++i) {
    r = io_fill_holes (img->io, flats[i]->host_off,
                       flats[i]->nr * sizeof (be64));
    if (r == 0)
      r = back_named (img, flats[i], &left);
  }
  return r;
}

static int
back_flats (struct qcow2_image *img)
{
  const struct qcow2_flat *flats[] = { &img->l1, &img->reftable,
                                       &img->anchor.l1 };
  int r = 0;

  for (size_t i = 0; i < sizeof flats / sizeof flats[0] && r == 0; ++i)
    r = back_range (img, flats[i]->host_off, flats[i]->nr * sizeof (be64));
  if (r == 0)
    img->pool.flats_backed = true;
  return r;
}

static int
fill (struct qcow2_image *img)
{
  uint64_t wanted = MAX_OF (FILL_BYTES >> img->header.geo.cluster_bits, 1);
  struct qcow2_run run;
  int r;

  for (unsigned tries = 0; tries < FILL_TRIES; ++tries) {
    r = qcow2_reserve_locked (img, wanted, &run);
    if (r < 0)
      return r;
    r = qcow2_back_locked (img, &run);
    if (r == 0)
      break;
    qcow2_unreserve_unbacked_locked (img, &run);
    if (r != -ENOSPC)
      return r;
    qcow2_skip_locked (img, tries * 4);
    wanted = 1;
  }
  for (uint64_t i = run.count; r == 0 && i-- > 0; ) {   /* lowest on top */
    struct qcow2_run one = { .host_idx = run.host_idx + i, .count = 1 };

    qcow2_pool_put_locked (img, &one);
  }
  return r;
}

int
qcow2_pool_fill_locked (struct qcow2_image *img)
{
  struct qcow2_pool *p = &img->pool;
  int r = 0;

  assert (lock_held (&img->lock));
  while (p->filling)
    lock_wait (&img->lock, &img->loaded);
  if (p->nr >= POOL_LOW)
    return 0;
  p->filling = true;
  if (!p->flats_backed)
    r = back_flats (img);
  if (r == 0)
    r = fill (img);
  p->filling = false;
  pthread_cond_broadcast (&img->loaded);
  return r;
}
