/* SPDX-License-Identifier: BSD-3-Clause */
/* Lends L2 tables: adds a path that is not counted yet to the refcounts of all
 * tables that a new root shares with another one (debt.c).
 *
 * The work is done under one hold of the lock, whatever the size of the disk,
 * so it is some tens of nanoseconds a table: tables are sorted by their place,
 * each slice of refcounts is looked up once, and neighbours that get equal
 * refcounts are one change.  A table that is named several times gets as many
 * paths.
 *
 * It has no threads; the image's lock protects it.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "switch.h"

/* The most paths to a table, and roots of an image (roots.c): 16 bits of a table's
 * refcount count them. */
#define MAX_PATHS 65000u

/* In the value of a table: it is anchored, and remains so.  No refcount of a
 * table is that large. */
#define ANCHORED (UINT64_C (1) << 63)

int
qcow2_lending_init (struct qcow2_lending *l, size_t max)
{
  *l = (struct qcow2_lending) { .max = max };
  /* At most 2^22 entries of an L1 table for each new root. */
  l->idx = malloc (MAX_OF (max, 1) * sizeof *l->idx);
  l->v = malloc (MAX_OF (max, 1) * sizeof *l->v);
  return l->idx && l->v ? 0 : -ENOMEM;
}

void
qcow2_lending_free (struct qcow2_lending *l)
{
  free (l->idx);
  free (l->v);
  *l = (struct qcow2_lending) { 0 };
}

/* --- Sorting ----------------------------------------------------------- */

#define RADIX_BITS 11
#define RADIX (1u << RADIX_BITS)

/* Sorts FROM, NR numbers, by RADIX_BITS of them from SHIFT on, into TO. */
static void
sort_by (const uint64_t *from, uint64_t *to, size_t nr, unsigned shift)
{
  size_t at[RADIX] = { 0 }, sum = 0, n;

  for (size_t i = 0; i < nr; ++i)
    at[from[i] >> shift & (RADIX - 1)]++;
  for (unsigned d = 0; d < RADIX; ++d) {
    n = at[d];
    at[d] = sum;
    sum += n;
  }
  for (size_t i = 0; i < nr; ++i)
    to[at[from[i] >> shift & (RADIX - 1)]++] = from[i];
}

static void
sort (struct qcow2_lending *l)
{
  uint64_t max = 0, *swap;

  if (l->sorted)
    return;
  for (size_t i = 0; i < l->nr; ++i)
    max = MAX_OF (max, l->idx[i]);
  for (unsigned shift = 0; shift < 64 && max >> shift > 0;
       shift += RADIX_BITS) {
    sort_by (l->idx, l->v, l->nr, shift);
    swap = l->idx;
    l->idx = l->v;
    l->v = swap;
  }
  l->sorted = true;
}

/* --- Refcounts --------------------------------------------------------- */

/* The clusters from FIRST up to END: their refcounts are in one slice, and they
 * are in one part of the anchor. */
struct window {
  uint64_t first, end;
  struct qcow2_slice *slice;
  uint64_t slice_first;        /* cluster of the slice's first refcount */
  bool has_anchored;           /* the part has a table */
};

/* Moves W to the one that has HOST_IDX. */
static int
move_window (struct qcow2_txn *txn, struct window *w, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  const uint64_t per = qcow2_refcount_slice (&img->header.geo);
  const uint64_t part = qcow2_anchor_part_of (img, host_idx);
  const uint64_t in_part = img->header.geo.l2_entries;
  int r;

  if (host_idx >= w->first && host_idx < w->end)
    return 0;
  r = qcow2_refblock_locked (txn, host_idx, &w->slice);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, host_idx, 1);
  if (r < 0)
    return r;
  if (!w->slice)
    return -EIO;               /* corrupt: a table without a refcount */
  w->slice_first = host_idx - host_idx % per;
  w->first = MAX_OF (w->slice_first, part * in_part);
  w->end = MIN_OF (w->slice_first + per, (part + 1) * in_part);
  w->has_anchored = qcow2_anchor_has_part (img, part);
  return 0;
}

