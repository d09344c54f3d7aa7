/* SPDX-License-Identifier: BSD-3-Clause */
/* What the index is given (index/storage.h): areas of the image and the store
 * file, the configuration that lists its tables, and the meaning of its values,
 * which are numbers of host clusters.
 */
#include "disk.h"

#include <errno.h>

/* --- Storage ------------------------------------------------------------- */

/* With the mutation, merges have freed their inputs' areas before they ask for
 * one: these must be free by then. */
static int
alloc (void *opaque, uint64_t size, uint64_t *host_off)
{
  struct dedup_disk *d = opaque;
  int r = 0;

  if (mutation (MUTATION_LAW_9_RUN))
    r = dedup_drain_quarantine (d);
  return r < 0 ? r : dedup_index_area_alloc (d, size, host_off);
}

static int
free_area (void *opaque, uint64_t host_off, uint64_t size)
{
  return dedup_index_area_free (opaque, host_off, size);
}

static int
sync_area (void *opaque, uint64_t host_off)
{
  return dedup_index_sync (opaque, host_off);
}

static bool
moved (void *opaque, uint64_t host_off)
{
  return dedup_store_file_lost (opaque, host_off);
}

static bool
goes_there (void *opaque, uint64_t host_off)
{
  return dedup_in_store_file (host_off) == dedup_store_file_ready (opaque);
}

/* The mark is asked for again when the configuration is written, as others write
 * it, too, what is owed included. */
static int
commit (void *opaque, const struct dedup_index_manifest *m, uint64_t mark)
{
  struct dedup_disk *d = opaque;

  d->config->index = *m;
  return dedup_config_commit (d);
}

/* --- Values -------------------------------------------------------------- */

static uint64_t
end (void *opaque)
{
  struct dedup_disk *d = opaque;
  LOCK_FOR_SCOPE (d->lock);

  return qcow2_frontier_locked (d->img);
}

static uint64_t
slot (void *opaque, uint64_t value)
{
  return value;
}

/* Nobody can link a cluster that is not anchored. */
static void
find_dead (void *opaque, const uint64_t *values, size_t nr, bool *dead)
{
  struct dedup_disk *d = opaque;
  LOCK_FOR_SCOPE (d->lock);

  qcow2_find_unanchored_locked (d->img, values, nr, dead);
}

/* --- Events -------------------------------------------------------------- */

/* What hints find is not looked up. */
static void
aged (void *opaque)
{
  struct dedup_disk *d = opaque;

  if (d->hints)
    dedup_hints_wipe (d->hints);
}

int
dedup_open_index (struct dedup_disk *d)
{
  const struct dedup_index_params p = {
    .lock = d->lock, .log = d->log, .name = d->path,
    .store_id = d->config->store_id, .area_unit = d->cluster_size,
    .other_memory = d->writable && d->dedup ?
      dedup_hints_size (qcow2_geometry (d->img)->nr_clusters) : 0,
    .mark = d->config->index_start,
    .storage = { .io = dedup_index_io (d), .alloc = alloc, .free = free_area,
                 .sync = sync_area, .moved = moved, .goes_there = goes_there,
                 .commit = commit, .opaque = d },
    .values = { .end = end, .slot = slot, .find_dead = find_dead,
                .opaque = d },
    .events = { .aged = aged, .opaque = d },
  };

  return dedup_index_open (&p, &d->config->index, &d->index);
}
