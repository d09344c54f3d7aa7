/* SPDX-License-Identifier: BSD-3-Clause */
/* Begins scrubs (dedup-scrub.h), and tells what an image remembers of them.
 *
 * The room scrub/ knows the image's parts, not the image; here it gets them.  What is
 * remembered is read under one hold of the image lock, so that its figures belong
 * together, and costs no I/O.
 *
 * Any thread, without locks.
 */
#include "pool.h"
#include "scrub.h"

int
dedup_scrub_begin (struct dedup_pool *pool, const struct dedup_scrub_params *p,
                   struct dedup_scrub **out)
{
  return dedup_scrub_new (&pool->base, &pool->store, &pool->upkeep, p, out);
}

void
dedup_scrub_remembered (struct dedup_pool *pool, struct dedup_scrub_memory *m)
{
  struct dedup_store *s = &pool->store;
  LOCK_FOR_SCOPE (pool->base.lock);

  *m = (struct dedup_scrub_memory) {
    .position = s->bad.scrub_position > 1 ?
      s->bad.scrub_position << pool->base.cluster_bits : 0,
    .unfinished = s->bad.scrub_position > 0,
    .bad = s->bad.nr, .healed = s->bad.healed,
    .complete = s->index && dedup_index_complete_locked (s->index),
  };
}

size_t
dedup_scrub_bad_places (struct dedup_pool *pool, uint64_t *v, size_t max)
{
  const struct dedup_bad *b = &pool->store.bad;
  LOCK_FOR_SCOPE (pool->base.lock);
  const size_t nr = b->nr < max ? b->nr : max;
  size_t i;

  for (i = 0; i < nr; i++)
    v[i] = b->v[i].host_idx << pool->base.cluster_bits;
  return nr;
}
