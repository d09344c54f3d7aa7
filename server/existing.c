/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexing what an image holds already, while it is served: a step at a time,
 * each under the range lock as a write of the same clusters would be
 * (docs/on-disk.md section 8).
 *
 * Threads: one at a time; requests go on beside it.  The loop says when.
 */
#include "internal.h"

int
srv_existing_step (struct srv_export *e, bool all,
                   struct srv_existing *x)
{
  struct srv_range range;
  size_t nr;
  int r;

  r = dedup_existing_next (e->disk, &x->guest_idx, &nr, &x->counts);
  if (r != 1)
    return r;
  srv_range_acquire (&e->ranges, &range, x->guest_idx, x->guest_idx + nr - 1,
                     true);
  r = dedup_existing_index (e->disk, x->guest_idx, nr, all, &x->counts);
  srv_range_release (&e->ranges, &range);
  if (r < 0)
    return r;
  x->guest_idx += nr;
  return 1;
}
