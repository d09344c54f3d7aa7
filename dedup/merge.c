/* SPDX-License-Identifier: BSD-3-Clause */
/* Merges: runs of about equal size become one, in steps of one segment.
 *
 * Which: docs/ARCHITECTURE.md section 8.  A merge joins runs that follow each
 * other in age.  It goes through the range of hashes from the bottom; after
 * each step the configuration lists one more segment of the output, and the
 * inputs answer only for what lies above.  So a merge that was cut off, by a
 * crash or at close, goes on with its next segment, and its inputs' space
 * comes back while it runs.
 *
 * Of equal hashes the youngest entry stays.  Tombstones stay too, unless there
 * is nothing older.  An entry whose cluster is not anchored any more is
 * dropped: nobody could link it; and in the bottom, one whose cluster a younger
 * entry names (merge-claims.c).  Not so where the index is exact, for that
 * could uncover an older entry which verify=off would trust; there, each dead
 * entry has a tombstone.
 *
 * The bulk of a step works without the maintenance mutex, on segments that
 * nobody changes and an area that nobody knows of; only one step is under way
 * at a time (d->merging).  merge-plan.c decides; merge-input.c reads.
 */
#include "merge.h"

#include <errno.h>
#include <time.h>

/* --- Dead entries -------------------------------------------------------- */

#define EMIT 512                 /* entries looked at under one hold of lock */

struct emitter {
  struct dedup_disk *d;
  const struct merge_plan *plan;
  struct dedup_segment_writer *w;
  bool look;                     /* for dead ones */
  size_t nr;
  struct { struct dedup_hash hash; uint64_t host_idx; } v[EMIT];
  uint64_t host_idx[EMIT];
  bool dead[EMIT];
  uint64_t nr_out;
};

static void
find_dead (struct emitter *e)
{
  size_t i;

  for (i = 0; i < e->nr; i++)
    e->host_idx[i] = e->v[i].host_idx;
  memset (e->dead, 0, sizeof e->dead);
  if (e->look && e->d->is_dead)
    e->d->is_dead (e->d, e->host_idx, e->nr, e->dead);
}

static int
flush_emitter (struct emitter *e)
{
  size_t i;
  int r = 0;

  find_dead (e);
  for (i = 0; i < e->nr && r == 0; i++)
    if (!e->dead[i] || e->v[i].host_idx == DEDUP_DELETED) {
      r = dedup_segment_writer_add (e->w, &e->v[i].hash, e->v[i].host_idx);
      e->nr_out += r == 0;
    }
  e->nr = 0;
  return r;
}

static int
emit (struct emitter *e, const struct dedup_hash *hash, uint64_t host_idx)
{
  if (host_idx == DEDUP_DELETED && e->plan->bottom)
    return 0;
  e->v[e->nr].hash = *hash;
  e->v[e->nr++].host_idx = host_idx;
  return e->nr == EMIT ? flush_emitter (e) : 0;
}

void
dedup_clusters_dead (struct dedup_disk *d, const uint64_t *host_idx, size_t nr,
                     bool *dead)
{
  LOCK_FOR_SCOPE (d->lock);
  qcow2_find_unanchored_locked (d->img, host_idx, nr, dead);
}

/* --- One step ------------------------------------------------------------ */

#define PACE_ENTRIES 25000       /* about 1 MiB */

void
merge_rest (struct merge_pace *p)
{
  struct timespec now, t;

  if (!p->resting)
    return;
  if (p->nr == 0)
    clock_gettime (CLOCK_MONOTONIC, &p->last);
  if (++p->nr < PACE_ENTRIES)
    return;
  p->nr = 0;
  clock_gettime (CLOCK_MONOTONIC, &now);
  t.tv_sec = now.tv_sec - p->last.tv_sec;
  t.tv_nsec = now.tv_nsec - p->last.tv_nsec;
  if (t.tv_nsec < 0) {
    t.tv_sec--;
    t.tv_nsec += 1000000000;
  }
  if (t.tv_sec == 0)             /* else the machine was busy anyway */
    nanosleep (&t, NULL);
}

static int
join_inputs (struct emitter *e, struct merge_inputs *in)
{
  struct merge_pace pace = { .resting = e->plan->unhurried };
  const struct dedup_hash *hash;
  uint64_t host_idx;
  bool oldest;
  int r;

  while ((r = merge_inputs_next (in, &hash, &host_idx, &oldest)) == 1) {
    if (oldest && merge_claims_has (e->d, e->plan, host_idx))
      continue;
    r = emit (e, hash, host_idx);
    if (r < 0)
      return r;
    merge_rest (&pace);
  }
  return r < 0 ? r : flush_emitter (e);
}

