/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes room in the journal for one group of very many records, such as a clone of
 * a large disk has.
 *
 * Areas are added until the group fits; above the configuration's maximum, as for a
 * writer, if not enough of the journal can be used again.  The group waits in memory as a whole until it is written,
 * which limits it.
 *
 * Any thread, without locks, but for dedup_large_room_locked.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Bytes of the records that such a group has very many of: REFCOUNT and ENTRY. */
#define RECORD_BYTES 24u
/* Other records of the group. */
#define FEW_RECORDS 64u

/* Returns how many records of the largest size take as much as these. */
static uint64_t
largest_records (uint64_t nr_records)
{
  return nr_records * RECORD_BYTES / DEDUP_REC_MAX + FEW_RECORDS;
}

bool
dedup_large_room_locked (struct dedup_upkeep *u, uint64_t nr_records)
{
  assert (lock_held (u->b->lock));
  return dedup_journal_room_locked (u->s->journal, largest_records (nr_records),
                                    dedup_area_blocks (u->s) / 2);
}

static bool
has_room (struct dedup_upkeep *u, uint64_t nr_records)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return dedup_large_room_locked (u, nr_records);
}

/* Returns whether the areas are large enough, so that only memory is missing,
 * which a flush frees. */
static bool
areas_suffice (struct dedup_upkeep *u, uint64_t nr_records)
{
  const uint64_t blocks = largest_records (nr_records) * DEDUP_REC_MAX /
    (DEDUP_BLOCK_SIZE / 2);
  LOCK_FOR_SCOPE (u->b->lock);

  return dedup_journal_left_locked (u->s->journal) > blocks +
    dedup_area_blocks (u->s) / 2 + DEDUP_JOURNAL_RESERVE;
}

int
dedup_make_large_room (struct dedup_upkeep *u, uint64_t nr_records)
{
  int r;

  if (nr_records > DEDUP_LARGE_GROUP_RECORDS)
    return -EFBIG;
  dedup_maintenance_begin (u);
  r = dedup_gate_failed (&u->s->gate);
  if (r == 0)
    r = dedup_config_settle (u->s);
  if (r == 0 && !areas_suffice (u, nr_records) &&
      u->s->config->nr_areas >= u->s->config->max_journal_areas)
    r = dedup_journal_recycle (u);
  while (r == 0 && !areas_suffice (u, nr_records))
    r = dedup_add_journal_area (u->s);
  if (r == 0 && !has_room (u, nr_records))
    r = dedup_upkeep_flush (u);
  dedup_maintenance_end (u);
  return r;                     /* the caller looks again */
}
