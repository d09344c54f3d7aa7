/* SPDX-License-Identifier: BSD-3-Clause */
/* The index: from a content hash to the host cluster that may hold it.
 *
 * Young entries are in the current log store, older ones in the frozen log
 * store (while it is being written) and in incarnations and runs (tables.c).  The
 * index is advice: whoever follows an entry checks the cluster.  The log stores
 * change under the disk's lock.
 *
 * A log store that fills up is set aside only between groups of records, at
 * the start of a journal block that says so (FREEZE), so that a replay builds
 * the same two log stores.
 */
#include "disk.h"

#include <errno.h>

int
dedup_index_init (struct dedup_disk *d)
{
  struct dedup_index *x = &d->index;
  int r;

  r = dedup_log_store_new (d->config->order, &x->current);
  if (r < 0)
    return r;
  x->current_start = d->config->index_start;
  return dedup_index_prepare (d, &x->set);
}

void
dedup_index_free (struct dedup_disk *d)
{
  dedup_log_store_free (d->index.current);
  dedup_log_store_free (d->index.frozen);
  dedup_log_store_free (d->index.spare);
  dedup_incarnations_put (d->index.set);
}

void
dedup_index_prefetch_locked (struct dedup_disk *d, const struct dedup_hash *h)
{
  assert (lock_held (d->lock));
  dedup_log_store_prefetch (d->index.current, h);
  if (d->index.frozen)
    dedup_log_store_prefetch (d->index.frozen, h);
}

static struct dedup_spilled *
find_spilled (struct dedup_index *x, const struct dedup_hash *h)
{
  size_t i;

  for (i = 0; i < x->nr_spilled; i++)
    if (dedup_hash_equal (&x->spilled[i].hash, h))
      return &x->spilled[i];
  return NULL;
}

enum dedup_found
dedup_index_lookup_locked (struct dedup_disk *d, const struct dedup_hash *h,
                           uint64_t *host_idx)
{
  struct dedup_index *x = &d->index;
  const struct dedup_spilled *s = find_spilled (x, h);

  assert (lock_held (d->lock));
  if (s != NULL)
    *host_idx = s->host_idx;
  if (s != NULL || dedup_log_store_lookup (x->current, h, host_idx) ||
      (x->frozen && dedup_log_store_lookup (x->frozen, h, host_idx)))
    return *host_idx == DEDUP_DELETED ? DEDUP_MISS : DEDUP_HIT;
  return x->set->nr_tables > 0 ? DEDUP_PROBE : DEDUP_MISS;
}

int
dedup_index_swap_locked (struct dedup_disk *d, uint64_t start)
{
  struct dedup_index *x = &d->index;
  struct dedup_log_store *ls = x->spare;
  int r;

  assert (lock_held (d->lock));
  assert (x->frozen == NULL);
  if (ls == NULL) {
    r = dedup_log_store_new (dedup_log_store_order (x->current), &ls);
    if (r < 0)
      return r;
  }
  x->spare = NULL;
  x->frozen = x->current;
  x->frozen_start = x->current_start;
  x->current = ls;
  x->current_start = start;
  return 0;
}

void
dedup_index_log_locked (struct dedup_disk *d, const struct dedup_hash *h,
                        uint64_t host_idx)
{
  struct dedup_record rec = { .type = DEDUP_REC_INDEX, .hash = *h,
                              .host_idx = host_idx };

  if (host_idx == DEDUP_DELETED)
    rec.type = DEDUP_REC_DELETE;
  dedup_journal_append_locked (d->journal, &rec);
  dedup_index_insert_locked (d, h, host_idx);
}

/* Entries that the old log store had no place for open the new one. */
static void
log_spilled_locked (struct dedup_disk *d)
{
  struct dedup_index *x = &d->index;
  size_t i, nr = x->nr_spilled;

  x->nr_spilled = 0;
  for (i = 0; i < nr; i++)
    dedup_index_log_locked (d, &x->spilled[i].hash, x->spilled[i].host_idx);
}

/* Start a block with FREEZE and set the log store aside there. */
static int
set_aside_locked (struct dedup_disk *d)
{
  struct dedup_record freeze = { .type = DEDUP_REC_FREEZE };
  uint64_t start;
  int r;

  start = dedup_journal_seal_locked (d->journal);
  r = dedup_index_swap_locked (d, start);
  if (r < 0)
    return r;
  dedup_journal_append_locked (d->journal, &freeze);
  log_spilled_locked (d);
  dedup_journal_end_locked (d->journal);
  dedup_wake (d);
  return 0;
}

bool
dedup_index_room_locked (struct dedup_disk *d, size_t nr)
{
  struct dedup_index *x = &d->index;
  size_t capacity = dedup_log_store_capacity (x->current);

  assert (lock_held (d->lock));
  /* A log store smaller than one operation takes what it can. */
  nr = MIN_OF (nr, capacity);
  if (x->nr_spilled == 0 &&
      dedup_log_store_count (x->current) + nr <= capacity)
    return true;
  if (x->frozen != NULL)
    return false;
  /* Without memory for another log store, entries that find no place are
   * lost: so may tombstones be. */
  if (set_aside_locked (d) < 0)
    d->exact = false;
  return true;
}

void
dedup_index_insert_locked (struct dedup_disk *d, const struct dedup_hash *h,
                           uint64_t host_idx)
{
  struct dedup_spilled *s = find_spilled (&d->index, h);

  assert (lock_held (d->lock));
  if (s != NULL)
    s->host_idx = host_idx;      /* even if there is a place by now */
  else if (dedup_log_store_insert (d->index.current, h, host_idx) == 0)
    return;
  else if (d->index.nr_spilled < DEDUP_MAX_SPILLED)
    d->index.spilled[d->index.nr_spilled++]
      = (struct dedup_spilled) { *h, host_idx };
  else
    d->exact = false;            /* lost; it may be a tombstone */
}

/* Kept, as the memory of a new one would have to be fetched page by page,
 * under the lock. */
void
dedup_index_keep_spare (struct dedup_disk *d, struct dedup_log_store *ls)
{
  if (ls == NULL)
    return;
  dedup_log_store_clear (ls);
  lock_acquire (d->lock);
  if (d->index.spare == NULL) {
    d->index.spare = ls;
    ls = NULL;
  }
  lock_release (d->lock);
  dedup_log_store_free (ls);
}

uint64_t
dedup_index_start_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  return d->index.frozen ? d->index.frozen_start : d->index.current_start;
}

int
dedup_index_reset_locked (struct dedup_disk *d, uint64_t start)
{
  struct dedup_index *x = &d->index;
  struct dedup_log_store *ls;
  int r;

  assert (lock_held (d->lock));
  r = dedup_log_store_new (dedup_log_store_order (x->current), &ls);
  if (r < 0)
    return r;
  dedup_log_store_free (x->current);
  x->current = ls;
  x->current_start = start;
  x->nr_spilled = 0;
  return 0;
}
