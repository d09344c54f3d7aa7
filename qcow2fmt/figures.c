/* SPDX-License-Identifier: BSD-3-Clause */
/* Copies the figures of an open image that are kept all the time.
 *
 * Everything here is a counter that somebody else maintains, so that a server can
 * tell its figures as often as it is asked, beside any load.  What has to be
 * counted by reading tables is in usage-root.c and usage-pool.c.
 *
 * Under the image lock.
 */
#include "bitset.h"
#include "image.h"
#include "qcow2-usage.h"

void
qcow2_get_figures_locked (struct qcow2_image *img, struct qcow2_figures *f)
{
  const struct qcow2_cache *c = &img->cache;
  const uint64_t slice = qcow2_slice_size (&img->header.geo);

  assert (lock_held (&img->lock));
  *f = (struct qcow2_figures) {
    .in_use = qcow2_in_use_locked (img),
    .free = qcow2_bitset_count (img->alloc.free),
    .stale = qcow2_stale_locked (img),
    .quarantined = qcow2_quarantined_locked (img),
    .frontier = qcow2_frontier_locked (img),
    .cache_bytes = c->nr_slices * slice,
    .cache_max_bytes = c->budget * slice,
    .cache_dirty_bytes = c->nr_dirty * slice,
    .tables_read = c->nr_loads,
  };
}
