/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps track of stale clusters: free ones for which the host may still hold
 * data.
 *
 * They are useful while new data is coming: writing there costs the host no new
 * space, and no changes of its own tables.  Stale clusters that are not needed
 * are given back to the host, and then their bytes can no longer be read in the
 * file.  The lowest number of stale clusters over some time tells how many are
 * not needed: so many of them were free all the time.
 *
 * Every cluster that is found free is stale, until it is reserved, or emptied
 * by a caller that took it for that.  Those that the scan finds are only
 * suspects at first, because nothing but their refcounts says that they are
 * free (verify.c).
 *
 * Both are subsets of the allocator's `free`.  If there is no memory for a bit,
 * the cluster is not given back in this session.
 *
 * It has no threads; the image's lock protects it.  Giving back is left to the
 * caller.
 */
#include "bitset.h"
#include "checked.h"
#include "image.h"

static void
note_low (struct qcow2_alloc *a)
{
  a->stale_low = MIN_OF (a->stale_low, qcow2_bitset_count (a->stale));
}

void
qcow2_stale_put (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  int r = qcow2_bitset_set (a->stale, host_idx, count);

  (void) r;
}

void
qcow2_suspect_put (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  if (qcow2_bitset_set (a->suspect, host_idx, count) < 0)
    a->suspects_lost = true;
}

void
qcow2_stale_clear (struct qcow2_alloc *a, uint64_t host_idx, uint64_t count)
{
  qcow2_bitset_clear (a->stale, host_idx, count);
  qcow2_bitset_clear (a->suspect, host_idx, count);
  note_low (a);
}

uint64_t
qcow2_stale_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return qcow2_bitset_count (img->alloc.stale);
}

uint64_t
qcow2_stale_low_locked (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t low = a->stale_low;

  assert (lock_held (&img->lock));
  a->stale_low = qcow2_bitset_count (a->stale);
  return low;
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
         qcow2_bitset_test (a->free, a->frontier - n - 1) &&
         !qcow2_bitset_test (a->suspect, a->frontier - n - 1))
    n++;
  return n;
}
