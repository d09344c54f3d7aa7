/* SPDX-License-Identifier: BSD-3-Clause */
/* Gathers the figures of an open image, and logs them for an administrator.
 *
 * They are read under the maintenance mutex and the image lock, so they all
 * belong to one moment.  A job may hold that mutex for seconds; the figures that do
 * not need it can be had alone (dedup_get_now).
 */
#include "pool.h"

#include <inttypes.h>

static void
count_index_locked (struct dedup_index *x, struct dedup_stats *s)
{
  struct dedup_index_figures f;

  dedup_index_figures_locked (x, &f);
  s->exact = dedup_index_exact_locked (x);
  s->order = f.order;
  s->nr_incarnations = f.nr_incarnations;
  s->max_incarnations = f.max_incarnations;
  s->nr_runs = f.nr_runs;
  s->log_store_entries = f.log_store_entries;
  s->incarnation_entries = f.incarnation_entries;
  s->run_entries = f.run_entries;
  s->tombstones = f.tombstones;
  s->index_entries = f.log_store_entries + f.incarnation_entries +
    f.run_entries;
  s->index_memory_bytes = f.memory_bytes;
  s->index_disk_bytes = f.disk_bytes;
  s->index_memory_bound = f.memory_bound;
  s->forgotten = f.forgotten;
}

static void
count_journal (const struct dedup_config *c, struct dedup_stats *s)
{
  size_t i;

  for (i = 0; i < c->nr_areas; i++)
    s->journal_bytes += (uint64_t) c->areas[i].nr_blocks * DEDUP_BLOCK_SIZE;
}

/* Called with the maintenance mutex. */
static void
get_stats (struct dedup_pool *pool, struct dedup_stats *s)
{
  LOCK_FOR_SCOPE (pool->base.lock);

  memset (s, 0, sizeof *s);
  s->stored = pool->writer.counts.stored;
  s->linked = pool->writer.counts.linked;
  s->mismatches = pool->writer.counts.mismatches;
  s->renewed = pool->writer.counts.renewed;
  s->pieces_moved = pool->writer.counts.pieces_moved;
  s->clusters_moved = pool->writer.counts.clusters_moved;
  s->lookups = pool->store.lookups;
  s->has_store = pool->store.has_store;
  s->needs_recovery = pool->store.gate.recovery_bit;
  s->closed_with_work = pool->store.went_on;
  s->hash = pool->base.hasher.alg;
  dedup_all_lookups_locked (&pool->store, &s->all_lookups);
  if (pool->store.has_store) {
    count_index_locked (pool->store.index, s);
    count_journal (pool->store.config, s);
  }
}

void
dedup_get_stats (struct dedup_pool *pool, struct dedup_stats *s)
{
  pthread_mutex_lock (&pool->upkeep.maintenance);
  get_stats (pool, s);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
}

bool
dedup_try_get_stats (struct dedup_pool *pool, struct dedup_stats *s)
{
  if (pthread_mutex_trylock (&pool->upkeep.maintenance) != 0)
    return false;
  get_stats (pool, s);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  return true;
}

/* --- Without the maintenance mutex ---------------------------------------- */

static void
count_written (const struct dedup_writer *w, struct dedup_now *now)
{
  now->stored = w->counts.stored;
  now->linked = w->counts.linked;
  now->mismatches = w->counts.mismatches;
  now->renewed = w->counts.renewed;
  now->pieces_moved = w->counts.pieces_moved;
  now->clusters_moved = w->counts.clusters_moved;
}

void
dedup_get_now (struct dedup_pool *pool, struct dedup_now *now)
{
  const struct dedup_store *s = &pool->store;
  LOCK_FOR_SCOPE (pool->base.lock);

  *now = (struct dedup_now) {
    .lookups = s->lookups, .has_store = s->has_store,
    .needs_recovery = s->gate.recovery_bit, .work_left = s->work_left,
    .contradicts = __atomic_load_n (&s->gate.contradicts, __ATOMIC_RELAXED),
    .failed_by = s->gate.failed_by, .failed_what = s->gate.failed_what,
  };
  count_written (&pool->writer, now);
  if (s->journal)
    now->journal_left_bytes =
      dedup_journal_left_locked (s->journal) * DEDUP_BLOCK_SIZE;
  qcow2_get_figures_locked (pool->base.img, &now->image);
}

static double
percent (uint64_t n, uint64_t of)
{
  return of ? 100.0 * (double) n / (double) of : 0;
}

static void
log_shared (const struct dedup_base *b, const struct dedup_stats *s)
{
  log_line (b->log, LOG_DEBUG, "%s: clusters: %" PRIu64 " stored, %" PRIu64
            " shared, %" PRIu64 " of these by hints; index: %" PRIu64
            " entries, %" PRIu64 " tombstones, %" PRIu64 " runs, %" PRIu64
            " incarnations, %" PRIu64 " bytes of memory", b->path, s->stored,
            s->linked, s->lookups.guessed, s->index_entries, s->tombstones,
            s->nr_runs, s->nr_incarnations, s->index_memory_bytes);
}

static void
log_lookups (const struct dedup_base *b, const struct dedup_stats *s)
{
  const struct dedup_lookups *l = &s->lookups;

  log_line (b->log, LOG_DEBUG, "%s: index: %" PRIu64 " lookups, %" PRIu64
            " hits (%.2f %%), %" PRIu64 " with other bytes; pages read: %"
            PRIu64 " by hits (%.4f each), %" PRIu64 " by misses (%.4f each); "
            "%" PRIu64 " false positives", b->path, l->lookups, l->hits,
            percent (l->hits, l->lookups), s->mismatches, l->hit_reads,
            percent (l->hit_reads, l->hits) / 100, l->miss_reads,
            percent (l->miss_reads, l->lookups - l->hits) / 100,
            l->false_positives);
}

static void
log_moved (const struct dedup_base *b, const struct dedup_stats *s)
{
  if (s->pieces_moved > 0)
    log_line (b->log, LOG_DEBUG, "%s: defragmented: %" PRIu64 " pieces, %"
              PRIu64 " bytes", b->path, s->pieces_moved,
              s->clusters_moved << b->cluster_bits);
}

void
dedup_log_stats (struct dedup_pool *pool)
{
  const struct dedup_base *b = &pool->base;
  struct dedup_stats s;

  dedup_get_stats (pool, &s);
  if (!s.has_store || !pool->writer.dedup)
    return;
  log_shared (b, &s);
  log_lookups (b, &s);
  if (s.index_memory_bound)
    log_line (b->log, LOG_DEBUG, "%s: index: at most %" PRIu64 " bytes of "
              "memory: %" PRIu64 " entries were renewed, %" PRIu64
              " forgotten", b->path, s.index_memory_bound, s.renewed,
              s.forgotten);
  log_moved (b, &s);
}