/* Write the step's segment; without locks. */
static int
run_plan (struct dedup_disk *d, struct merge_plan *p)
{
  CLEANUP_FREE struct emitter *e = calloc (1, sizeof *e);
  struct merge_inputs *in = NULL;
  int r;

  if (e == NULL)
    return -ENOMEM;
  e->d = d;
  e->plan = p;
  e->look = p->look_for_dead;
  r = merge_claims_make (d, p);
  if (r < 0)
    return r;
  r = dedup_segment_writer_new (dedup_index_io (d), p->store_id, &p->out,
                                p->nr_bound, &d->stop, &e->w);
  if (r < 0)
    return r;
  r = merge_inputs_open (p, &in);
  if (r == 0)
    r = join_inputs (e, in);
  merge_inputs_close (in);
  if (r == 0)
    r = dedup_segment_writer_finish (e->w, &p->out, &p->meta);
  p->nr_out = e->nr_out;
  dedup_segment_writer_free (e->w);
  return r;
}

/* --- Its end ------------------------------------------------------------- */

/* The inputs answer for what is above the step. */
static void
cut_inputs (struct dedup_disk *d, const struct merge_plan *p)
{
  struct dedup_config *c = d->config;
  size_t i = 0;

  while (i < c->nr_segments) {
    struct dedup_segment_desc *s = &c->segments[i];

    if (!merge_plan_has_input (p, s)) {
      i++;
      continue;
    }
    s->merge = p->merge;
    s->output = false;
    if (s->hi <= p->out.hi) {
      dedup_runs_unlist (d, i);
      continue;
    }
    if (s->lo <= p->out.hi)
      s->lo = p->out.hi + 1;
    i++;
  }
}

/* Nothing is left of the inputs: the output is a run like any other. */
static void
end_merge (struct dedup_config *c, uint32_t merge)
{
  size_t i;

  for (i = 0; i < c->nr_segments; i++)
    if (c->segments[i].merge == merge) {
      c->segments[i].merge = 0;
      c->segments[i].output = false;
    }
}

/* What the area has behind the segment's end goes back.  On failure some of it
 * has: it is the segment's no more. */
static int
cut_area (struct dedup_disk *d, struct merge_plan *p)
{
  const uint64_t nr_words = p->meta->filter.bits ?
    dedup_filter_words (&p->meta->filter) : 0;
  const uint64_t size = round_up_pow2
    (dedup_segment_used (p->out.nr_entries, p->meta->filter.nr_shards,
                         nr_words), d->cluster_size);
  int r = 0;

  assert (size <= p->out.size_bytes);
  if (size < p->out.size_bytes)
    r = dedup_index_area_free (d, p->out.host_off + size,
                               p->out.size_bytes - size);
  p->out.size_bytes = size;
  return r;
}

/* *COMMITTED: the configuration lists what was made, though it may be owed. */
static int
list_step (struct dedup_disk *d, struct merge_plan *p, bool *committed)
{
  struct dedup_config *c = d->config;
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  const bool any = p->nr_out > 0;
  int r = 0;

  if (before == NULL)
    return -ENOMEM;
  if (any && !mutation (MUTATION_MERGE_NO_SYNC)) {
    r = cut_area (d, p);
    if (r == 0)
      r = dedup_index_sync (d, p->out.host_off);   /* law 8 */
    if (r < 0)
      return dedup_store_file_lost (d, p->out.host_off) ? -EAGAIN : r;
  }
  *before = *c;
  cut_inputs (d, p);
  if (any) {
    p->out.merge = p->merge;
    p->out.output = true;
    r = dedup_runs_list (c, &p->out);
    assert (r == 0);                     /* merge-plan.c saw to it */
  }
  dedup_window_drop (d);
  if (p->out.hi == UINT32_MAX) {
    end_merge (c, p->merge);
    if (p->out.level == DEDUP_MAX_LEVEL)
      merge_claims_free (d);
  }
  r = dedup_runs_commit (d, before, any ? &p->out : NULL,
                         any ? p->meta : NULL, false);
  *committed = r == 0 || r == -ENOSPC;
  if (any)
    p->meta = NULL;
  return r;
}

/* Damaged pages were passed over: tombstones may be lost with them. */
static void
distrust_damaged (struct dedup_disk *d, const struct merge_plan *p)
{
  size_t i, k;

  for (i = 0; i < p->nr_sources; i++)
    for (k = 0; k < p->sources[i].nr; k++)
      if (dedup_segment_damaged (p->sources[i].v[k])) {
        LOCK_FOR_SCOPE (d->lock);
        d->exact = false;
      }
}

