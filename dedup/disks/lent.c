/* SPDX-License-Identifier: BSD-3-Clause */
/* Remembers what was counted of lent L2 tables (lent.h).
 *
 * A hash table with open addressing: a table is in the first empty place from the one
 * on that its cluster's number is hashed to.  Nothing is taken out; the whole is freed
 * when all work on disks is done.  It is at most three quarters full, so there always is
 * an empty place, at which a search ends.
 *
 * It takes 8 MiB at most, for 393,216 tables, which map 768 GiB in clusters of 4 KiB.  Of
 * further ones nothing is remembered, and their work is estimated.
 */
#include "lent.h"

#include <stdlib.h>

#define MIN_BITS 8u             /* 4 KiB */
#define MAX_BITS 19u

struct dedup_lent {
  unsigned bits;                /* places: 1 << bits */
  size_t nr;                    /* tables in them */
  struct dedup_lent_table v[];
};

static size_t
nr_places (const struct dedup_lent *l)
{
  return l ? (size_t) 1 << l->bits : 0;
}

/* Returns how many tables may be in P places. */
static size_t
limit_of (size_t p)
{
  return p / 4 * 3;
}

/* Returns the place of a table: where it is, or where it would be added. */
static struct dedup_lent_table *
place_of (struct dedup_lent *l, uint64_t host_idx)
{
  const size_t mask = nr_places (l) - 1;
  /* The multiplier is 2^64 divided by the golden ratio: neighbours are far apart. */
  size_t i = (size_t) (host_idx * UINT64_C (0x9e3779b97f4a7c15) >> (64 - l->bits));

  while (l->v[i].host_idx != 0 && l->v[i].host_idx != host_idx)
    i = (i + 1) & mask;
  return &l->v[i];
}

static struct dedup_lent *
new_table (unsigned bits)
{
  struct dedup_lent *l = calloc (1, sizeof *l + (sizeof l->v[0] << bits));

  if (l)
    l->bits = bits;
  return l;
}

void
dedup_lent_reserve (struct dedup_lent **l, size_t nr)
{
  struct dedup_lent *old = *l, *new;
  unsigned bits = old ? old->bits : MIN_BITS;

  while (bits < MAX_BITS && limit_of ((size_t) 1 << bits) < nr + (old ? old->nr : 0))
    bits++;
  if (old && bits == old->bits)
    return;
  new = new_table (bits);
  if (new == NULL)
    return;
  for (size_t i = 0; i < nr_places (old); i++)
    if (old->v[i].host_idx != 0)
      *place_of (new, old->v[i].host_idx) = old->v[i];
  new->nr = old ? old->nr : 0;
  free (old);
  *l = new;
}

void
dedup_lent_free (struct dedup_lent *l)
{
  free (l);
}

struct dedup_lent_table *
dedup_lent_find (struct dedup_lent *l, uint64_t host_idx)
{
  struct dedup_lent_table *t = l ? place_of (l, host_idx) : NULL;

  return t && t->host_idx != 0 ? t : NULL;
}

struct dedup_lent_table *
dedup_lent_get (struct dedup_lent *l, uint64_t host_idx)
{
  struct dedup_lent_table *t = l ? place_of (l, host_idx) : NULL;

  if (t == NULL || t->host_idx != 0)
    return t;
  if (l->nr >= limit_of (nr_places (l)))
    return NULL;
  l->nr++;
  t->host_idx = host_idx;
  return t;
}
