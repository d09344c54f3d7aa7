/* SPDX-License-Identifier: BSD-3-Clause */
/* Packs the journal: copies the entries of the log store to its head, so that
 * the areas which hold their older records can be recycled.
 *
 * A list of the hashes is made under one hold of the image lock, and logged in
 * slices, with the values that the entries have by then.  Writers go on in
 * between; if they set the log store aside, its freeze makes the rest
 * unnecessary.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Lists the hashes in the current log store, in *HASHES, which the caller
 * frees.  *WHICH names the log store; *START is the block from which on it is
 * logged again. */
static int
list_hashes (struct dedup_store *s, const void **which,
             struct dedup_hash **hashes, size_t *nr, uint64_t *start)
{
  LOCK_FOR_SCOPE (s->b->lock);
  int r = dedup_index_list_locked (s->index, hashes, nr, which);

  if (r == 0)
    *start = dedup_journal_seal_locked (s->journal);
  return r;
}

/* Logs again the entries that found no place in the log store. */
static void
log_spilled_locked (struct dedup_store *s)
{
  const struct dedup_entry *v;
  size_t i, nr;

  assert (lock_held (s->b->lock));
  v = dedup_index_spilled_locked (s->index, &nr);
  for (i = 0; i < nr; i++)
    dedup_entry_record_locked (s, &v[i].hash, v[i].value);
}

#define PACK_SLICE 512          /* hashes under one hold of the lock */

/* Logs a slice again.  Returns 1, or 0 if the log store was set aside
 * meanwhile; -EBUSY: the journal has no room. */
static int
pack_slice (struct dedup_store *s, const void *which,
            const struct dedup_hash *hashes, size_t nr, bool first)
{
  uint64_t value;
  size_t i;

  LOCK_FOR_SCOPE (s->b->lock);
  if (!dedup_index_is_listed_locked (s->index, which))
    return 0;
  if (!dedup_journal_room_locked (s->journal, nr + DEDUP_OPERATION_RECORDS,
                                  dedup_journal_slack_blocks (s)))
    return -EBUSY;
  if (first)
    log_spilled_locked (s);
  for (i = 0; i < nr; i++)
    if (dedup_index_young_locked (s->index, &hashes[i], &value))
      dedup_entry_locked (s, &hashes[i], value);
  dedup_journal_end_locked (s->journal);
  return 1;
}

static int
make_pack_room (struct dedup_upkeep *u)
{
  int r = dedup_add_journal_area (u->s);

  return r == 0 ? dedup_upkeep_flush (u) : r;
}

/* Logs all hashes again.  Returns as pack_slice; -EINTR: it must return
 * soon. */
static int
pack_hashes (struct dedup_upkeep *u, const void *which,
             const struct dedup_hash *hashes, size_t nr)
{
  size_t done = 0, n;
  int r;

  while (done < nr) {
    if (dedup_stopping (u))
      return -EINTR;
    n = MIN_OF (nr - done, PACK_SLICE);
    r = pack_slice (u->s, which, hashes + done, n, done == 0);
    if (r == 0)
      return 0;
    if (r == 1)
      done += n;
    else if ((r = make_pack_room (u)) < 0)
      return r;
  }
  return 1;
}

int
dedup_repack (struct dedup_upkeep *u)
{
  CLEANUP_FREE struct dedup_hash *hashes = NULL;
  const void *which = NULL;
  uint64_t start = 0;
  size_t nr;
  int r;

  r = dedup_enter (&u->s->gate);
  if (r < 0)
    return r;
  r = list_hashes (u->s, &which, &hashes, &nr, &start);
  if (r == 0)
    r = pack_hashes (u, which, hashes, nr);
  dedup_leave (&u->s->gate);
  if (r != 1)
    return r;
  lock_acquire (u->b->lock);
  dedup_index_relogged_locked (u->s->index, which, start);
  lock_release (u->b->lock);
  return dedup_config_commit (u->s);
}

/* Inside the gate, as entries may be in memory only in between: bit 48 must say
 * so if a crash comes.  No merge step can be under way at open. */
int
dedup_relog_index (struct dedup_upkeep *u)
{
  int r = dedup_enter (&u->s->gate);

  if (r < 0)
    return r;
  r = dedup_freeze (u);
  if (r == 0)
    r = dedup_repack (u);
  dedup_leave (&u->s->gate);
  return r;
}
