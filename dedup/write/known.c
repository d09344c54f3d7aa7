/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the descriptors that the index leads to, as a sorted array.
 *
 * The index leads from hashes to descriptors.  Indexing asks the other way, for data
 * whose hash it would have to expand the data for.  It reads the whole index in any case
 * before it takes compressed data over (../upkeep/forget-descriptors.c), and fills this
 * set on the way.  A set that is full costs time only: what is not in it is expanded.
 *
 * The caller serializes calls.
 */
#include "known.h"
#include "checked.h"

#include <stdlib.h>

#define FIRST_ROOM ((size_t) 1024)

void
dedup_known_add (struct dedup_known *k, uint64_t descriptor)
{
  const size_t max = MAX_OF (2 * k->max, FIRST_ROOM);
  uint64_t *v;

  if (k->nr == k->max && max <= DEDUP_KNOWN_MAX) {
    v = realloc (k->v, max * sizeof *v);
    if (v == NULL)
      return;
    k->v = v;
    k->max = max;
  }
  if (k->nr < k->max)
    k->v[k->nr++] = descriptor;
}

static int
compare (const void *a, const void *b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return (x > y) - (x < y);
}

void
dedup_known_sort (struct dedup_known *k)
{
  if (k->nr > 0)
    qsort (k->v, k->nr, sizeof *k->v, compare);
}

bool
dedup_known_has (const struct dedup_known *k, uint64_t descriptor)
{
  return k->nr > 0 &&
    bsearch (&descriptor, k->v, k->nr, sizeof *k->v, compare) != NULL;
}

void
dedup_known_free (struct dedup_known *k)
{
  free (k->v);
  *k = (struct dedup_known) { 0 };
}
