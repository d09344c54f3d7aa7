/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the young entries: the current log store, the frozen one while it is
 * being written, and the entries that found no place in the current one.
 *
 * When the current log store is full, the owner sets it aside and logs that, so
 * that a replay of the log builds the same two log stores.
 *
 * All is under the lock.  The freeze reads the frozen log store without the
 * lock, because it does not change any more.
 */
#include "index-private.h"

#include <errno.h>

void
dedup_index_prefetch_locked (struct dedup_index *x, const struct dedup_hash *h)
{
  assert (lock_held (x->lock));
  dedup_log_store_prefetch (x->current, h);
  if (x->frozen)
    dedup_log_store_prefetch (x->frozen, h);
}

static struct dedup_entry *
find_spilled (struct dedup_index *x, const struct dedup_hash *h)
{
  size_t i;

  for (i = 0; i < x->nr_spilled; i++)
    if (dedup_hash_equal (&x->spilled[i].hash, h))
      return &x->spilled[i];
  return NULL;
}

enum dedup_found
dedup_index_lookup_locked (struct dedup_index *x, const struct dedup_hash *h,
                           uint64_t *value)
{
  const struct dedup_entry *s = find_spilled (x, h);

  assert (lock_held (x->lock));
  if (s != NULL)
    *value = s->value;
  if (s != NULL || dedup_log_store_lookup (x->current, h, value) ||
      (x->frozen && dedup_log_store_lookup (x->frozen, h, value)))
    return *value == DEDUP_DELETED ? DEDUP_MISS : DEDUP_HIT;
  return x->view->nr_tables > 0 ? DEDUP_PROBE : DEDUP_MISS;
}

enum dedup_fit
dedup_index_fit_locked (const struct dedup_index *x, size_t nr)
{
  const size_t capacity = dedup_log_store_capacity (x->current);

  assert (lock_held (x->lock));
  /* A log store smaller than one operation takes what it can. */
  nr = MIN_OF (nr, capacity);
  if (x->nr_spilled == 0 &&
      dedup_log_store_count (x->current) + nr <= capacity)
    return DEDUP_FITS;
  return x->frozen ? DEDUP_FULL : DEDUP_SET_ASIDE_FIRST;
}

int
dedup_index_set_aside_locked (struct dedup_index *x, uint64_t mark,
                              struct dedup_entry spilled[DEDUP_MAX_SPILLED],
                              size_t *nr)
{
  struct dedup_log_store *ls = x->spare;
  int r;

  assert (lock_held (x->lock));
  assert (x->frozen == NULL);
  if (ls == NULL) {
    r = dedup_log_store_new (dedup_log_store_order (x->current), &ls);
    if (r < 0)
      return r;
  }
  x->spare = NULL;
  x->frozen = x->current;
  x->frozen_mark = x->current_mark;
  x->current = ls;
  x->current_mark = mark;
  *nr = x->nr_spilled;
  memcpy (spilled, x->spilled, *nr * sizeof *spilled);
  x->nr_spilled = 0;
  return 0;
}

bool
dedup_index_frozen_names_locked (const struct dedup_index *x,
                                 const struct dedup_entry *e)
{
  struct dedup_hash h;
  uint64_t value;
  size_t i, slots;

  assert (lock_held (x->lock));
  if (x->frozen == NULL)
    return false;
  slots = (size_t) DEDUP_BUCKET_SLOTS << dedup_log_store_order (x->frozen);
  for (i = 0; i < slots; i++)
    if (dedup_log_store_slot (x->frozen, i, &h, &value) &&
        value == e->value && !dedup_hash_equal (&h, &e->hash))
      return true;
  return false;
}

void
dedup_index_insert_locked (struct dedup_index *x, const struct dedup_hash *h,
                           uint64_t value)
{
  struct dedup_entry *s = find_spilled (x, h);

  assert (lock_held (x->lock));
  if (s != NULL)
    s->value = value;            /* even if there is a place by now */
  else if (dedup_log_store_insert (x->current, h, value) == 0)
    return;
  else if (x->nr_spilled < DEDUP_MAX_SPILLED)
    x->spilled[x->nr_spilled++] = (struct dedup_entry) { *h, value };
  else
    x->exact = x->complete = false;      /* lost; it may be a tombstone */
}

