/* SPDX-License-Identifier: BSD-3-Clause */
/* Freeze: the log store that was set aside becomes an incarnation.
 *
 * Its pages are written to an area (one from limbo if it fits, else a new
 * one) and made durable before the configuration lists it (law 8); the same
 * configuration drops the oldest incarnation, if there are too many, into
 * limbo, where it is not written again before that configuration is durable
 * (law 9).  Readers of a dropped incarnation may go on: its pages carry its id
 * and a checksum, so what is written over them reads as a miss.
 *
 * Interrupted, it leaves an area that nothing lists (garbage) or a limbo area
 * with other bytes; the journal still has the entries, so the next open
 * starts it again.
 *
 * Maintenance only.  The frozen log store does not change meanwhile.
 */
#include "disk.h"

#include <errno.h>

static void
remove_limbo (struct dedup_config *c, size_t i)
{
  memmove (&c->limbo[i], &c->limbo[i + 1],
           (c->nr_limbo - i - 1) * sizeof c->limbo[0]);
  c->nr_limbo--;
}

/* Do areas at HOST_OFF and new ones lie in the same file? */
static bool
goes_where (struct dedup_disk *d, uint64_t host_off)
{
  return dedup_in_store_file (host_off) == dedup_store_file_ready (d);
}

/* The area for the new incarnation; *LIMBO says which limbo entry it is. */
static int
find_area (struct dedup_disk *d, uint64_t size, uint64_t *host_off,
           uint64_t *area_size, int *limbo)
{
  struct dedup_config *c = d->config;
  size_t i;

  for (i = 0; i < c->nr_limbo; i++)
    if (c->limbo[i].size_bytes >= size &&
        goes_where (d, c->limbo[i].host_off)) {
      *host_off = c->limbo[i].host_off;
      *area_size = c->limbo[i].size_bytes;
      *limbo = (int) i;
      return 0;
    }
  *limbo = -1;
  *area_size = round_up_pow2 (size, d->cluster_size);
  return dedup_index_area_alloc (d, *area_size, host_off);
}

/* Its area is for a new one; where limbo is full, or new ones lie in the other
 * file, it is left to the sweep. */
static void
put_in_limbo (struct dedup_disk *d, const struct dedup_incarnation_desc *desc)
{
  struct dedup_config *c = d->config;

  if (c->nr_limbo < DEDUP_MAX_LIMBO &&
      dedup_in_store_file (desc->host_off) == (d->store_file != NULL))
    c->limbo[c->nr_limbo++] = (struct dedup_limbo_area) {
      desc->host_off, desc->size_bytes };
}

void
dedup_incarnation_unlist (struct dedup_disk *d, size_t i)
{
  struct dedup_config *c = d->config;

  if (c->max_incarnations > 0)
    put_in_limbo (d, &c->incarnations[i]);
  else
    dedup_runs_drop_incarnation (d, &c->incarnations[i]);
  c->nr_incarnations--;
  memmove (&c->incarnations[i], &c->incarnations[i + 1],
           (c->nr_incarnations - i) * sizeof c->incarnations[0]);
}

/* Each counts as one table, however large. */
static size_t
count_runs (const struct dedup_config *c)
{
  size_t i, nr = 0;

  for (i = 0; i < c->nr_segments; i++)
    nr += i == 0 || !dedup_same_run (&c->segments[i - 1], &c->segments[i]);
  return nr;
}

static void
drop_oldest_run (struct dedup_disk *d)
{
  const struct dedup_segment_desc first = d->config->segments[0];

  while (d->config->nr_segments > 0 &&
         dedup_same_run (&first, &d->config->segments[0]))
    dedup_runs_unlist (d, 0);
}

/* Drop the oldest incarnations, or runs from before there was a limit, until
 * one more fits. */
static void
drop_oldest (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  uint32_t max = c->max_incarnations;

  if (max == 0 || max > DEDUP_MAX_INCARNATIONS)
    max = DEDUP_MAX_INCARNATIONS;
  while (c->nr_incarnations + count_runs (c) >= max)
    if (c->nr_incarnations == 0 ||
        (c->nr_segments > 0 && c->segments[0].age < c->incarnations[0].id))
      drop_oldest_run (d);
    else
      dedup_incarnation_unlist (d, 0);
}

static int
write_incarnation (struct dedup_disk *d, const struct dedup_log_store *ls,
                   struct dedup_incarnation_desc *desc)
{
  int r;

  r = dedup_incarnation_write (dedup_index_io (d), d->config->store_id, ls,
                               desc, &d->stop);
  if (mutation (MUTATION_LAW_8_NO_SYNC))
    return r;
  return r < 0 ? r : dedup_index_sync (d, desc->host_off);
}

/* What the configuration will say, and the set to go with it.  On failure
 * the configuration in memory is as it was. */
static int
edit_config (struct dedup_disk *d, const struct dedup_incarnation_desc *desc,
             int limbo, struct dedup_incarnations **set)
{
  struct dedup_config *c = d->config;
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  int r;

  if (before == NULL)
    return -ENOMEM;
  *before = *c;
  if (limbo >= 0)
    remove_limbo (c, (size_t) limbo);
  drop_oldest (d);
  c->incarnations[c->nr_incarnations++] = *desc;
  dedup_window_drop (d);
  dedup_runs_settle (c);
  r = dedup_index_prepare (d, set);
  if (r < 0) {
    *c = *before;
    dedup_runs_undrop (d);
  }
  return r;
}

