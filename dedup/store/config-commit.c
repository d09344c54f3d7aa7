/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the configuration durable, and then does what may be done only then.
 *
 * Maintenance edits the configuration in memory and commits it.  Everything
 * that it refers to is made durable first; then it is written twice, so that
 * either slot may rot; and only when both are durable does it take effect:
 * areas that it recycled or added are given to the journal (law 7), lookups
 * ask the tables that it lists, the checkpoint counts for what may be reused
 * (law 6), and areas that it lists no more may be freed (law 9,
 * dedup_index_reap).
 *
 * A host without space may refuse a slot, or a block of the journal before it.
 * Then the configuration is *owed*: memory keeps what was edited, since one
 * slot may have it and be durable; nothing is undone, and nothing takes
 * effect.  A crash finds the old or the new configuration, and both are true:
 * what the old one needs was not touched yet, and what the new one needs is
 * there.  The next commit, from whatever caller, writes all that was edited
 * until then, and all of it takes effect.  Callers that plan by the tables
 * that are listed, or would list the same table twice, settle what is owed
 * first (dedup_config_settle).
 *
 * Maintenance only.
 */
#include "aligned.h"
#include "mutation.h"
#include "store.h"

#include <errno.h>

/* --- areas -------------------------------------------------------------- */

/* Returns whether a write of a connection that was lost may still reach the area:
 * it would destroy blocks that are written there later. */
static bool
is_tainted (struct dedup_store *s, const struct dedup_journal_area *a)
{
  return io_tainted (s->b->io, a->host_off,
                     (uint64_t) a->nr_blocks * DEDUP_BLOCK_SIZE);
}

/* Makes the configuration's list of areas: the journal's, then those that were
 * recycled or added and are owed to it.  Areas that end below SEQ leave the
 * journal, and are put at the end of the list; those that are tainted are left to
 * the sweep of a later session, as all that no configuration lists. */
static void
recycle_areas_locked (struct dedup_store *s, uint64_t seq)
{
  struct dedup_config *c = s->config;
  struct dedup_journal_area old[2 * DEDUP_MAX_JOURNAL_AREAS];
  size_t nr_old = s->owed.nr_areas, owed = 0, i;

  memcpy (old, c->areas + c->nr_areas - nr_old, nr_old * sizeof *old);
  nr_old += dedup_journal_drop_locked (s->journal, seq, old + nr_old,
                                       DEDUP_MAX_JOURNAL_AREAS);
  c->nr_areas = dedup_journal_areas_locked (s->journal, c->areas,
                                            DEDUP_MAX_JOURNAL_AREAS);
  for (i = 0; i < nr_old; i++) {
    const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];

    if (is_tainted (s, &old[i]))
      continue;
    old[i].first_seq = last->first_seq + last->nr_blocks;
    c->areas[c->nr_areas++] = old[i];
    owed++;
  }
  s->owed.nr_areas = owed;
}

/* Gives the journal the areas that are owed to it: the configuration that lists
 * them is durable, so they may be written. */
static void
add_areas_locked (struct dedup_store *s)
{
  struct dedup_config *c = s->config;
  size_t i;
  int r;

  for (i = c->nr_areas - s->owed.nr_areas; i < c->nr_areas; i++) {
    struct dedup_journal_area a = c->areas[i];

    r = dedup_journal_add_area_locked (s->journal, &a);
    assert (r == 0 && a.first_seq == c->areas[i].first_seq);
  }
  s->owed.nr_areas = 0;
}

/* Overwrites the areas that are owed; only for a test that breaks law 7. */
static int
write_again_too_early (struct dedup_store *s)
{
  const struct dedup_config *c = s->config;
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (DEDUP_AREA_UNIT);
  size_t i;
  int r = zero ? 0 : -ENOMEM;

  for (i = c->nr_areas - s->owed.nr_areas; i < c->nr_areas && r == 0; i++)
    r = io_pwrite (s->b->io, zero, DEDUP_AREA_UNIT, c->areas[i].host_off);
  return r;
}

