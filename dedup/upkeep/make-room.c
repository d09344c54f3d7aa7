/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes room, or finds space on the host, for a writer that lacks it.
 *
 * The writer does the maintenance itself, or waits for the maintenance mutex
 * while another thread does it.  It may wait for the mutex inside the gate.
 * The mutex's holder may enter the gate too; but the gate is closed only by
 * dedup_clean, which needs the mutex itself and gives up while a thread is
 * inside, and for a moment while bit 48 is set, which waits only for I/O.
 *
 * Any thread, without locks.
 */
#include "upkeep-private.h"

#include <errno.h>

static bool
has_frozen (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_index_frozen_locked (s->index);
}

static bool
index_full (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return !dedup_index_room_locked (s, DEDUP_CHUNK_CLUSTERS);
}

/* Makes room as maintenance.  -EBUSY: others are about to make it. */
static int
make_room (struct dedup_upkeep *u)
{
  int r = dedup_gate_failed (&u->s->gate);

  if (r == 0)
    r = dedup_upkeep_flush (u);
  if (r == 0)
    r = dedup_journal_extend (u);
  if (r == 0 && dedup_too_dirty (u))
    r = dedup_checkpoint (u->s);
  if (r == 0 && has_frozen (u->s) && index_full (u->s)) {
    r = dedup_freeze (u);
    if (r == -ENOSPC)
      r = dedup_drop_frozen (u->s);
  }
  return r;
}

int
dedup_make_room (struct dedup_upkeep *u)
{
  int r;

  dedup_wake (u->b);
  dedup_maintenance_begin (u);
  r = make_room (u);
  dedup_maintenance_end (u);
  return r == -EBUSY ? 0 : r;   /* the writer comes again, and waits first */
}

static bool
any_quarantined (struct dedup_upkeep *u)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return qcow2_quarantined_locked (u->b->img) > 0;
}

/* Makes freed clusters usable.  They stay in quarantine while there is no room for
 * the tombstones of their entries, or while a configuration is owed: then room is
 * made, and the configuration written, first. */
static int
release_freed (struct dedup_upkeep *u)
{
  int r = dedup_drain_quarantine (u);

  if (r < 0 || !any_quarantined (u))
    return r;
  r = dedup_config_settle (u->s);
  if (r == 0)
    r = make_room (u);
  if (r == 0)
    r = dedup_drain_quarantine (u);
  return r == -ENOSPC || r == -EBUSY ? 0 : r;
}

int
dedup_find_space (struct dedup_upkeep *u)
{
  int r;

  dedup_maintenance_begin (u);
  lock_acquire (u->b->lock);
  dedup_prewrite_give_back_locked (&u->prewrite);
  lock_release (u->b->lock);
  r = dedup_gate_failed (&u->s->gate);
  if (r == 0)
    r = dedup_find_garbage (u);
  if (r >= 0 || r == -EBUSY)    /* what was found so far may be enough */
    r = release_freed (u);
  if (r >= 0)
    dedup_wait_for_freeing (&u->give);
  dedup_maintenance_end (u);
  return r;
}