/* Returns whether V can be the refcount of a table that is in use. */
static bool
value_ok (uint64_t v)
{
  return qcow2_debt_of (v) < qcow2_paths_of (v) &&
    qcow2_paths_of (v) <= MAX_PATHS;
}

/* Computes the value of table HOST_IDX with PATHS more. */
static int
raised (struct qcow2_txn *txn, struct window *w, uint64_t host_idx,
        uint64_t paths, uint64_t *value)
{
  const struct qcow2_image *img = txn->img;
  uint64_t v;
  int r = move_window (txn, w, host_idx);

  if (r < 0)
    return r;
  v = qcow2_refcount_get (img->header.geo.refcount_bits, w->slice->data,
                          host_idx - w->slice_first);
  if (host_idx == 0 || !value_ok (v))
    return -EIO;
  if (qcow2_paths_of (v) + paths > MAX_PATHS)
    return -EMLINK;
  *value = v + paths * QCOW2_ONE_LENT;
  if (w->has_anchored && qcow2_anchor_test_locked (img, host_idx))
    *value |= ANCHORED;
  return 0;
}

int
qcow2_lend_prepare_locked (struct qcow2_txn *txn, struct qcow2_lending *l)
{
  struct window w = { 0 };
  size_t n = 0, i, end;
  int r;

  assert (lock_held (&txn->img->lock));
  l->nr_runs = 0;
  if (l->nr == 0)
    return 0;
  if (txn->img->header.geo.refcount_bits != 2 * QCOW2_PATHS_BITS)
    return -ENOTSUP;
  sort (l);
  for (i = 0; i < l->nr; i = end, ++n) {
    for (end = i + 1; end < l->nr && l->idx[end] == l->idx[i]; ++end)
      ;
    r = raised (txn, &w, l->idx[i], end - i, &l->v[n]);
    if (r < 0)
      return r;
    l->idx[n] = l->idx[i];
    if (n == 0 || l->idx[n] != l->idx[n - 1] + 1 || l->v[n] != l->v[n - 1])
      l->nr_runs++;
  }
  l->nr = n;
  return 0;
}

/* Gives COUNT clusters from HOST_IDX on, which are in use and stay so, the
 * refcount V. */
static void
put_run (struct qcow2_txn *txn, struct window *w, uint64_t host_idx,
         uint64_t count, uint64_t v)
{
  const unsigned bits = txn->img->header.geo.refcount_bits;
  uint64_t n;
  int r;

  for (; count > 0; host_idx += n, count -= n) {
    r = move_window (txn, w, host_idx);
    assert (r == 0);           /* pinned by qcow2_lend_prepare_locked */
    (void) r;
    n = MIN_OF (count, w->end - host_idx);
    for (uint64_t i = 0; i < n; ++i)
      qcow2_refcount_put (bits, w->slice->data,
                          host_idx - w->slice_first + i, v);
    w->slice->is_refblock = true;
    qcow2_cache_dirty_locked (txn->img, w->slice);
  }
}

void
qcow2_lend_commit_locked (struct qcow2_txn *txn, const struct qcow2_lending *l)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT };
  struct window w = { 0 };
  size_t i, end;

  assert (lock_held (&txn->img->lock));
  for (i = 0; i < l->nr; i = end) {
    for (end = i + 1; end < l->nr && l->idx[end] == l->idx[end - 1] + 1 &&
           l->v[end] == l->v[i] && end - i < UINT32_MAX; ++end)
      ;
    c.host_idx = l->idx[i];
    c.count = end - i;
    c.refcount = l->v[i] & ~ANCHORED;
    c.anchored = l->v[i] & ANCHORED;
    put_run (txn, &w, c.host_idx, c.count, c.refcount);
    qcow2_report_locked (txn->img, &c);
  }
}
