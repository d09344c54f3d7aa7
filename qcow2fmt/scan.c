/* SPDX-License-Identifier: BSD-3-Clause */
/* Scans the part of the file that was in use at open for free clusters and
 * garbage.
 *
 * One step looks at the clusters of one slice of a refcount block, so that the
 * lock is held briefly.  Its result is true at that moment, because it holds
 * the lock all the time, and from then on the allocator is told of every
 * change.
 *
 * A cluster is free if it has refcount 0, is not busy (alloc.c) and not
 * anchored.  It is a candidate for garbage if it is anchored, has refcount 1,
 * is not held and not guarded.  Candidates are put into a set, and leave it when
 * their refcount changes (change.c).  Nothing links to them meanwhile, because
 * a cluster with refcount 1 is never held.  Refcounts may be wrong, so verify.c
 * has a look at the L2 tables before any candidate is freed.  One for which
 * there is no memory is left to the next session.
 *
 * A step that fails (a slice or anchor table that cannot be read) is not
 * repeated: its clusters are never found, and the scan continues behind them;
 * at an offset where no refcount block can be, behind all clusters of that
 * block.
 *
 * It has no threads of its own; the image's lock protects its state.
 */
#include <errno.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

struct scan {
  struct qcow2_image *img;
  int looked;                  /* result of the last look */
};

/* Returns where the step that starts at scan_next ends: at the next multiple of
 * PER clusters, or at the end of the scan. */
static uint64_t
end_of_step (const struct qcow2_image *img, uint64_t per)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t end = (a->scan_next / per + 1) * per;

  /* No cluster past the refcount table can be used. */
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

static void
note_garbage (struct qcow2_alloc *a, uint64_t idx)
{
  int r = qcow2_bitset_set (a->garbage, idx, 1);

  (void) r;                    /* left to the next session */
}

/* Returns whether a cluster, which is no table, is free; notes it if it seems to
 * be garbage. */
static bool
look (struct scan *s, const struct qcow2_slice *block, uint64_t idx)
{
  struct qcow2_image *img = s->img;
  uint64_t refcount = block ? qcow2_refblock_get_locked (img, block, idx) : 0;

  /* An anchored cluster with refcount 0 is damage, and may be in use. */
  if (refcount == 0)
    return idx != 0 && !qcow2_bitset_test (img->alloc.busy, idx) &&
      !qcow2_anchor_test_locked (img, idx);
  if (refcount == 1 && qcow2_anchor_test_locked (img, idx) &&
      !qcow2_is_held_locked (img, idx))
    note_garbage (&img->alloc, idx);
  return false;
}

static void
look_at_range (struct scan *s, const struct qcow2_slice *block,
               uint64_t first, uint64_t end)
{
  uint64_t free_from = first;
  uint64_t table = qcow2_next_guarded_locked (s->img, first);

  for (uint64_t i = first; i < end; ++i) {
    if (i == table)              /* in use, whatever its refcount */
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
look_at_slice_locked (struct scan *s, struct qcow2_txn *txn)
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
  r = qcow2_refblock_locked (txn, a->scan_next, &block);
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, a->scan_next,
                                        end - a->scan_next);
  if (r < 0)
    return r;
  look_at_range (s, block, a->scan_next, end);
  return pass (a, end);
}

static int
step_locked (struct qcow2_txn *txn, void *opaque)
{
  struct scan *s = opaque;

  s->looked = look_at_slice_locked (s, txn);
  return s->looked;
}

/* Continues the scan behind the next multiple of PER clusters. */
static void
skip_locked (struct qcow2_image *img, uint64_t per)
{
  if (img->alloc.scan_next < img->alloc.scan_end)
    pass (&img->alloc, end_of_step (img, per));
}

int
qcow2_scan_step (struct qcow2_image *img)
{
  const struct qcow2_geometry *g = &img->header.geo;
  struct scan s = { .img = img };
  struct qcow2_txn txn;
  int r;
  LOCK_FOR_SCOPE (&img->lock);

  qcow2_txn_begin (img, &txn);
  r = qcow2_txn_retry_locked (&txn, step_locked, &s);
  /* One slice could not be loaded, or there can be no refcount block. */
  if (r < 0 && r != -ENOMEM)
    skip_locked (img, s.looked == -EAGAIN ? qcow2_refcount_slice (g)
                 : g->refblock_entries);
  qcow2_txn_end_locked (&txn);
  return r;
}

bool
qcow2_scan_done_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->alloc.scan_next >= img->alloc.scan_end;
}
