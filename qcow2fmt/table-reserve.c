/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the table reserve: free clusters that have real space on the host, for
 * new tables.
 *
 * A table is made in memory and reaches the file with a later writeback, long
 * after the client was answered.  If its place were a hole of the file, that
 * writeback could meet a full disk; so could the recovery after a crash, and
 * the image could not be opened before somebody made room.  So each new table
 * gets a cluster of this reserve, whose space the host has allocated in
 * advance.  A write that needs a table for which there is no space fails with
 * ENOSPC.
 *
 * Clusters in the reserve are reserved in memory only, and free again at the
 * next open.  An empty reserve is one more thing that a transaction can miss:
 * filling it is I/O, done without the lock by qcow2_txn_load.
 *
 * The flat tables (L1, refcount table, anchor L1) may be holes as well, in new
 * images and in copies that were made sparse.  They get their space before
 * the first table does.
 *
 * Where the host cannot allocate, zeroes are written.  That is as good, except
 * on a host that copies on write, where no space can be guaranteed.
 *
 * Protected by the image's lock.
 */
#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "image.h"

/* Bytes of a fill: 64 tables of 4 KiB; one where clusters have 256 KiB or
 * more. */
#define FILL_BYTES (UINT64_C (256) << 10)

/* Limits how many single clusters are tried when the host has no space for a
 * run: some free clusters still have space, others were punched. */
#define FILL_TRIES 64

/* A fill adds at least one cluster, or fails, while there are fewer than this.
 * A table may need a refcount block, and so a second cluster: an operation
 * that found too few puts back those that it took, and would miss space for
 * ever if a fill then found the reserve not empty and added none. */
#define RESERVE_LOW 4

_Static_assert (FILL_BYTES >> QCOW2_MIN_CLUSTER_BITS <= QCOW2_TABLE_RESERVE_MAX,
                "a fill fits in the reserve");

int
qcow2_table_reserve_take_locked (struct qcow2_txn *txn, struct qcow2_run *run)
{
  struct qcow2_table_reserve *t = &txn->img->table_reserve;

  assert (lock_held (&txn->img->lock));
  if (t->nr == 0)
    return qcow2_txn_missing_locked (txn, QCOW2_MISSING_SPACE, 0);
  *run = (struct qcow2_run) { .host_idx = t->v[--t->nr], .count = 1 };
  return 0;
}

/* Puts it on top, so that a retry after -EAGAIN takes the same cluster
 * again. */
void
qcow2_table_reserve_put_locked (struct qcow2_image *img,
                                const struct qcow2_run *run)
{
  struct qcow2_table_reserve *t = &img->table_reserve;

  assert (lock_held (&img->lock));
  assert (run->count == 1);
  if (t->nr == QCOW2_TABLE_RESERVE_MAX)
    qcow2_unreserve_locked (img, run);
  else
    t->v[t->nr++] = run->host_idx;
}

void
qcow2_table_reserve_give_back_locked (struct qcow2_image *img)
{
  struct qcow2_table_reserve *t = &img->table_reserve;
  struct qcow2_run run = { .count = 1 };

  assert (lock_held (&img->lock));
  while (t->nr > 0) {
    run.host_idx = t->v[--t->nr];
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

/* Limits how many tables get space at open: each costs one question to the
 * host, all of them some tens of milliseconds. */
#define MAX_TABLES_BACKED 16384

/* Gives space to the tables that T names, at most *LEFT of them. */
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
    img->table_reserve.flats_backed = true;
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

    qcow2_table_reserve_put_locked (img, &one);
  }
  return r;
}

int
qcow2_table_reserve_fill_locked (struct qcow2_image *img)
{
  struct qcow2_table_reserve *t = &img->table_reserve;
  int r = 0;

  assert (lock_held (&img->lock));
  while (t->filling)
    lock_wait (&img->lock, &img->loaded);
  if (t->nr >= RESERVE_LOW)
    return 0;
  t->filling = true;
  if (!t->flats_backed)
    r = back_flats (img);
  if (r == 0)
    r = fill (img);
  t->filling = false;
  pthread_cond_broadcast (&img->loaded);
  return r;
}
