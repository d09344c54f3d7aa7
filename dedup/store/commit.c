/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes records and data durable.
 *
 * A commit writes the sealed blocks of the journal and syncs the file once for
 * them and for the data that was written before.  Every sync of the file but
 * the header's passes here or through the journal, one at a time (law 10).
 *
 * Any thread, without locks.
 */
#include "store.h"

#include <errno.h>

int
dedup_commit (struct dedup_store *s)
{
  int r = dedup_journal_commit (s->journal);

  if (r < 0 && r != -ENOSPC)
    return dedup_fail (&s->gate, r, "making writes durable failed");
  __atomic_store_n (&s->gate.no_space, r < 0, __ATOMIC_RELAXED);
  return r;
}

int
dedup_admit (struct dedup_store *s)
{
  return __atomic_load_n (&s->gate.no_space, __ATOMIC_RELAXED)
    ? dedup_commit (s) : 0;
}

int
dedup_sync (struct dedup_store *s)
{
  int r = dedup_journal_sync (s->journal);

  return r < 0 ? dedup_fail (&s->gate, r, "making data durable failed") : 0;
}

uint64_t
dedup_area_blocks (const struct dedup_store *s)
{
  return s->config->journal_area_size / DEDUP_BLOCK_SIZE;
}

/* Writers leave more, half an area, so they stop first. */
uint64_t
dedup_journal_slack_blocks (const struct dedup_store *s)
{
  return MIN_OF (DEDUP_JOURNAL_RESERVE, dedup_area_blocks (s) / 4);
}

/* The empty block makes the durable number durable.  It too must lie below the
 * checkpoint when bit 48 is cleared, or the next session would write its place
 * again: so it is sealed only while the gate is open. */
int
dedup_commit_empty (struct dedup_store *s)
{
  lock_acquire (s->b->lock);
  if (s->gate.recovery_bit && !s->gate.closed &&
      dedup_journal_room_locked (s->journal, 1, dedup_journal_slack_blocks (s)))
    (void) dedup_journal_force_locked (s->journal);
  lock_release (s->b->lock);
  return dedup_commit (s);
}