static int
list_incarnation (struct dedup_disk *d,
                  const struct dedup_incarnation_desc *desc, int limbo)
{
  struct dedup_incarnations *set;
  int r;

  r = edit_config (d, desc, limbo, &set);
  if (r < 0)
    return r;
  __atomic_store_n (&d->filters_loaded, false, __ATOMIC_RELAXED);
  r = dedup_config_commit (d, set, true);
  if (r < 0)
    return r;
  dedup_window_moved (d);
  return dedup_runs_reap (d);
}

/* Write LS to an area, which *LIMBO tells. */
static int
place_incarnation (struct dedup_disk *d, const struct dedup_log_store *ls,
                   struct dedup_incarnation_desc *desc, int *limbo)
{
  int r;

  r = find_area (d, dedup_incarnation_size (dedup_log_store_order (ls)),
                 &desc->host_off, &desc->size_bytes, limbo);
  if (r < 0)
    return r;
  desc->id = d->config->next_incarnation_id++;   /* pages have it from now */
  r = write_incarnation (d, ls, desc);
  if (r < 0 && *limbo < 0)
    dedup_index_area_give_up (d, desc->host_off, desc->size_bytes);
  return r;
}

int
dedup_freeze (struct dedup_disk *d)
{
  struct dedup_incarnation_desc desc = { .id = 0 };
  const struct dedup_log_store *ls;
  int r, limbo;

  if (d->config->max_incarnations == 0 && dedup_runs_full (d->config)) {
    dedup_merge_wait (d);       /* first, as anything may change meanwhile */
    r = dedup_failed (d);
    if (r < 0)
      return r;
  }
  r = dedup_config_settle (d);  /* it may list this log store already */
  if (r < 0)
    return r;
  lock_acquire (d->lock);
  ls = d->index.frozen;
  lock_release (d->lock);
  if (ls == NULL)
    return 0;
  if (d->config->max_incarnations == 0)
    return dedup_run_freeze (d, ls);
  if (mutation (MUTATION_LAW_9))
    drop_oldest (d);
  do {
    desc.host_off = 0;
    r = place_incarnation (d, ls, &desc, &limbo);
  } while (r < 0 && r != -EINTR && dedup_store_file_lost (d, desc.host_off));
  return r < 0 ? r : list_incarnation (d, &desc, limbo);
}

/* Giving something up takes writes, too: where there is no space for those, all
 * stays. */
static int
can_give_up (struct dedup_disk *d)
{
  int r = dedup_config_settle (d);

  return r < 0 ? r : dedup_commit (d);
}

int
dedup_drop_frozen (struct dedup_disk *d)
{
  struct dedup_incarnations *set;
  bool frozen;
  int r = can_give_up (d);

  if (r < 0)
    return r;
  lock_acquire (d->lock);
  frozen = d->index.frozen != NULL;
  lock_release (d->lock);
  if (!frozen)                  /* it is listed by now */
    return 0;
  log_line (d->log, LOG_ERROR, "%s: no space for an incarnation: some of the "
            "index is given up", d->path);
  lock_acquire (d->lock);
  d->exact = false;             /* tombstones are lost with it */
  lock_release (d->lock);
  r = dedup_index_prepare (d, &set);
  return r < 0 ? r : dedup_config_commit (d, set, true);
}

int
dedup_drop_current (struct dedup_disk *d)
{
  int r = can_give_up (d);

  if (r < 0)
    return r;
  log_line (d->log, LOG_ERROR, "%s: no space for the journal to grow: the "
            "youngest part of the index is given up", d->path);
  lock_acquire (d->lock);
  r = dedup_index_reset_locked (d, dedup_journal_seal_locked (d->journal));
  d->exact = false;
  lock_release (d->lock);
  return r < 0 ? r : dedup_config_commit (d, NULL, false);
}

int
dedup_drop_damaged (struct dedup_disk *d, uint64_t id)
{
  struct dedup_config *c = d->config;
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  size_t i;
  int r;

  if (before == NULL)
    return -ENOMEM;
  log_line (d->log, LOG_ERROR, "%s: incarnation %llu of the index is damaged: "
            "its entries are lost", d->path, (unsigned long long) id);
  lock_acquire (d->lock);
  d->exact = false;             /* tombstones are lost with it */
  lock_release (d->lock);
  *before = *c;
  for (i = 0; i < c->nr_incarnations; i++)
    if (c->incarnations[i].id == id)
      break;
  if (i < c->nr_incarnations)
    dedup_incarnation_unlist (d, i);
  r = dedup_runs_commit (d, before, NULL, NULL, false);
  return r < 0 ? r : dedup_runs_reap (d);
}

int
dedup_drop_segment (struct dedup_disk *d, uint64_t id)
{
  struct dedup_config *c = d->config;
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  size_t i;
  int r;

  if (before == NULL)
    return -ENOMEM;
  log_line (d->log, LOG_ERROR, "%s: segment %llu of the index is damaged: "
            "its entries are lost", d->path, (unsigned long long) id);
  lock_acquire (d->lock);
  d->exact = false;             /* tombstones are lost with it */
  lock_release (d->lock);
  *before = *c;
  for (i = 0; i < c->nr_segments; i++)
    if (c->segments[i].id == id) {
      dedup_runs_unlist (d, i);
      break;
    }
  r = dedup_runs_commit (d, before, NULL, NULL, false);
  return r < 0 ? r : dedup_runs_reap (d);
}