static int
finish_plan (struct dedup_disk *d, struct merge_plan *p)
{
  bool committed = false, listed;
  int r;

  distrust_damaged (d, p);
  r = dedup_config_settle (d);
  if (r == 0 && !merge_plan_holds (d, p))   /* an input was dropped meanwhile */
    r = -EAGAIN;
  if (r == 0)
    r = list_step (d, p, &committed);
  listed = committed && p->nr_out > 0;
  if (!listed && !mutation (MUTATION_LAW_9_RUN))
    dedup_index_area_give_up (d, p->out.host_off, p->out.size_bytes);
  if (r == 0)
    r = dedup_runs_reap (d);
  return r == -EAGAIN ? 0 : r;
}

/* The bulk of a step is done between these. */
static void
begin_work (struct dedup_disk *d, bool keep_mutex)
{
  d->merging = true;
  if (!keep_mutex)
    pthread_mutex_unlock (&d->maintenance);
}

static void
end_work (struct dedup_disk *d, bool keep_mutex)
{
  if (!keep_mutex)
    pthread_mutex_lock (&d->maintenance);
  d->merging = false;
  pthread_cond_broadcast (&d->merged);
}

/* The commit of the area's records must not sync the pages by chance. */
static int
prepare_mutation (struct dedup_disk *d)
{
  return mutation (MUTATION_MERGE_NO_SYNC) ||
    mutation (MUTATION_CONVERSION_NO_SYNC) ? dedup_flush (d) : 0;
}

/* Before anything is planned: it may freeze, and a freeze may merge, or let go
 * of the mutex.  1: somebody else does a step. */
static int
room_for_step (struct dedup_disk *d)
{
  int r = dedup_journal_extend (d);

  if (r == 0)
    r = dedup_config_settle (d);
  return r < 0 ? r : d->merging;
}

static int
merge (struct dedup_disk *d, bool keep_mutex, bool idle)
{
  struct merge_plan *p = NULL;
  int r;

  r = keep_mutex ? 0 : room_for_step (d);
  if (r != 0)
    return MIN_OF (r, 0);
  r = merge_plan_new (d, idle, &p);
  if (r <= 0)
    return r < 0 ? r : keep_mutex ? -ENOSPC : 0;
  begin_work (d, keep_mutex);
  r = prepare_mutation (d);
  if (r == 0)
    r = run_plan (d, p);
  end_work (d, keep_mutex);
  if (r == 0)
    r = finish_plan (d, p);
  else if (dedup_failed (d) == 0) {
    dedup_index_area_give_up (d, p->out.host_off, p->out.size_bytes);
    if (dedup_store_file_lost (d, p->out.host_off) && r != -EINTR)
      r = 0;                             /* the next one goes to the image */
  }
  merge_plan_free (p);
  return r == -EINTR && !keep_mutex ? 0 : r;
}

static int
convert (struct dedup_disk *d)
{
  struct conversion *c = NULL;
  int r;

  r = room_for_step (d);
  if (r != 0)
    return MIN_OF (r, 0);
  if (!conversion_possible (d))
    return 0;
  r = conversion_new (d, &c);
  if (r < 0)
    return r;
  begin_work (d, false);
  r = prepare_mutation (d);
  if (r == 0)
    r = conversion_run (d, c);
  end_work (d, false);
  r = conversion_finish (d, c, r);
  conversion_free (c);
  return r;
}

static int
step (struct dedup_disk *d, bool idle)
{
  int r, r2;

  if (d->merging)
    return 0;
  r = dedup_config_settle (d);           /* what is listed is planned by */
  if (r < 0)
    return r;
  if (!conversion_next (d))
    return merge (d, false, idle);
  r = convert (d);
  if (r == 0 || dedup_failed (d) < 0)
    return r;
  r2 = merge (d, false, idle);   /* which may make space; r is tried later */
  return r2 < 0 ? r2 : r;
}

void
dedup_merge_look (struct dedup_disk *d)
{
  __atomic_store_n (&d->merge_due, dedup_merge_wanted (d, false),
                    __ATOMIC_RELAXED);
  __atomic_store_n (&d->merge_idle_due, dedup_merge_wanted (d, true),
                    __ATOMIC_RELAXED);
}

int
dedup_merge_step (struct dedup_disk *d, bool idle)
{
  int r;

  pthread_mutex_lock (&d->maintenance);
  r = dedup_failed (d);
  if (r == 0)
    r = step (d, idle);
  dedup_merge_look (d);
  if (idle && r < 0)             /* not before there is another run */
    __atomic_store_n (&d->merge_idle_due, false, __ATOMIC_RELAXED);
  pthread_mutex_unlock (&d->maintenance);
  return r;
}

void
dedup_merge_wait (struct dedup_disk *d)
{
  while (d->merging)
    pthread_cond_wait (&d->merged, &d->maintenance);
}

/* No conversion: who wants this wants fewer segments, not more. */
int
dedup_merge_step_now (struct dedup_disk *d)
{
  assert (!d->merging);
  return merge (d, true, false);
}
