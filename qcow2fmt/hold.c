/* SPDX-License-Identifier: BSD-3-Clause */
/* Holds clusters that may be linked soon, so that they are not freed while
 * their bytes are compared without the lock.
 *
 * A hold is in memory only.  A drop that would free a held cluster leaves it
 * with refcount 1 and its anchor entry, like garbage: so after a crash the
 * scan finds it.  If a link comes, the refcount is 2 again; if none has come
 * when the last hold is released, the cluster is freed here.
 *
 * A hold pins the slice with the refcount of its cluster (anchor parts stay in
 * memory anyway), so a release needs no load and no allocation, whichever
 * transaction does it.
 *
 * The holds are in a hash table by host index, with linear probing and at most
 * 3/4 full.  There may be thousands of them: 512 clusters a request, a request
 * a thread.
 *
 * It has no threads; the image's lock protects it.  Comparing and linking are
 * left to the caller.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define MIN_HOLDS 64

static size_t
home_of (const struct qcow2_holds *h, uint64_t host_idx)
{
  return (host_idx * UINT64_C (0x9e3779b97f4a7c15) >> 32) & (h->max - 1);
}

/* Returns the slot of HOST_IDX, or the empty one where it would be inserted. */
static struct qcow2_hold *
slot_of (const struct qcow2_holds *h, uint64_t host_idx)
{
  size_t i = home_of (h, host_idx);

  while (h->v[i].host_idx != 0 && h->v[i].host_idx != host_idx)
    i = (i + 1) & (h->max - 1);
  return &h->v[i];
}

static int
grow (struct qcow2_holds *h)
{
  struct qcow2_holds bigger = { .max = h->max ? h->max * 2 : MIN_HOLDS };

  bigger.v = calloc (bigger.max, sizeof *bigger.v);
  if (!bigger.v)
    return -ENOMEM;
  for (size_t i = 0; i < h->max; ++i)
    if (h->v[i].host_idx != 0)
      *slot_of (&bigger, h->v[i].host_idx) = h->v[i];
  bigger.nr = h->nr;
  free (h->v);
  *h = bigger;
  return 0;
}

/* Empties slot I, and moves up entries that probing would no longer find. */
static void
erase (struct qcow2_holds *h, size_t i)
{
  size_t j = i, home;

  h->v[i].host_idx = 0;
  h->nr--;
  for (;;) {
    j = (j + 1) & (h->max - 1);
    if (h->v[j].host_idx == 0)
      return;
    home = home_of (h, h->v[j].host_idx);
    if (((j - home) & (h->max - 1)) < ((j - i) & (h->max - 1)))
      continue;                /* its way from home does not pass I */
    h->v[i] = h->v[j];
    h->v[j].host_idx = 0;
    i = j;
  }
}

static int
add (struct qcow2_holds *h, uint64_t host_idx, struct qcow2_slice *block)
{
  struct qcow2_hold *s = h->max > 0 ? slot_of (h, host_idx) : NULL;
  int r;

  if (s && s->host_idx != 0) {  /* it needs no memory, also in a full table */
    s->count++;
    return 0;
  }
  if (h->nr + 1 > h->max / 4 * 3) {
    r = grow (h);
    if (r < 0)
      return r;
    s = slot_of (h, host_idx);
  }
  *s = (struct qcow2_hold) { .host_idx = host_idx, .block = block, .count = 1 };
  block->pins++;
  h->nr++;
  return 0;
}

int
qcow2_holds_reserve_locked (struct qcow2_image *img, size_t nr)
{
  struct qcow2_holds *h = &img->holds;
  int r = 0;

  assert (lock_held (&img->lock));
  while (r == 0 && h->nr + nr > h->max / 4 * 3)
    r = grow (h);
  return r;
}

int
qcow2_hold_locked (struct qcow2_txn *txn, uint64_t host_idx, uint64_t limit)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *block;
  uint64_t refcount;
  bool anchored;
  int r;

  assert (lock_held (&img->lock));
  if (host_idx == 0 || host_idx >= img->alloc.frontier)
    return -ENOENT;
  r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &anchored);
  if (r < 0)
    return r;
  if (!anchored || qcow2_guarded_locked (img, host_idx, 1))
    return -ENOENT;
  /* With refcount 1 a cluster that is held already is as good: its bytes stay.
   * If it were refused, they would be stored a second time while the other
   * holder links them here. */
  if (refcount < 2 && !qcow2_is_held_locked (img, host_idx))
    return -ENOENT;
  if (refcount >= limit)
    return -ERANGE;
  r = qcow2_refblock_locked (txn, host_idx, &block);
  if (r < 0)
    return r;
  return add (&img->holds, host_idx, block);
}

/* Frees a cluster whose last hold was released, and which has no guest
 * reference left. */
static void
free_abandoned (struct qcow2_image *img, struct qcow2_slice *block,
                uint64_t host_idx)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT,
                            .host_idx = host_idx, .count = 1 };
  struct qcow2_run run = { .host_idx = host_idx, .count = 1 };

  qcow2_refblock_change_locked (img, block, host_idx, 1, 0, false);
  qcow2_report_locked (img, &c);
  qcow2_quarantine_locked (img, &run, img->log.seq_locked ?
                           img->log.seq_locked (img->log.opaque) : 0);
}

void
qcow2_unhold_locked (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_holds *h = &img->holds;
  struct qcow2_slice *block;
  struct qcow2_hold *s;

  assert (lock_held (&img->lock));
  assert (qcow2_is_held_locked (img, host_idx));
  s = slot_of (h, host_idx);
  if (--s->count > 0)
    return;
  block = s->block;
  erase (h, (size_t) (s - h->v));
  if (qcow2_refblock_get_locked (img, block, host_idx) == 1 &&
      qcow2_anchor_test_locked (img, host_idx))
    free_abandoned (img, block, host_idx);
  block->pins--;
}

int
qcow2_hold_entry_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t limit)
{
  uint64_t first, count, i;
  int r = 0;

  assert (lock_held (&txn->img->lock));
  qcow2_entry_clusters (txn->img, entry, &first, &count);
  if (count == 0)
    return -ENOENT;
  for (i = 0; i < count && r == 0; ++i)
    r = qcow2_hold_locked (txn, first + i, limit);
  if (r < 0)
    for (--i; i > 0; --i)        /* the last one was not held */
      qcow2_unhold_locked (txn, first + i - 1);
  return r;
}

void
qcow2_unhold_entry_locked (struct qcow2_txn *txn, uint64_t entry)
{
  uint64_t first, count, i;

  qcow2_entry_clusters (txn->img, entry, &first, &count);
  for (i = 0; i < count; ++i)
    qcow2_unhold_locked (txn, first + i);
}

bool
qcow2_is_held_locked (const struct qcow2_image *img, uint64_t host_idx)
{
  return host_idx != 0 && img->holds.max > 0 &&
    slot_of (&img->holds, host_idx)->host_idx == host_idx;
}

void
qcow2_holds_free (struct qcow2_image *img)
{
  free (img->holds.v);
  memset (&img->holds, 0, sizeof img->holds);
}