/* --- the two slots ------------------------------------------------------ */

/* Writes it twice, so that both slots are the same and either one may rot.
 * After -ENOSPC the next call begins with the slot that was not written: the
 * other is whole. */
int
dedup_config_save (struct dedup_store *s)
{
  int r = 0, i;

  lock_acquire (s->b->lock);
  dedup_all_lookups_locked (s, &s->config->lookups);
  if (!dedup_index_exact_locked (s->index))
    s->config->flags &= ~DEDUP_CONFIG_EXACT;
  if (!dedup_index_complete_locked (s->index))
    s->config->notes.complete = false;
  dedup_bad_save_locked (&s->bad, &s->config->notes);
  s->config->index.next_id = MAX_OF (s->config->index.next_id,
                                     dedup_index_next_id (s->index));
  lock_release (s->b->lock);
  for (i = 0; i < 2 && r == 0; i++) {
    r = dedup_config_write (s->b->io, &s->ext, s->config);
    if (r == 0 && !mutation (MUTATION_LAW_5_NO_SYNC))
      r = dedup_sync (s);
  }
  return r < 0 && r != -ENOSPC ?
    dedup_fail (&s->gate, r, "writing the store's configuration failed") : r;
}

/* --- commit ------------------------------------------------------------- */

bool
dedup_config_owed (const struct dedup_store *s)
{
  return __atomic_load_n (&s->owed.any, __ATOMIC_RELAXED);
}

bool
dedup_may_pack (const struct dedup_store *s)
{
  return __atomic_load_n (&s->may_pack, __ATOMIC_RELAXED);
}

void
dedup_set_may_pack (struct dedup_store *s)
{
  __atomic_store_n (&s->may_pack, s->config->may_pack, __ATOMIC_RELAXED);
}

static void
set_owed (struct dedup_store *s, bool any)
{
  __atomic_store_n (&s->owed.any, any, __ATOMIC_RELAXED);
}

/* Puts what the journal and the index need now into the configuration. */
static void
note_journal (struct dedup_store *s)
{
  struct dedup_config *c = s->config;
  LOCK_FOR_SCOPE (s->b->lock);

  c->index_start = dedup_index_mark_locked (s->index);
  dedup_forget_cuts (c, c->index_start);
  recycle_areas_locked (s, MIN_OF (c->checkpoint, c->index_start));
}

/* Lets the configuration take effect, which is durable in both slots. */
static void
take_effect (struct dedup_store *s)
{
  lock_acquire (s->b->lock);
  add_areas_locked (s);
  s->checkpoint = s->config->checkpoint;
  lock_release (s->b->lock);
  dedup_set_may_pack (s);
  set_owed (s, false);
  dedup_index_committed (s->index);
}

static int
write_owed (struct dedup_store *s)
{
  int r;

  r = dedup_gate_failed (&s->gate);
  if (r == 0)
    r = dedup_commit (s);
  if (r < 0)
    return r;
  note_journal (s);
  if (mutation (MUTATION_LAW_7))
    r = write_again_too_early (s);
  if (r == 0)
    r = dedup_config_save (s);
  if (r == 0)
    take_effect (s);
  return r;
}

int
dedup_config_settle (struct dedup_store *s)
{
  return dedup_config_owed (s) ? write_owed (s) : 0;
}

int
dedup_config_commit (struct dedup_store *s)
{
  set_owed (s, true);
  return write_owed (s);
}

int
dedup_config_add_area (struct dedup_store *s,
                       const struct dedup_journal_area *area)
{
  struct dedup_config *c = s->config;
  const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];
  struct dedup_journal_area a = *area;

  assert (c->nr_areas < DEDUP_MAX_JOURNAL_AREAS);
  a.first_seq = last->first_seq + last->nr_blocks;
  c->areas[c->nr_areas++] = a;
  s->owed.nr_areas++;
  return dedup_config_commit (s);
}
