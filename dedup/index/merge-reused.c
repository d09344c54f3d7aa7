/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out which slots the younger inputs of a merge into the oldest run name,
 * so that the merge can drop entries of that run which are dead.
 *
 * Of two values with one slot only one can be live if one of them fills it
 * (storage.h).  So if a younger entry names a slot and fills it, an older one with
 * another hash is dead: its value was overwritten or freed, and the slot was used
 * again.  Nothing else
 * in the index would show that, and the oldest run would grow for as long as
 * slots are used again.
 *
 * A younger entry that calls a slot unknown ends older values that fill it, but none
 * that share it: it may be about what filled the slot before these came.  So where
 * slots are shared there are two bits for each.
 *
 * The bits, one for each slot, exist while the merge lasts (32 MiB for a
 * terabyte in slots of 4 KiB), and are made by reading the younger inputs once
 * more.  They are lost at a restart.  The bits of the continued merge then
 * lack the entries that were merged before, and a later merge drops what is
 * dead because of those.  If there is no memory for the bits, nothing is
 * dropped.
 *
 * Only the thread that carries out a step uses this.
 */
#include "merge.h"

#include <errno.h>

struct index_reused {
  uint32_t merge;
  uint64_t nr_bits;
  uint64_t *filled;      /* bits of slots that are filled, not unknown, behind BITS;
                          * NULL: values that share slots are not dropped */
  uint64_t bits[];
};

static bool
has_bit (const uint64_t *bits, uint64_t i)
{
  return bits[i / 64] >> i % 64 & 1;
}

static void
set_bit (uint64_t *bits, uint64_t i)
{
  bits[i / 64] |= UINT64_C (1) << i % 64;
}

static struct index_reused *
new_bits (struct dedup_index *x, uint32_t merge)
{
  const uint64_t nr = x->values.end (x->values.opaque), words = nr / 64 + 1;
  const bool shared = x->values.may_share_slots &&
    x->values.may_share_slots (x->values.opaque);
  struct index_reused *b;

  b = calloc (1, sizeof *b + words * (shared ? 2 : 1) * sizeof b->bits[0]);
  if (b != NULL) {
    b->merge = merge;
    b->nr_bits = nr;
    b->filled = shared ? b->bits + words : NULL;
  }
  return b;
}

static uint64_t
slot_of (const struct dedup_index *x, uint64_t value)
{
  return value == DEDUP_DELETED ? UINT64_MAX
    : x->values.slot (x->values.opaque, value);
}

static enum dedup_slot_use
slot_use (const struct dedup_index *x, const struct dedup_hash *hash, uint64_t value)
{
  return x->values.slot_use
    ? x->values.slot_use (x->values.opaque, hash, value) : DEDUP_SLOT_FILLED;
}

/* Sets the bits of the slot that an entry names. */
static void
note_entry (const struct dedup_index *x, struct index_reused *b,
            const struct dedup_hash *hash, uint64_t value)
{
  const uint64_t slot = slot_of (x, value);
  enum dedup_slot_use use;

  if (slot >= b->nr_bits)
    return;
  use = slot_use (x, b->filled ? hash : NULL, value);
  if (use != DEDUP_SLOT_SHARED)
    set_bit (b->bits, slot);
  if (use == DEDUP_SLOT_FILLED && b->filled)
    set_bit (b->filled, slot);
}

/* Sets the bits of the slots that S names from prefix FROM on.
 * -EINTR. */
static int
note_segment (struct dedup_index *x, struct index_reused *b,
              struct dedup_segment *s, uint32_t from)
{
  struct dedup_cursor *cursor;
  const struct dedup_hash *hash;
  uint64_t value, ordinal, n = 0;
  int r;

  r = dedup_cursor_open (s, from, &cursor);
  if (r < 0)
    return r;
  while ((r = dedup_cursor_next (cursor, &hash, &value, &ordinal)) == 1) {
    note_entry (x, b, hash, value);
    if (++n % 4096 == 0 && index_stopping (x)) {
      r = -EINTR;
      break;
    }
  }
  dedup_cursor_free (cursor);
  return r;
}

int
merge_reused_make (struct dedup_index *x, const struct merge_plan *p)
{
  struct index_reused *b;
  size_t i;
  int r = 0;

  if (!p->look_for_dead || !p->bottom || p->out.level != DEDUP_MAX_LEVEL ||
      (x->reused && x->reused->merge == p->merge))
    return 0;
  merge_reused_free (x);
  b = new_bits (x, p->merge);
  for (i = 0; b && i < p->nr_younger && r == 0; i++)
    r = note_segment (x, b, p->younger[i], p->out.lo);
  if (r < 0)
    free (b);
  else
    x->reused = b;
  return r;
}

bool
merge_reused_has (const struct dedup_index *x, const struct merge_plan *p,
                  uint64_t value)
{
  const struct index_reused *b = x->reused;
  uint64_t slot;

  if (!p->look_for_dead || b == NULL || b->merge != p->merge)
    return false;
  slot = slot_of (x, value);
  if (slot >= b->nr_bits)
    return false;
  if (slot_use (x, NULL, value) == DEDUP_SLOT_SHARED)
    return b->filled && has_bit (b->filled, slot);
  return has_bit (b->bits, slot);
}

void
merge_reused_free (struct dedup_index *x)
{
  free (x->reused);
  x->reused = NULL;
}
