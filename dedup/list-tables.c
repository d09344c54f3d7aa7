/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists the tables of the index on disk: runs and incarnations, and what each
 * holds and takes.
 *
 * The list is that of the configuration in memory, under the maintenance mutex, so
 * it belongs to one moment.  Segments of one run stand together there, and are
 * counted as one table.  Reads nothing.
 */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>

static void
add_incarnation (const struct dedup_incarnation_desc *d,
                 struct dedup_index_table *v, size_t *nr)
{
  v[(*nr)++] = (struct dedup_index_table) {
    .segments = 1, .entries = d->nr_entries - d->nr_deleted,
    .tombstones = d->nr_deleted, .disk_bytes = d->size_bytes,
  };
}

/* Adds segment I of M to the run that it belongs to. */
static void
add_segment (const struct dedup_index_manifest *m, size_t i,
             struct dedup_index_table *v, size_t *nr)
{
  const struct dedup_segment_desc *d = &m->segments[i];

  if (i == 0 || !dedup_same_run (d - 1, d))
    v[(*nr)++] = (struct dedup_index_table) { .is_run = true,
                                              .level = d->level };
  v += *nr - 1;
  v->segments++;
  v->entries += d->nr_entries - d->nr_deleted;
  v->tombstones += d->nr_deleted;
  v->disk_bytes += d->size_bytes;
  v->merging |= d->merge != 0;
}

static int
list (const struct dedup_index_manifest *m, struct dedup_index_table **v,
      size_t *nr)
{
  size_t i;

  *v = calloc (m->nr_incarnations + m->nr_segments + (size_t) 1, sizeof **v);
  if (*v == NULL)
    return -ENOMEM;
  for (i = 0; i < m->nr_incarnations; i++)
    add_incarnation (&m->incarnations[i], *v, nr);
  for (i = 0; i < m->nr_segments; i++)
    add_segment (m, i, *v, nr);
  return 0;
}

int
dedup_index_tables (struct dedup_pool *pool, struct dedup_index_table **v,
                    size_t *nr)
{
  int r = 0;

  *v = NULL;
  *nr = 0;
  pthread_mutex_lock (&pool->upkeep.maintenance);
  if (pool->store.has_store)
    r = list (&pool->store.config->index, v, nr);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  return r;
}
