/* SPDX-License-Identifier: BSD-3-Clause */
/* Frees the areas of tables that are no longer listed, once the manifest
 * without them is durable (law 9) and nobody reads them any more, so that no
 * lookup misses an entry that the index has.
 *
 * Editing functions only.
 */
#include "publish.h"

/* Returns true if somebody reads the table.  The list of retired tables holds
 * one reference itself. */
static bool
is_read (const struct index_retired *p)
{
  return (p->segment && dedup_segment_users (p->segment) > 1) ||
    (p->inc && dedup_incarnation_users (p->inc) > 1);
}

bool
dedup_index_will_free (const struct dedup_index *x, uint64_t host_off)
{
  size_t i;

  for (i = 0; i < x->nr_retired; i++)
    if (host_off >= x->retired[i].host_off &&
        host_off - x->retired[i].host_off < x->retired[i].size_bytes)
      return true;
  return false;
}

int
dedup_index_reap (struct dedup_index *x)
{
  size_t i, nr = 0;
  int r = index_settle (x);

  if (r < 0)
    return r;
  for (i = 0; i < x->nr_retired; i++) {
    const struct index_retired *p = &x->retired[i];

    if (r < 0 || is_read (p)) {
      x->retired[nr++] = *p;
      continue;
    }
    if (!mutation (MUTATION_LAW_9_RUN))
      r = x->storage.free (x->storage.opaque, p->host_off, p->size_bytes);
    index_retired_put (p);
  }
  x->nr_retired = nr;
  return r;
}
