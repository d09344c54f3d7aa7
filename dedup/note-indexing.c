/* SPDX-License-Identifier: BSD-3-Clause */
/* Remembers in the image that its existing data is being indexed, so that the next
 * server goes on (docs/on-disk.md 3.1.2).
 *
 * Any thread, without locks.
 */
#include "pool.h"

#include <errno.h>

#include "upkeep.h"

int
dedup_note_indexing (struct dedup_pool *pool, bool on)
{
  struct dedup_store *s = &pool->store;
  bool was;
  int r;

  lock_acquire (pool->base.lock);
  was = s->bad.indexing;
  s->bad.indexing = on;
  lock_release (pool->base.lock);
  if (was == on || !pool->base.writable || !s->has_store)
    return 0;
  dedup_maintenance_begin (&pool->upkeep);
  r = dedup_config_commit (s);
  dedup_maintenance_end (&pool->upkeep);
  return r == -ENOSPC ? 0 : r;  /* the next configuration has it */
}

bool
dedup_was_indexing (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);
  return pool->store.bad.indexing;
}
