/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides when a compaction starts by itself; compact-due.h has the rule.
 *
 * A job that moved nothing is no sign that the tenth can be undercut: what it counts and
 * what is counted here differ by the clusters that must stay (dedup/compact.c), so it
 * would start again and again.
 */
#include "compact-due.h"

#include "checked.h"

#define DEAD_SHARE 10           /* of what is stored */
#define DEAD_GROWTH 20

bool
srv_compact_due (struct srv_compact_due *d, uint64_t dead_bytes, uint64_t stored_bytes)
{
  if (!d->ran)
    d->floor_bytes = MIN_OF (d->floor_bytes, dead_bytes);
  else
    d->floor_bytes = __atomic_load_n (&d->enough, __ATOMIC_ACQUIRE) ? 0 : dead_bytes;
  d->ran = false;
  if (dead_bytes <= stored_bytes / DEAD_SHARE ||
      (d->floor_bytes > 0 && dead_bytes - d->floor_bytes <= stored_bytes / DEAD_GROWTH))
    return false;
  __atomic_store_n (&d->enough, false, __ATOMIC_RELEASE);
  return true;
}

void
srv_compact_due_ended (struct srv_compact_due *d, uint64_t moved_bytes,
                       uint64_t dead_bytes, uint64_t packed_bytes)
{
  __atomic_store_n (&d->enough,
                    moved_bytes > 0 && dead_bytes <= packed_bytes / DEAD_SHARE,
                    __ATOMIC_RELEASE);
}