/* Waits until nobody copies LS, which is in the index no longer.  It helps, as whoever
 * copies it may be slow. */
static void
index_let_copy (struct dedup_index *x, struct dedup_log_store *ls)
{
  bool more;

  do {
    lock_acquire (x->lock);
    more = dedup_log_store_let_copy (ls, INDEX_COPY_PARTS);
    lock_release (x->lock);
  } while (more);
}

/* Reusing a log store avoids that the memory of a new one is touched for the
 * first time, page by page, under the lock. */
void
index_keep_spare (struct dedup_index *x, struct dedup_log_store *ls)
{
  if (ls == NULL)
    return;
  index_let_copy (x, ls);
  dedup_log_store_clear (ls);
  lock_acquire (x->lock);
  if (x->spare == NULL) {
    x->spare = ls;
    ls = NULL;
  }
  lock_release (x->lock);
  dedup_log_store_free (ls);
}

uint64_t
dedup_index_mark_locked (const struct dedup_index *x)
{
  assert (lock_held (x->lock));
  if (mutation (MUTATION_LAW_8_INDEX_START))
    return x->current_mark;
  return x->frozen && !x->frozen_done ? x->frozen_mark : x->current_mark;
}

size_t
dedup_index_nr_current_locked (const struct dedup_index *x)
{
  assert (lock_held (x->lock));
  return dedup_log_store_count (x->current);
}

bool
dedup_index_frozen_locked (const struct dedup_index *x)
{
  assert (lock_held (x->lock));
  return x->frozen != NULL;
}

/* --- Logging the current log store again --------------------------------- */

/* Copies all hashes at once: entries move between slots when others are
 * inserted, so a walk in slices could miss one. */
int
dedup_index_list_locked (struct dedup_index *x, struct dedup_hash **hashes,
                         size_t *nr, const void **which)
{
  const struct dedup_log_store *ls = x->current;
  const size_t slots = (size_t) DEDUP_BUCKET_SLOTS <<
    dedup_log_store_order (ls);
  uint64_t value;
  size_t slot;

  assert (lock_held (x->lock));
  *which = ls;
  *nr = 0;
  *hashes = malloc ((dedup_log_store_count (ls) + 1) * sizeof **hashes);
  if (*hashes == NULL)
    return -ENOMEM;
  for (slot = 0; slot < slots; slot++)
    if (dedup_log_store_slot (ls, slot, &(*hashes)[*nr], &value))
      ++*nr;
  return 0;
}

bool
dedup_index_is_listed_locked (const struct dedup_index *x, const void *which)
{
  assert (lock_held (x->lock));
  return x->current == which;
}

bool
dedup_index_young_locked (const struct dedup_index *x,
                          const struct dedup_hash *h, uint64_t *value)
{
  assert (lock_held (x->lock));
  return dedup_log_store_lookup (x->current, h, value);
}

const struct dedup_entry *
dedup_index_spilled_locked (const struct dedup_index *x, size_t *nr)
{
  assert (lock_held (x->lock));
  *nr = x->nr_spilled;
  return x->spilled;
}

void
dedup_index_relogged_locked (struct dedup_index *x, const void *which,
                             uint64_t mark)
{
  assert (lock_held (x->lock));
  if (x->current == which && x->frozen == NULL)
    x->current_mark = mark;
}

int
dedup_index_reset_locked (struct dedup_index *x, uint64_t mark)
{
  struct dedup_log_store *ls;
  int r;

  assert (lock_held (x->lock));
  r = dedup_log_store_new (dedup_log_store_order (x->current), &ls);
  if (r < 0)
    return r;
  while (dedup_log_store_let_copy (x->current, SIZE_MAX))
    ;
  dedup_log_store_free (x->current);
  x->current = ls;
  x->current_mark = mark;
  x->nr_spilled = 0;
  return 0;
}
