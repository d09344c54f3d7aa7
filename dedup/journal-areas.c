/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal's areas: one more when they run short, and what keeps old ones
 * from being used again moved out of their way: changed tables by a checkpoint,
 * the index by a freeze or, where the log store is not full, by logging its
 * entries anew (pack).
 *
 * Maintenance only.
 */
#include "disk.h"

#include <errno.h>

uint64_t
dedup_area_blocks (const struct dedup_disk *d)
{
  return d->config->journal_area_size / DEDUP_BLOCK_SIZE;
}

/* Writers, who leave half an area, stop before that. */
uint64_t
dedup_places_to_leave (const struct dedup_disk *d)
{
  return MIN_OF (DEDUP_JOURNAL_RESERVE, dedup_area_blocks (d) / 4);
}

bool
dedup_journal_low_locked (struct dedup_disk *d)
{
  return dedup_journal_left_locked (d->journal) < dedup_area_blocks (d);
}

static bool
journal_low (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return dedup_journal_low_locked (d);
}

/* An area that nothing lists is garbage to the next session, at the latest. */
static int
free_area (struct dedup_disk *d, const struct dedup_journal_area *a, int r)
{
  if (dedup_area_free (d, a->host_off, d->config->journal_area_size) < 0)
    log_line (d->log, LOG_DEBUG, "%s: an area is left to the next sweep",
              d->path);
  return r;
}

/* List one more area, then use it.  The configuration's sync makes it real
 * before (ahead.c).  Without space for a configuration there is no use in
 * another area. */
static int
add_area (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  struct dedup_journal_area a = {
    .nr_blocks = (uint32_t) dedup_area_blocks (d),
  };
  int r;

  if (c->nr_areas >= DEDUP_MAX_JOURNAL_AREAS)
    return -ENOSPC;
  r = dedup_config_settle (d);
  if (r == 0)
    r = dedup_area_alloc (d, c->journal_area_size, &a.host_off);
  if (r < 0)
    return r;
  r = dedup_ahead_area (d->io, a.host_off, c->journal_area_size);
  if (r == 0)
    r = dedup_sync (d);
  if (r < 0)
    return free_area (d, &a, r);
  return dedup_config_add_area (d, &a);
}

/* The hashes in the current log store, which begins to be logged anew at
 * *START. */
static int
list_hashes (struct dedup_disk *d, const void **which,
             struct dedup_hash **hashes, size_t *nr, uint64_t *start)
{
  LOCK_FOR_SCOPE (d->lock);
  int r = dedup_index_list_locked (d->index, hashes, nr, which);

  if (r == 0)
    *start = dedup_journal_seal_locked (d->journal);
  return r;
}

/* What found no place in the log store is logged anew too. */
static void
pack_spilled_locked (struct dedup_disk *d)
{
  const struct dedup_entry *v;
  size_t i, nr;

  v = dedup_index_spilled_locked (d->index, &nr);
  for (i = 0; i < nr; i++)
    dedup_entry_record_locked (d, &v[i].hash, v[i].value);
}

#define PACK_SLICE 512

/* Log a slice anew, with the values that the entries have now.  1: gone on;
 * 0: the log store was set aside meanwhile, its freeze does the rest. */
static int
pack_slice (struct dedup_disk *d, const void *which,
            const struct dedup_hash *hashes, size_t nr, bool first)
{
  uint64_t value;
  size_t i;

  LOCK_FOR_SCOPE (d->lock);
  if (!dedup_index_is_listed_locked (d->index, which))
    return 0;
  if (!dedup_journal_room_locked (d->journal, nr + DEDUP_OPERATION_RECORDS,
                                  dedup_places_to_leave (d)))
    return -EBUSY;
  if (first)
    pack_spilled_locked (d);
  for (i = 0; i < nr; i++)
    if (dedup_index_young_locked (d->index, &hashes[i], &value))
      dedup_entry_locked (d, &hashes[i], value);
  dedup_journal_end_locked (d->journal);
  return 1;
}

static int
make_pack_room (struct dedup_disk *d)
{
  int r = add_area (d);

  return r == 0 ? dedup_flush (d) : r;
}

static int
pack_hashes (struct dedup_disk *d, const void *which,
             const struct dedup_hash *hashes, size_t nr)
{
  size_t done = 0, n;
  int r;

  while (done < nr) {
    if (__atomic_load_n (&d->stop, __ATOMIC_RELAXED))
      return -EINTR;
    n = MIN_OF (nr - done, PACK_SLICE);
    r = pack_slice (d, which, hashes + done, n, done == 0);
    if (r == 0)
      return 0;
    if (r == 1)
      done += n;
    else if ((r = make_pack_room (d)) < 0)
      return r;
  }
  return 1;
}

/* Copy all live entries to the journal's head, so that the areas which hold
 * them now can be recycled. */
static int
pack (struct dedup_disk *d)
{
  CLEANUP_FREE struct dedup_hash *hashes = NULL;
  const void *which = NULL;
  uint64_t start = 0;
  size_t nr;
  int r;

  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = list_hashes (d, &which, &hashes, &nr, &start);
  if (r == 0)
    r = pack_hashes (d, which, hashes, nr);
  dedup_change_end (d);
  if (r != 1)
    return r;
  lock_acquire (d->lock);
  dedup_index_relogged_locked (d->index, which, start);
  lock_release (d->lock);
  return dedup_config_commit (d);
}

/* In between, entries may be in memory only: a crash must be known as one. */
int
dedup_relog_index (struct dedup_disk *d)
{
  int r = dedup_change_begin (d);

  if (r < 0)
    return r;
  r = dedup_freeze (d);
  if (r == 0)
    r = pack (d);
  dedup_change_end (d);
  return r;
}

/* Is it the log store's entries that keep old areas from being recycled? */
static bool
index_holds_journal (struct dedup_disk *d)
{
  const struct dedup_journal_area *first = &d->config->areas[0];

  LOCK_FOR_SCOPE (d->lock);
  return dedup_index_mark_locked (d->index) < first->first_seq + first->nr_blocks;
}

int
dedup_journal_extend (struct dedup_disk *d)
{
  int r = dedup_failed (d);

  if (r < 0 || !journal_low (d))
    return r;
  r = dedup_config_commit (d);   /* recycles what it can */
  if (r < 0 || !journal_low (d))
    return r;
  if (d->config->nr_areas < d->config->max_journal_areas) {
    r = add_area (d);
    if (r != -ENOSPC)           /* a full disk: make do with what there is */
      return r;
  }
  r = dedup_checkpoint (d);
  if (r < 0 || !journal_low (d))
    return r;
  if (index_holds_journal (d)) {
    r = dedup_freeze (d);
    if (r == -ENOSPC)
      r = dedup_drop_frozen (d);
    if (r == 0 && journal_low (d))
      r = pack (d);
  }
  if (r == 0 && journal_low (d))
    r = add_area (d);           /* over the limit, rather than wait */
  if (r == -ENOSPC && journal_low (d) && index_holds_journal (d))
    r = dedup_drop_current (d);
  return r;
}
