/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the set of L2 tables that a survey met, as a hash table by their place.
 *
 * A table is in it once, however many L1 entries name it.  As no table lies past
 * the end of the file, the set is bounded by the file.  It is at most half full.
 * One thread; nothing is ever removed.
 */
#include <stdlib.h>

#include "survey.h"

#define FIRST_SLOTS 256u       /* power of two */

/* Returns the slot of a table, or the empty one where it belongs. */
static struct survey_table *
find_slot (struct survey_table *v, size_t nr_slots, uint64_t host_idx)
{
  size_t i = (size_t) (host_idx * UINT64_C (0x9e3779b97f4a7c15) >> 20);

  while (v[i &= nr_slots - 1].host_idx != 0 && v[i].host_idx != host_idx)
    i++;
  return &v[i];
}

struct survey_table *
survey_tables_find (const struct survey_tables *t, uint64_t host_idx)
{
  struct survey_table *slot;

  if (t->nr == 0)
    return NULL;
  slot = find_slot (t->v, t->nr_slots, host_idx);
  return slot->host_idx ? slot : NULL;
}

static bool
make_room (struct survey_tables *t)
{
  const size_t nr = t->nr_slots ? 2 * t->nr_slots : FIRST_SLOTS;
  struct survey_table *v;
  size_t i;

  if (t->nr < t->nr_slots / 2)
    return true;
  v = calloc (nr, sizeof *v);
  if (v == NULL)
    return false;
  for (i = 0; i < t->nr_slots; i++)
    if (t->v[i].host_idx)
      *find_slot (v, nr, t->v[i].host_idx) = t->v[i];
  free (t->v);
  t->v = v;
  t->nr_slots = nr;
  return true;
}

struct survey_table *
survey_tables_add (struct survey_tables *t, uint64_t host_idx)
{
  struct survey_table *slot;

  if (!make_room (t))
    return NULL;
  slot = find_slot (t->v, t->nr_slots, host_idx);
  t->nr++;
  *slot = (struct survey_table) { .host_idx = host_idx };
  return slot;
}

void
survey_tables_free (struct survey_tables *t)
{
  free (t->v);
  *t = (struct survey_tables) { .v = NULL };
}
