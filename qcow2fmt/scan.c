/* SPDX-License-Identifier: BSD-3-Clause */
/* Looking for free clusters and garbage in what was there at open.
 *
 * One step looks at the clusters of one slice of a refcount block, so that the
 * lock is held briefly.  What it says of them is true at that moment: it holds
 * the lock over all it looks at, and from then on the allocator is told of
 * every change.
 *
 * Free is: refcount 0, not busy (alloc.c) and not anchored.  Garbage is:
 * anchored, refcount 1, not held.  The caller tells garbage from the store's
 * own areas, and may free it at any later time: nothing links to a cluster
 * with refcount 1.
 *
 * A step that fails (a slice or anchor table that cannot be read) is not taken
 * again: its clusters are never found, and the scan goes on behind them; where
 * no refcount block can be, behind all that it would count.
 */
#include <errno.h>

#include "bitmap.h"
#include "checked.h"
#include "image.h"

struct scan {
  struct qcow2_image *img;
  struct qcow2_txn txn;
  void (*garbage) (void *opaque, uint64_t host_idx);
  void *opaque;
};

/* Where the step that starts at scan_next ends, one being within a multiple of
 * PER clusters. */
static uint64_t
end_of_step (const struct qcow2_image *img, uint64_t per)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t end = (a->scan_next / per + 1) * per;

  /* Nothing past the refcount table can be used. */
  if (a->scan_next >= qcow2_refcount_coverage (img))
    return a->scan_end;
  return MIN_OF (end, a->scan_end);
}

static int
pass (struct qcow2_alloc *a, uint64_t end)
{
  a->scan_next = end;
  return a->scan_next < a->scan_end;
}

/* Is it free, being no table?  If not, it may be garbage. */
static bool
look (struct scan *s, const struct qcow2_slice *block, uint64_t idx)
{
  struct qcow2_image *img = s->img;
  uint64_t refcount = block ? qcow2_refblock_get_locked (img, block, idx) : 0;

  /* Anchored and refcount 0 contradict each other: rot.  In use, perhaps. */
  if (refcount == 0)
    return idx != 0 && !qcow2_bitmap_test (img->alloc.busy, idx) &&
      !qcow2_anchor_test_locked (img, idx);
  if (refcount == 1 && qcow2_anchor_test_locked (img, idx) &&
      !qcow2_is_held_locked (img, idx))
    s->garbage (s->opaque, idx);
  return false;
}

static void
look_at_range (struct scan *s, const struct qcow2_slice *block,
               uint64_t first, uint64_t end)
{
  uint64_t free_from = first;
  uint64_t table = qcow2_next_guarded_locked (s->img, first);

  for (uint64_t i = first; i < end; ++i) {
    if (i == table)              /* whatever its refcount */
      table = qcow2_next_guarded_locked (s->img, i + 1);
    else if (look (s, block, i))
      continue;
    if (i > free_from)
      qcow2_alloc_scanned_free_locked (s->img, free_from, i - free_from);
    free_from = i + 1;
  }
  if (end > free_from)
    qcow2_alloc_scanned_free_locked (s->img, free_from, end - free_from);
}

static int
step_locked (struct scan *s)
{
  struct qcow2_image *img = s->img;
  struct qcow2_alloc *a = &img->alloc;
  struct qcow2_slice *block;
  uint64_t end;
  int r;

  qcow2_alloc_fix_scan_locked (img);
  if (a->scan_next >= a->scan_end)
    return 0;
  end = end_of_step (img, qcow2_refcount_slice (&img->header.geo));
  if (a->scan_next >= qcow2_refcount_coverage (img))
    return pass (a, end);
  r = qcow2_refblock_locked (&s->txn, a->scan_next, &block);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (&s->txn, a->scan_next,
                                        end - a->scan_next);
  if (r < 0)
    return r;
  look_at_range (s, block, a->scan_next, end);
  return pass (a, end);
}

/* Go on behind what PER clusters have in common. */
static void
skip_locked (struct qcow2_image *img, uint64_t per)
{
  if (img->alloc.scan_next < img->alloc.scan_end)
    pass (&img->alloc, end_of_step (img, per));
}

int
qcow2_scan_step (struct qcow2_image *img,
                 void (*garbage) (void *opaque, uint64_t host_idx),
                 void *opaque)
{
  struct scan s = { .img = img, .garbage = garbage, .opaque = opaque };
  uint64_t bad = img->header.geo.refblock_entries;
  int r;

  qcow2_txn_begin (img, &s.txn);
  lock_acquire (&img->lock);
  while ((r = step_locked (&s)) == -EAGAIN) {
    lock_release (&img->lock);
    r = qcow2_txn_load (&s.txn);
    lock_acquire (&img->lock);
    if (r < 0) {
      bad = qcow2_refcount_slice (&img->header.geo);
      break;
    }
  }
  if (r < 0 && r != -ENOMEM)
    skip_locked (img, bad);
  qcow2_txn_end_locked (&s.txn);
  lock_release (&img->lock);
  return r;
}

bool
qcow2_scan_done_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.scan_next >= img->alloc.scan_end;
}
