/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes an exact index forget the entries of clusters before they are used again.
 *
 * A cluster that leaves quarantine is read and hashed; if the index names it
 * for that hash, a tombstone is logged and entered.  All tombstones are
 * durable before the clusters are free, so that no durable entry names a
 * cluster that holds something else.
 *
 * The entry of a descriptor is out of date if it touches a cluster that is not
 * anchored.  Another program may have come to the same descriptor with other data.
 *
 * Any thread, one at a time for a cluster; reads and hashes without the lock.
 */
#include "aligned.h"
#include "upkeep-private.h"
#include "value.h"

#include <errno.h>

/* Returns whether a descriptor touches a cluster that is not anchored. */
static bool
is_out_of_date_locked (const struct dedup_base *b, uint64_t descriptor)
{
  uint64_t first, count, k;
  bool gone = false;

  assert (lock_held (b->lock));
  dedup_value_clusters (b, descriptor, &first, &count);
  for (k = first; k < first + count && !gone; k++)
    qcow2_find_unanchored_locked (b->img, &k, 1, &gone);
  return gone;
}

/* Enters a tombstone for H, unless another value was entered for it since the
 * tables of VIEW were searched.  -EAGAIN: the index has other tables by now;
 * -EBUSY: there is no room. */
static int
log_tombstone (struct dedup_upkeep *u, const struct dedup_index_view *view,
               const struct dedup_hash *h, uint64_t value)
{
  uint64_t at = 0;              /* a log store may have been dropped */
  enum dedup_found found;
  LOCK_FOR_SCOPE (u->b->lock);

  if (!dedup_room_locked (u, 1, 1))
    return -EBUSY;
  if (!dedup_index_is_current_locked (u->s->index, view))
    return -EAGAIN;
  found = dedup_index_lookup_locked (u->s->index, h, &at);
  if (found != DEDUP_PROBE && at != value)
    return 0;
  if (dedup_value_is_compressed (value) && !is_out_of_date_locked (u->b, value))
    return 0;                   /* it was linked again */
  dedup_entry_locked (u->s, h, DEDUP_DELETED);
  dedup_journal_end_locked (u->s->journal);
  return 0;
}

/* Ends exactness: the hash of a cluster that cannot be read is not known, so
 * its entry stays.  Returns 1: there is no use in forgetting others then. */
static int
cannot_forget (struct dedup_store *s, uint64_t host_idx, int r)
{
  log_line (s->b->log, LOG_ERROR,
            "%s: cannot read the freed cluster at 0x%llx: %s: from now on "
            "blocks are compared before they are shared",
            s->b->path, (unsigned long long) host_idx << s->b->cluster_bits,
            strerror (-r));
  LOCK_FOR_SCOPE (s->b->lock);
  dedup_index_doubt_locked (s->index);
  return 1;
}

int
dedup_forget_entry (struct dedup_upkeep *u, const struct dedup_hash *h,
                    uint64_t value)
{
  struct dedup_probe p = { .hash = *h };
  struct dedup_index_view *view;
  int r = 0;

  lock_acquire (u->b->lock);
  p.found = dedup_index_lookup_locked (u->s->index, h, &p.value);
  view = dedup_index_view_locked (u->s->index);
  lock_release (u->b->lock);
  if (p.found == DEDUP_PROBE)
    dedup_index_probe (view, &p, 1);
  if (p.found == DEDUP_HIT && p.value == value)
    r = log_tombstone (u, view, h, value);
  dedup_index_view_put (u->s->index, view);
  return r;
}

/* Reads a cluster into BUF, hashes it, and forgets its entry.  1: the index is
 * not exact any more. */
static int
forget_cluster (struct dedup_upkeep *u, uint64_t host_idx, uint8_t *buf)
{
  const struct dedup_base *b = u->b;
  struct dedup_hash h;
  int r;

  r = io_pread (b->io, buf, b->cluster_size, host_idx << b->cluster_bits);
  if (r < 0)
    return r == -ENOMEM ? r : cannot_forget (u->s, host_idx, r);
  r = dedup_hash_compute (&b->hasher, buf, b->cluster_size, &h);
  if (r < 0)
    return r;
  do
    r = dedup_forget_entry (u, &h, host_idx);
  while (r == -EAGAIN);
  return r;
}

int
dedup_forget_runs (struct dedup_upkeep *u, const struct qcow2_run *runs,
                   size_t nr)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (u->b->cluster_size);
  uint64_t k;
  size_t i;
  int r = buf ? dedup_enter (&u->s->gate) : -ENOMEM;

  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++)
    for (k = 0; k < runs[i].count && r == 0; k++)
      r = forget_cluster (u, runs[i].host_idx + k, buf);
  dedup_leave (&u->s->gate);
  return r < 0 ? r : dedup_commit (u->s);
}
