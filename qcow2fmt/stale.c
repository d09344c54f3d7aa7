/* SPDX-License-Identifier: BSD-3-Clause */
/* Stale clusters: free ones for which the host may still hold data.
 *
 * They are worth having while new data is coming: writing there costs the host
 * no new space, and no changes of its own tables.  What is not needed goes back
 * to the host, and its bytes can't be read in the file any more.  Which those
 * are, the lowest number of stale clusters over some time tells: so many of
 * them were free all the while.
 *
 * Every cluster that is found free is stale, until it is reserved, or emptied
 * by who took it for that.  Those that the scan finds are only suspects at
 * first, for refcounts are all that says they are free (suspect.c).
 *
 * Both are subsets of the allocator's `free`.  Where memory for a bit is
 * wanting, a cluster is not given back in this session.
 *
 * Protected by the image's lock.
 */
#include "bitmap.h"
#include "checked.h"
#include "image.h"

static void
note_low (struct qcow2_alloc *a)
{
  a->stale_low = MIN_OF (a->stale_low, qcow2_bitmap_count (a->stale));
}

void
qcow2_stale_put (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  int r = qcow2_bitmap_set (a->stale, host_idx, count);

  (void) r;
}

void
qcow2_suspect_put (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  if (qcow2_bitmap_set (a->suspect, host_idx, count) < 0)
    a->suspects_lost = true;
}

void
qcow2_stale_clear (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  qcow2_bitmap_clear (a->stale, host_idx, count);
  qcow2_bitmap_clear (a->suspect, host_idx, count);
  note_low (a);
}

uint64_t
qcow2_stale_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return qcow2_bitmap_count (img->alloc.stale);
}

uint64_t
qcow2_stale_low_locked (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t low = a->stale_low;

  assert (lock_held (&img->lock));
  a->stale_low = qcow2_bitmap_count (a->stale);
  return low;
}

size_t
qcow2_take_stale_locked (struct qcow2_image *img, uint64_t *from,
                         uint64_t clusters, struct qcow2_run *runs, size_t max)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t idx;
  size_t n = 0;

  assert (lock_held (&img->lock));
  while (n < max && clusters > 0) {
    idx = qcow2_bitmap_next (a->stale, *from);
    if (idx == QCOW2_BITMAP_NONE) {
      *from = 0;
      break;
    }
    runs[n] = (struct qcow2_run) {
      .host_idx = idx, .count = qcow2_bitmap_run (a->stale, idx, clusters),
      .emptied = true };
    *from = idx + runs[n].count;
    clusters -= runs[n].count;
    qcow2_bitmap_clear (a->free, idx, runs[n].count);
    qcow2_stale_clear (a, idx, runs[n].count);
    n++;
  }
  return n;
}

void
qcow2_put_emptied_locked (struct qcow2_image *img, const struct qcow2_run *runs,
                          size_t nr)
{
  assert (lock_held (&img->lock));
  for (size_t i = 0; i < nr; ++i) {
    qcow2_alloc_found_free_locked (img, runs[i].host_idx, runs[i].count);
    if (runs[i].emptied)
      qcow2_stale_clear (&img->alloc, runs[i].host_idx, runs[i].count);
  }
}

uint64_t
qcow2_free_tail_locked (struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t n = 0;

  assert (lock_held (&img->lock));
  if (a->suspects_lost)
    return 0;
  while (n < a->frontier &&
         qcow2_bitmap_test (a->free, a->frontier - n - 1) &&
         !qcow2_bitmap_test (a->suspect, a->frontier - n - 1))
    n++;
  return n;
}
