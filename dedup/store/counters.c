/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts lookups: the counts of each operation are added to those of this
 * session, and the configuration keeps those of all sessions of the store.
 *
 * Under the image lock.
 */
#include "store.h"

static void
add_lookups (struct dedup_lookups *sum, const struct dedup_lookups *l)
{
  sum->guessed += l->guessed;
  sum->lookups += l->lookups;
  sum->hits += l->hits;
  sum->hit_reads += l->hit_reads;
  sum->miss_reads += l->miss_reads;
  sum->false_positives += l->false_positives;
}

void
dedup_count_lookups_locked (struct dedup_store *s,
                            const struct dedup_lookups *l)
{
  assert (lock_held (s->b->lock));
  add_lookups (&s->lookups, l);
}

void
dedup_all_lookups_locked (struct dedup_store *s, struct dedup_lookups *all)
{
  assert (lock_held (s->b->lock));
  *all = s->lookups_before;
  add_lookups (all, &s->lookups);
}
