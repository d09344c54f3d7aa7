/* SPDX-License-Identifier: BSD-3-Clause */
/* The configuration made durable, and what may be done only then.
 *
 * Maintenance edits the configuration in memory and commits it.  Everything
 * that it speaks of is made durable first; then it is written twice, so that
 * either slot may rot; and only when both are durable is it acted upon: areas
 * that it recycled or added are given to the journal (law 7), lookups ask the
 * tables that it lists, the checkpoint counts for what may be reused (law 6),
 * and areas that it lists no more may be freed (law 9, dedup_index_reap).
 *
 * A host without space may refuse a slot, or a block of the journal before it.
 * Then the configuration is *owed*: memory keeps what was edited, since one
 * slot may have it and be durable; nothing is undone, and nothing acted upon.
 * A crash finds the one or the other, and both are true: what the old one needs
 * was not touched yet, and what the new one needs is there.  The next commit,
 * whoever calls it, writes what was edited till then and acts upon all of it.
 * Who plans by the tables that are listed, or would list the same twice, settles
 * what is owed first (dedup_config_settle).
 *
 * Maintenance only.
 */
#include "aligned.h"
#include "disk.h"

#include <errno.h>

/* --- areas --------------------------------------------------------------------- */

/* The configuration's list: the journal's areas, then those that were recycled
 * or added and are owed to it.  Those below SEQ leave the journal and go to the
 * end of it. */
static void
recycle_areas_locked (struct dedup_disk *d, uint64_t seq)
{
  struct dedup_config *c = d->config;
  struct dedup_journal_area old[2 * DEDUP_MAX_JOURNAL_AREAS];
  size_t nr_old = d->owed.nr_areas, i;

  memcpy (old, c->areas + c->nr_areas - nr_old, nr_old * sizeof *old);
  nr_old += dedup_journal_drop_locked (d->journal, seq, old + nr_old,
                                       DEDUP_MAX_JOURNAL_AREAS);
  c->nr_areas = dedup_journal_areas_locked (d->journal, c->areas,
                                            DEDUP_MAX_JOURNAL_AREAS);
  for (i = 0; i < nr_old; i++) {
    const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];

    old[i].first_seq = last->first_seq + last->nr_blocks;
    c->areas[c->nr_areas++] = old[i];
  }
  d->owed.nr_areas = nr_old;
}

/* The configuration is durable: its new areas may be written. */
static void
add_areas_locked (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  size_t i;
  int r;

  for (i = c->nr_areas - d->owed.nr_areas; i < c->nr_areas; i++) {
    struct dedup_journal_area a = c->areas[i];

    r = dedup_journal_add_area_locked (d->journal, &a);
    assert (r == 0 && a.first_seq == c->areas[i].first_seq);
  }
  d->owed.nr_areas = 0;
}

/* Only for a test that breaks law 7: the areas that are owed. */
static int
write_again_too_early (struct dedup_disk *d)
{
  const struct dedup_config *c = d->config;
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (DEDUP_AREA_UNIT);
  size_t i;
  int r = zero ? 0 : -ENOMEM;

  for (i = c->nr_areas - d->owed.nr_areas; i < c->nr_areas && r == 0; i++)
    r = io_pwrite (d->io, zero, DEDUP_AREA_UNIT, c->areas[i].host_off);
  return r;
}

/* --- the two slots ---------------------------------------------------------------- */

/* Twice, so that both slots say the same: either one may rot.  After ENOSPC the
 * next call goes on with the slot that was not written: the other is whole. */
int
dedup_config_save (struct dedup_disk *d)
{
  int r = 0, i;

  lock_acquire (d->lock);
  dedup_all_lookups_locked (d, &d->config->lookups);
  if (!dedup_index_exact_locked (d->index))
    d->config->flags &= ~DEDUP_CONFIG_EXACT;
  d->config->index.next_id = MAX_OF (d->config->index.next_id,
                                     dedup_index_next_id (d->index));
  lock_release (d->lock);
  for (i = 0; i < 2 && r == 0; i++) {
    r = dedup_config_write (d->io, &d->ext, d->config);
    if (r == 0 && !mutation (MUTATION_LAW_5_NO_SYNC))
      r = dedup_sync (d);
  }
  return r < 0 && r != -ENOSPC ?
    dedup_fail (d, r, "writing the store's configuration failed") : r;
}

/* --- commit ------------------------------------------------------------------------ */

bool
dedup_config_owed (const struct dedup_disk *d)
{
  return __atomic_load_n (&d->owed.any, __ATOMIC_RELAXED);
}

static void
set_owed (struct dedup_disk *d, bool any)
{
  __atomic_store_n (&d->owed.any, any, __ATOMIC_RELAXED);
}

/* What the configuration says of the journal. */
static void
look_at_journal (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  LOCK_FOR_SCOPE (d->lock);

  c->index_start = dedup_index_mark_locked (d->index);
  dedup_forget_cuts (c, c->index_start);
  recycle_areas_locked (d, MIN_OF (c->checkpoint, c->index_start));
}

/* It is durable, in both slots. */
static void
act_upon (struct dedup_disk *d)
{
  lock_acquire (d->lock);
  add_areas_locked (d);
  d->checkpoint = d->config->checkpoint;
  lock_release (d->lock);
  set_owed (d, false);
  dedup_index_committed (d->index);
}

static int
write_owed (struct dedup_disk *d)
{
  int r;

  r = dedup_failed (d);
  if (r == 0)
    r = dedup_commit (d);
  if (r < 0)
    return r;
  look_at_journal (d);
  if (mutation (MUTATION_LAW_7))
    r = write_again_too_early (d);
  if (r == 0)
    r = dedup_config_save (d);
  if (r == 0)
    act_upon (d);
  return r;
}

int
dedup_config_settle (struct dedup_disk *d)
{
  return dedup_config_owed (d) ? write_owed (d) : 0;
}

int
dedup_config_commit (struct dedup_disk *d)
{
  set_owed (d, true);
  return write_owed (d);
}

int
dedup_config_add_area (struct dedup_disk *d,
                       const struct dedup_journal_area *area)
{
  struct dedup_config *c = d->config;
  const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];
  struct dedup_journal_area a = *area;

  assert (c->nr_areas < DEDUP_MAX_JOURNAL_AREAS);
  a.first_seq = last->first_seq + last->nr_blocks;
  c->areas[c->nr_areas++] = a;
  d->owed.nr_areas++;
  return dedup_config_commit (d);
}
