/* SPDX-License-Identifier: BSD-3-Clause */
/* Flushes: makes everything that was completed before the call durable, by one
 * commit of the journal; and counts flushes for prewrite.c.
 *
 * Any thread, without locks.
 */
#include "upkeep-private.h"

#include <errno.h>

int
dedup_upkeep_flush (struct dedup_upkeep *u)
{
  uint64_t bytes;
  int r;

  if (!u->s->journal || !u->b->writable)
    return 0;
  lock_acquire (u->b->lock);
  bytes = u->uncommitted_bytes;
  u->uncommitted_bytes = 0;
  u->s->gate.commit_asked = false;
  if (dedup_journal_pending_locked (u->s->journal) > 0)
    dedup_prewrite_flushed_locked (&u->prewrite);
  if (dedup_prewrite_due_locked (&u->prewrite))
    dedup_ask_for_commit_locked (&u->s->gate);
  lock_release (u->b->lock);
  r = dedup_commit (u->s);
  if (r < 0) {
    LOCK_FOR_SCOPE (u->b->lock);
    u->uncommitted_bytes += bytes;
    return r;
  }
  return dedup_gate_failed (&u->s->gate) ? -EIO : 0;   /* law 10 */
}
