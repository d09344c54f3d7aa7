/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes room in the journal when its areas run short.
 *
 * It adds an area, up to the configuration's maximum; then removes what keeps
 * old areas from being recycled: changed tables by a checkpoint, young entries
 * of the index by a freeze or, where the log store is not full, by packing, as long
 * as the copy has room.
 * If all that is not enough it exceeds the maximum, and where the host is full
 * it drops young entries, rather than let writers wait.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

static bool
journal_low (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_journal_low_locked (s);
}

/* Returns true if less is left than an area, or than packing needs. */
static bool
needs_room (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_journal_low_locked (s) || dedup_pack_due_locked (s);
}

/* Returns true if writers may append: see dedup_room_locked. */
static bool
writers_have_room (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_journal_left_locked (s->journal) >= dedup_area_blocks (s) / 2;
}

/* Returns true if young entries keep the oldest area from being recycled. */
static bool
index_holds_journal (struct dedup_store *s)
{
  const struct dedup_journal_area *first = &s->config->areas[0];

  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_index_mark_locked (s->index) <
    first->first_seq + first->nr_blocks;
}

int
dedup_journal_recycle (struct dedup_upkeep *u)
{
  int r = dedup_checkpoint (u->s);

  if (r == 0 && index_holds_journal (u->s)) {
    r = dedup_freeze (u);
    if (r == -ENOSPC)
      r = dedup_drop_frozen (u->s);
    if (r == 0 && index_holds_journal (u->s))
      r = dedup_repack (u);
    if (r == -ENOSPC)
      r = dedup_drop_current (u->s);
  }
  return r < 0 ? r : dedup_config_commit (u->s);
}

int
dedup_journal_extend (struct dedup_upkeep *u)
{
  int r = dedup_gate_failed (&u->s->gate);

  if (r < 0 || !needs_room (u->s))
    return r;
  r = dedup_config_commit (u->s);   /* recycles what it can */
  if (r < 0 || !needs_room (u->s))
    return r;
  if (u->s->config->nr_areas < u->s->config->max_journal_areas) {
    r = dedup_add_journal_area (u->s);
    if (r != -ENOSPC)           /* host full: go on with what there is */
      return r;
  }
  r = dedup_checkpoint (u->s);
  if (r < 0 || !needs_room (u->s))
    return r;
  if (index_holds_journal (u->s)) {
    r = dedup_freeze (u);
    if (r == -ENOSPC)
      r = dedup_drop_frozen (u->s);
    if (r == 0 && needs_room (u->s))
      r = dedup_repack (u);
  }
  if (r == 0 && journal_low (u->s))
    r = dedup_add_journal_area (u->s);   /* above the maximum */
  if (r == -ENOSPC && journal_low (u->s) && index_holds_journal (u->s))
    r = dedup_drop_current (u->s);
  /* Other writers have used up meanwhile what was gained, but not all of it. */
  return r == -ENOSPC && writers_have_room (u->s) ? 0 : r;
}
