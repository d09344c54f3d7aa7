/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out which slots the younger inputs of a merge into the oldest run name.
 *
 * Of two values with one slot only one can be live (storage.h).  So where a
 * younger entry names a slot, an older one with another hash is dead: what it
 * stood for was overwritten or freed, and the slot was used again.  Nothing else
 * would tell that from the index alone, and the oldest run would grow for as long
 * as slots are used again.
 *
 * One bit for each slot, while the merge lasts (32 MiB for a terabyte in clusters
 * of 4 KiB), made by reading the younger inputs once more.  The bits are not kept
 * over a restart: then the entries that the merge has dealt with already are
 * missing in the next one's bits, and dead entries for them are dropped by a later
 * merge.  Without memory for the bits nothing is dropped.
 *
 * Used by the thread that carries out a step, and no other.
 */
#include "merge.h"

#include <errno.h>

struct index_reused {
  uint32_t merge;
  uint64_t nr_bits;
  uint64_t bits[];
};

static struct index_reused *
new_bits (struct dedup_index *x, uint32_t merge)
{
  const uint64_t nr = x->values.end (x->values.opaque);
  struct index_reused *b;

  b = calloc (1, sizeof *b + (nr / 64 + 1) * sizeof b->bits[0]);
  if (b != NULL) {
    b->merge = merge;
    b->nr_bits = nr;
  }
  return b;
}

static uint64_t
slot_of (const struct dedup_index *x, uint64_t value)
{
  return value == DEDUP_DELETED ? UINT64_MAX
    : x->values.slot (x->values.opaque, value);
}

static int
note_segment (struct dedup_index *x, struct index_reused *b,
              struct dedup_segment *s, uint32_t from)
{
  struct dedup_cursor *cursor;
  const struct dedup_hash *hash;
  uint64_t value, slot, ordinal, n = 0;
  int r;

  r = dedup_cursor_open (s, from, &cursor);
  if (r < 0)
    return r;
  while ((r = dedup_cursor_next (cursor, &hash, &value, &ordinal)) == 1) {
    slot = slot_of (x, value);
    if (slot < b->nr_bits)
      b->bits[slot / 64] |= UINT64_C (1) << slot % 64;
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
  return slot < b->nr_bits && (b->bits[slot / 64] >> slot % 64 & 1);
}

void
merge_reused_free (struct dedup_index *x)
{
  free (x->reused);
  x->reused = NULL;
}
