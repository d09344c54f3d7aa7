/* SPDX-License-Identifier: BSD-3-Clause */
/* Looking at a disk: figures for a sysadmin, and the check of the store.
 *
 * Figures are a snapshot taken under the lock.  The check reads the file, so
 * it wants a disk opened read-only with nothing replayed in memory.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static void
count_index_locked (struct dedup_disk *d, struct dedup_stats *s)
{
  struct dedup_index_figures f;

  dedup_index_figures_locked (d->index, &f);
  s->exact = dedup_index_exact_locked (d->index);
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
dedup_count_lookups_locked (struct dedup_disk *d,
                            const struct dedup_lookups *l)
{
  add_lookups (&d->stats.lookups, l);
}

void
dedup_all_lookups_locked (struct dedup_disk *d, struct dedup_lookups *all)
{
  *all = d->lookups_before;
  add_lookups (all, &d->stats.lookups);
}

void
dedup_get_stats (struct dedup_disk *d, struct dedup_stats *s)
{
  pthread_mutex_lock (&d->maintenance);
  lock_acquire (d->lock);
  *s = d->stats;
  s->has_store = d->has_store;
  s->needs_recovery = d->recovery_bit;
  s->hash = d->hasher.alg;
  dedup_all_lookups_locked (d, &s->all_lookups);
  if (d->has_store) {
    count_index_locked (d, s);
    count_journal (d->config, s);
  }
  lock_release (d->lock);
  pthread_mutex_unlock (&d->maintenance);
}

static double
percent (uint64_t n, uint64_t of)
{
  return of ? 100.0 * (double) n / (double) of : 0;
}

void
dedup_log_stats (struct dedup_disk *d)
{
  struct dedup_stats s;
  uint64_t misses;

  dedup_get_stats (d, &s);
  if (!s.has_store || !d->dedup)
    return;
  misses = s.lookups.lookups - s.lookups.hits;
  log_line (d->log, LOG_DEBUG, "%s: clusters: %" PRIu64 " stored, %" PRIu64
            " shared, %" PRIu64 " of these by hints; index: %" PRIu64
            " entries, %" PRIu64 " tombstones, %" PRIu64 " runs, %" PRIu64
            " incarnations, %" PRIu64 " bytes of memory", d->path, s.stored,
            s.linked, s.lookups.guessed, s.index_entries, s.tombstones,
            s.nr_runs, s.nr_incarnations, s.index_memory_bytes);
  log_line (d->log, LOG_DEBUG, "%s: index: %" PRIu64 " lookups, %" PRIu64
            " hits (%.2f %%), %" PRIu64 " with other bytes; pages read: %"
            PRIu64 " by hits (%.4f each), %" PRIu64 " by misses (%.4f each); "
            "%" PRIu64 " false positives", d->path,
            s.lookups.lookups, s.lookups.hits,
            percent (s.lookups.hits, s.lookups.lookups), s.mismatches,
            s.lookups.hit_reads,
            percent (s.lookups.hit_reads, s.lookups.hits) / 100,
            s.lookups.miss_reads,
            percent (s.lookups.miss_reads, misses) / 100,
            s.lookups.false_positives);
  if (s.index_memory_bound)
    log_line (d->log, LOG_DEBUG, "%s: index: at most %" PRIu64 " bytes of "
              "memory: %" PRIu64 " entries were renewed, %" PRIu64
              " forgotten", d->path, s.index_memory_bound, s.renewed,
              s.forgotten);
}

/* --- check --------------------------------------------------------------------- */

static void
store_problem (const struct qcow2_check_params *p,
               struct dedup_check_result *r, const char *what)
{
  r->store_errors++;
  if (p->problem)
    p->problem (p->opaque, false, what);
}

struct index_problems {
  const struct qcow2_check_params *p;
  struct dedup_check_result *r;
};

static void
index_problem (void *opaque, const char *line)
{
  const struct index_problems *x = opaque;

  store_problem (x->p, x->r, line);
}

static int
ignore_block (void *opaque, const struct dedup_journal_block *b)
{
  return 0;
}

/* The blocks that hold the youngest index entries must all be there. */
static void
check_journal (struct dedup_disk *d, const struct qcow2_check_params *p,
               struct dedup_check_result *r)
{
  const struct dedup_config *c = d->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  uint64_t next = c->index_start;
  char line[128];

  if (c->index_start >= c->checkpoint)
    return;
  if (dedup_journal_read (d->io, &place, c->index_start, c->checkpoint,
                          ignore_block, NULL, &next) == 0 &&
      next == c->checkpoint)
    return;
  snprintf (line, sizeof line, "journal: block %llu is not valid",
            (unsigned long long) next);
  store_problem (p, r, line);
}

int
dedup_check (struct dedup_disk *d, const struct qcow2_check_params *p,
             struct dedup_check_result *r, struct fault *f)
{
  CLEANUP_FREE struct qcow2_area *areas = NULL;
  struct qcow2_check_params q = *p;
  struct index_problems problems = { p, r };
  int err;

  memset (r, 0, sizeof *r);
  err = dedup_areas (d, &areas, &q.nr_areas);
  if (err < 0)
    return fault_io (f, -err, UINT64_MAX, "out of memory");
  q.areas = areas;
  if (d->has_store) {
    check_journal (d, p, r);
    dedup_index_check (d->index, index_problem, &problems);
  }
  return qcow2_check (d->img, &q, &r->image, f);
}
