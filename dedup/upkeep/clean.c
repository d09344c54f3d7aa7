/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the image clean: writes a checkpoint while no thread is inside the
 * gate, then clears bit 48 (law 5).
 *
 * While tables are lent that are not paid for, or disks are being deleted,
 * refcounts are not what other programs expect (docs/on-disk.md section 11).
 * Then bit 48 stays set behind the checkpoint.  At close the configuration says
 * that this was the reason, so that the next open does not take it for a crash.
 *
 * Clusters that are in quarantine at the end of a session are free in the next
 * one.  So an exact index forgets their entries before that, or is no longer
 * called exact.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Clears bit 48.  -ENOSPC: it is still set, and a later call may clear it. */
static int
clear_recovery_bit (struct dedup_gate *g)
{
  int r = qcow2_set_recovery_bit (g->b->img, false);   /* law 5 */

  return r < 0 && r != -ENOSPC ?
    dedup_fail (g, r, "clearing bit 48 failed") : r;
}

/* Closes the gate; returns false if a thread is inside.  If clusters are still
 * in quarantine, their entries are not forgotten, and the index is not exact
 * any more. */
static bool
close_gate (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  if (!dedup_gate_close_locked (&s->gate))
    return false;
  if (qcow2_quarantined_locked (s->b->img) > 0 ||
      qcow2_frees_lost_locked (s->b->img))
    dedup_index_doubt_locked (s->index);
  return true;
}

static bool
is_exact (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  return dedup_index_exact_locked (s->index);
}

/* Empties the quarantine, if the index is exact. */
static int
drain_exact (struct dedup_upkeep *u)
{
  return is_exact (u->s) ? dedup_drain_quarantine (u) : 0;
}

/* Writes the last checkpoint of a session that leaves work to the next one. */
static int
checkpoint_with_work (struct dedup_store *s)
{
  int r;

  assert (s->config->has_disks);
  s->config->flags |= DEDUP_CONFIG_WORK_LEFT;
  r = dedup_checkpoint (s);
  s->config->flags &= ~DEDUP_CONFIG_WORK_LEFT;
  return r;
}

/* Returns whether there is work left, now that the gate is closed.  Then the
 * next change raises bit 48 as if it were clear, because that also marks
 * bitmaps in use. */
static bool
work_is_left (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  if (mutation (MUTATION_WORK_NO_BIT))
    return false;
  if (s->work_left)
    s->gate.bit_raised = false;
  return s->work_left;
}

/* Writes the checkpoint, and clears bit 48, while the gate is closed.  If the
 * index is exact, quarantine was empty, and the checkpoint has put nothing but
 * tables into it: they are released here, because later that would set bit 48
 * again. */
static int
clean_behind_gate (struct dedup_upkeep *u, bool closing)
{
  const bool left = work_is_left (u->s), exact = is_exact (u->s);
  bool cleared;
  int r;

  if (mutation (MUTATION_LAW_5))
    r = qcow2_set_recovery_bit (u->b->img, false);
  r = left && closing ? checkpoint_with_work (u->s) : dedup_checkpoint (u->s);
  if (r == 0 && !left)
    r = clear_recovery_bit (&u->s->gate);
  cleared = r == 0 && !left;
  if (r == 0 && exact)
    r = dedup_release_tables (u);
  dedup_gate_open (&u->s->gate, cleared);
  return r;
}

/* Does what dedup_clean and dedup_clean_at_close say. */
static int
clean (struct dedup_upkeep *u, bool closing)
{
  bool dirty;
  int r;

  lock_acquire (u->b->lock);
  dirty = u->s->gate.recovery_bit;
  lock_release (u->b->lock);
  if (!dirty)
    return 0;
  r = dedup_config_settle (u->s);  /* nothing leaves quarantine before */
  if (r == 0)
    r = drain_exact (u);
  if (r < 0)
    return r;
  if (!close_gate (u->s))
    return 1;
  r = clean_behind_gate (u, closing);
  /* The checkpoint leaves no recovery that would look at what was freed. */
  return r == 0 && !is_exact (u->s) ? dedup_release_quarantine (u) : r;
}

int
dedup_clean (struct dedup_upkeep *u)
{
  return clean (u, false);
}

int
dedup_clean_at_close (struct dedup_upkeep *u)
{
  return clean (u, true);
}
