/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements index/storage.h over the store: areas of the image and the store
 * file, the configuration that lists the index's tables, and the meaning of the
 * index's values (value.h).
 *
 * All of it is called without the image lock: storage under the maintenance
 * mutex, the rest by the one thread that carries out a merge step.
 */
#include "area.h"
#include "mutation.h"
#include "value.h"

#include <errno.h>

/* --- Storage ------------------------------------------------------------ */

/* With the mutation, merges have freed the areas of their inputs before they
 * ask for one, so the quarantine is emptied to make those areas usable. */
static int
alloc (void *opaque, uint64_t size, uint64_t *host_off)
{
  struct dedup_store *s = opaque;
  int r = 0;

  if (mutation (MUTATION_LAW_9_RUN))
    r = s->events.drain (s->events.opaque);
  return r < 0 ? r : dedup_index_area_alloc (s, size, host_off);
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
file_failed (void *opaque, uint64_t host_off)
{
  return dedup_store_file_lost (opaque, host_off);
}

static bool
same_file_as_new (void *opaque, uint64_t host_off)
{
  return dedup_in_store_file (host_off) == dedup_store_file_ready (opaque);
}

/* MARK is not needed: dedup_config_commit asks the index for it, as others
 * commit the configuration too. */
static int
commit (void *opaque, const struct dedup_index_manifest *m, uint64_t mark)
{
  struct dedup_store *s = opaque;

  s->config->index = *m;
  return dedup_config_commit (s);
}

/* --- Values ------------------------------------------------------------- */

static uint64_t
end (void *opaque)
{
  struct dedup_store *s = opaque;
  LOCK_FOR_SCOPE (s->b->lock);

  return qcow2_frontier_locked (s->b->img);
}

static uint64_t
slot (void *opaque, uint64_t value)
{
  struct dedup_store *s = opaque;
  uint64_t first, count;

  dedup_value_clusters (s->b, value, &first, &count);
  return first;
}

/* Compressed data shares its clusters with other compressed data.  A mark may be about
 * an entry from before that data. */
static enum dedup_slot_use
slot_use (void *opaque, const struct dedup_hash *hash, uint64_t value)
{
  if (dedup_value_is_compressed (value))
    return DEDUP_SLOT_SHARED;
  return hash && dedup_is_unknown_mark (hash, value) ? DEDUP_SLOT_UNKNOWN
    : DEDUP_SLOT_FILLED;
}

static bool
may_share_slots (void *opaque)
{
  const struct dedup_store *s = opaque;

  return s->config->may_pack;
}

/* A value is dead if one of its clusters is not anchored: it can't be linked. */
static void
find_dead (void *opaque, const uint64_t *values, size_t nr, bool *dead)
{
  struct dedup_store *s = opaque;
  uint64_t first, count, k;
  size_t i;
  bool gone;
  LOCK_FOR_SCOPE (s->b->lock);

  qcow2_find_unanchored_locked (s->b->img, values, nr, dead);
  for (i = 0; i < nr; i++) {
    if (!dedup_value_is_compressed (values[i]))
      continue;
    dedup_value_clusters (s->b, values[i], &first, &count);
    for (k = first, dead[i] = false; k < first + count && !dead[i]; k++) {
      qcow2_find_unanchored_locked (s->b->img, &k, 1, &gone);
      dead[i] = gone;
    }
  }
}

/* --- Events ------------------------------------------------------------- */

static void
aged (void *opaque)
{
  struct dedup_store *s = opaque;

  s->events.aged (s->events.opaque);
}

int
dedup_open_index (struct dedup_store *s, uint64_t other_memory)
{
  const struct dedup_index_params p = {
    .lock = s->b->lock, .log = s->b->log, .name = s->b->path,
    .store_id = s->config->store_id, .area_unit = s->b->cluster_size,
    .other_memory = other_memory,
    .mark = s->config->index_start,
    .storage = { .io = dedup_index_io (s), .alloc = alloc, .free = free_area,
                 .sync = sync_area, .file_failed = file_failed,
                 .same_file_as_new = same_file_as_new,
                 .commit = commit, .opaque = s },
    .values = { .end = end, .slot = slot, .slot_use = slot_use,
                .may_share_slots = may_share_slots,
                .find_dead = find_dead,
                .opaque = s },
    .events = { .aged = aged, .opaque = s },
  };

  return dedup_index_open (&p, &s->config->index, &s->index);
}
