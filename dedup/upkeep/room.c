/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells whether journal, index and table cache have room for an operation, and
 * whether they are so near their limits that a job is due.  It makes no room:
 * make-room.c and jobs.c do.
 *
 * Under the image lock, but for dedup_too_dirty.
 */
#include "upkeep-private.h"

/* A checkpoint is due when a recovery would read more areas than this. */
#define LONG_JOURNAL(c) ((c)->max_journal_areas / 2)
/* A record INDEX in the journal (docs/on-disk.md 3.2). */
#define INDEX_BYTES 42u

bool
dedup_commit_due_locked (struct dedup_upkeep *u)
{
  assert (lock_held (u->b->lock));
  return u->uncommitted_bytes > DEDUP_UNCOMMITTED_HIGH ||
    dedup_journal_filling_locked (u->s->journal);
}

bool
dedup_room_locked (struct dedup_upkeep *u, size_t nr, size_t nr_inserts)
{
  struct dedup_journal *j = u->s->journal;
  const size_t nr_records = nr * DEDUP_RECORDS_PER_CLUSTER +
    DEDUP_OPERATION_RECORDS;

  assert (lock_held (u->b->lock));
  if (dedup_commit_due_locked (u))
    dedup_ask_for_commit_locked (&u->s->gate);
  /* The last half area is for maintenance, which makes room. */
  if (dedup_journal_left_locked (j) < dedup_area_blocks (u->s) / 2 ||
      !dedup_journal_room_locked (j, nr_records, 0))
    return false;
  if (qcow2_dirty_bytes_locked (u->b->img) > u->dirty_max)
    return false;
  return nr_inserts == 0 || dedup_index_room_locked (u->s, nr_inserts);
}

/* Returns how many blocks a recovery would read now. */
static uint64_t
replay_blocks_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  return dedup_journal_seq_locked (s->journal) - s->checkpoint;
}

bool
dedup_checkpoint_due_locked (struct dedup_upkeep *u)
{
  assert (lock_held (u->b->lock));
  return qcow2_dirty_bytes_locked (u->b->img) > u->dirty_high ||
    replay_blocks_locked (u->s) >
    LONG_JOURNAL (u->s->config) * dedup_area_blocks (u->s);
}

bool
dedup_journal_low_locked (struct dedup_store *s)
{
  assert (lock_held (s->b->lock));
  return dedup_journal_left_locked (s->journal) < dedup_area_blocks (s);
}

/* Returns how many blocks the entries of the log store take when they are logged again. */
static uint64_t
packed_blocks_locked (struct dedup_store *s)
{
  return div_round_up (dedup_index_nr_current_locked (s->index) * INDEX_BYTES,
                       DEDUP_BLOCK_SIZE - DEDUP_BLOCK_HEADER);
}

/* What is logged again is a copy.  Were it made only when less than an area is left,
 * that of a full log store, which is several areas, would need new ones each time, and
 * the journal would grow to its limit, where entries are dropped instead.  It is worth
 * while only if the copy frees more than it takes, which also keeps it from being made
 * again at once. */
bool
dedup_pack_due_locked (struct dedup_store *s)
{
  const uint64_t area = dedup_area_blocks (s), copy = packed_blocks_locked (s);

  assert (lock_held (s->b->lock));
  return dedup_journal_left_locked (s->journal) < area + copy &&
    dedup_journal_seq_locked (s->journal) - dedup_index_mark_locked (s->index) >
    area + 2 * copy;
}

bool
dedup_too_dirty (struct dedup_upkeep *u)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return qcow2_dirty_bytes_locked (u->b->img) > u->dirty_max;
}
