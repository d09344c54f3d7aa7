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

/* The hashes in the current log store.  Taken at once: entries move between
 * slots when others come in, so a walk in slices could pass one over. */
static int
list_hashes (struct dedup_disk *d, const struct dedup_log_store **current,
             struct dedup_hash **hashes, size_t *nr, uint64_t *start)
{
  const struct dedup_log_store *ls;
  size_t slot, slots;
  uint64_t host_idx;

  LOCK_FOR_SCOPE (d->lock);
  ls = *current = d->index.current;
  slots = (size_t) DEDUP_BUCKET_SLOTS << dedup_log_store_order (ls);
  *nr = 0;
  *hashes = malloc ((dedup_log_store_count (ls) + 1) * sizeof **hashes);
  if (*hashes == NULL)
    return -ENOMEM;
  for (slot = 0; slot < slots; slot++)
    if (dedup_log_store_slot (ls, slot, &(*hashes)[*nr], &host_idx))
      ++*nr;
  *start = dedup_journal_seal_locked (d->journal);
  return 0;
}

/* What found no place in the log store is logged anew too. */
static void
pack_spilled_locked (struct dedup_disk *d)
{
  struct dedup_index *x = &d->index;
  size_t i;

  for (i = 0; i < x->nr_spilled; i++) {
    struct dedup_record rec = {
      .type = x->spilled[i].host_idx == DEDUP_DELETED ? DEDUP_REC_DELETE
        : DEDUP_REC_INDEX,
      .hash = x->spilled[i].hash, .host_idx = x->spilled[i].host_idx,
    };
    dedup_journal_append_locked (d->journal, &rec);
  }
}

#define PACK_SLICE 512

/* Log a slice anew, with the values that the entries have now.  1: gone on;
 * 0: the log store was set aside meanwhile, its freeze does the rest. */
static int
pack_slice (struct dedup_disk *d, const struct dedup_log_store *ls,
            const struct dedup_hash *hashes, size_t nr, bool first)
{
  uint64_t host_idx;
  size_t i;

  LOCK_FOR_SCOPE (d->lock);
  if (d->index.current != ls)
    return 0;
  if (!dedup_journal_room_locked (d->journal, nr + DEDUP_OPERATION_RECORDS,
                                  dedup_places_to_leave (d)))
    return -EBUSY;
  if (first)
    pack_spilled_locked (d);
  for (i = 0; i < nr; i++)
    if (dedup_log_store_lookup (ls, &hashes[i], &host_idx))
      dedup_index_log_locked (d, &hashes[i], host_idx);
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
pack_hashes (struct dedup_disk *d, const struct dedup_log_store *ls,
             const struct dedup_hash *hashes, size_t nr)
{
  size_t done = 0, n;
  int r;

  while (done < nr) {
    if (__atomic_load_n (&d->stop, __ATOMIC_RELAXED))
      return -EINTR;
    n = MIN_OF (nr - done, PACK_SLICE);
    r = pack_slice (d, ls, hashes + done, n, done == 0);
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
  const struct dedup_log_store *ls = NULL;
  uint64_t start;
  size_t nr;
  int r;

  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = list_hashes (d, &ls, &hashes, &nr, &start);
  if (r == 0)
    r = pack_hashes (d, ls, hashes, nr);
  dedup_change_end (d);
  if (r != 1)
    return r;
  lock_acquire (d->lock);
  if (d->index.current == ls && d->index.frozen == NULL)
    d->index.current_start = start;
  lock_release (d->lock);
  return dedup_config_commit (d, NULL, false);
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
  return dedup_index_start_locked (d) < first->first_seq + first->nr_blocks;
}

int
dedup_journal_extend (struct dedup_disk *d)
{
  int r = dedup_failed (d);

  if (r < 0 || !journal_low (d))
    return r;
  r = dedup_config_commit (d, NULL, false);   /* recycles what it can */
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
