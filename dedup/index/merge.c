/* SPDX-License-Identifier: BSD-3-Clause */
/* Merges runs of about equal size into one, in steps of one segment.
 *
 * merge-plan.c chooses the runs, which follow each other in age.  A merge
 * proceeds through the range of hashes from the lowest to the highest; after
 * each step the manifest lists one more segment of the output, and the inputs
 * answer only for the hashes above it.  So a merge that was interrupted, by a
 * crash or at close, continues with its next segment, and the space of its
 * inputs is freed while it runs.
 *
 * Of equal hashes the youngest entry stays.  Tombstones stay too, unless no
 * table is older.  Dead entries are dropped: those that the owner calls dead,
 * and those of the oldest run whose slot a younger entry names
 * (merge-reused.c).  Where the index is exact, none of them is dropped,
 * because that could uncover an older entry which the owner would trust;
 * there, each dead entry has a tombstone.
 *
 * Threads: start and finish of a step are editing.  Work holds no lock: it
 * reads segments that nobody changes, and writes an area that no manifest
 * lists; only one step is under way at a time.
 */
#include "merge.h"

#include <errno.h>
#include <string.h>

#include "pace.h"
#include "publish.h"

/* --- Dead entries -------------------------------------------------------- */

#define EMIT 512                 /* entries that find_dead is asked for at
                                  * once */

struct emitter {
  struct dedup_index *x;
  const struct merge_plan *plan;
  struct dedup_segment_writer *w;
  size_t nr;
  struct dedup_entry v[EMIT];
  uint64_t values[EMIT];
  bool dead[EMIT];
  uint64_t nr_out;
};

static void
find_dead (struct emitter *e)
{
  const struct dedup_index_values *values = &e->x->values;
  size_t i;

  memset (e->dead, 0, sizeof e->dead);
  if (!e->plan->look_for_dead || values->find_dead == NULL)
    return;
  for (i = 0; i < e->nr; i++)
    e->values[i] = e->v[i].value;
  values->find_dead (values->opaque, e->values, e->nr, e->dead);
}

static int
flush_emitter (struct emitter *e)
{
  size_t i;
  int r = 0;

  find_dead (e);
  for (i = 0; i < e->nr && r == 0; i++)
    if (!e->dead[i] || e->v[i].value == DEDUP_DELETED) {
      r = dedup_segment_writer_add (e->w, &e->v[i].hash, e->v[i].value);
      e->nr_out += r == 0;
    }
  e->nr = 0;
  return r;
}

static int
emit (struct emitter *e, const struct dedup_hash *hash, uint64_t value)
{
  if (value == DEDUP_DELETED && e->plan->bottom)
    return 0;
  e->v[e->nr++] = (struct dedup_entry) { *hash, value };
  return e->nr == EMIT ? flush_emitter (e) : 0;
}

/* --- The work of a step -------------------------------------------------- */

static int
join_inputs (struct emitter *e, struct merge_inputs *in)
{
  struct index_pace pace = { .resting = e->plan->may_rest };
  const struct dedup_hash *hash;
  uint64_t value;
  bool oldest;
  int r;

  while ((r = merge_inputs_next (in, &hash, &value, &oldest)) == 1) {
    if (oldest && merge_reused_has (e->x, e->plan, value))
      continue;
    r = emit (e, hash, value);
    if (r < 0)
      return r;
    index_pace (&pace);
  }
  return r < 0 ? r : flush_emitter (e);
}

/* Writes the step's segment.  Holds no locks.  -EINTR, -EIO, -ENOMEM,
 * -ENOSPC. */
static int
run_plan (struct dedup_index *x, struct merge_plan *p)
{
  CLEANUP_FREE struct emitter *e = calloc (1, sizeof *e);
  struct merge_inputs *in = NULL;
  int r;

  if (e == NULL)
    return -ENOMEM;
  e->x = x;
  e->plan = p;
  r = merge_reused_make (x, p);
  if (r < 0)
    return r;
  r = dedup_segment_writer_new (x->storage.io, x->store_id, &p->out,
                                p->nr_bound, &x->stop, &e->w);
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

/* --- The end of a step --------------------------------------------------- */

/* Leaves to the inputs only the hashes above the step: removes the segments
 * that lie below, and cuts the one that the step ends in. */
static void
cut_inputs (struct index_edit *e, const struct merge_plan *p)
{
  size_t i = 0;

  while (i < e->m->nr_segments) {
    struct dedup_segment_desc *s = &e->m->segments[i];

    if (!merge_plan_has_input (p, s)) {
      i++;
      continue;
    }
    s->merge = p->merge;
    s->output = false;
    if (s->hi <= p->out.hi) {
      index_edit_unlist_segment (e, i);
      continue;
    }
    if (s->lo <= p->out.hi)
      s->lo = p->out.hi + 1;
    i++;
  }
}

/* Turns the output of MERGE, which has no inputs left, into an ordinary run. */
static void
end_merge (struct dedup_index_manifest *m, uint32_t merge)
{
  size_t i;

  for (i = 0; i < m->nr_segments; i++)
    if (m->segments[i].merge == merge) {
      m->segments[i].merge = 0;
      m->segments[i].output = false;
    }
}

/* Frees the part of the area behind the segment's end.  If that fails, some of
 * the part may be free: it no longer belongs to the segment in any case. */
static int
cut_area (struct dedup_index *x, struct merge_plan *p)
{
  const struct dedup_filter *f = &p->meta->filter;
  const uint64_t nr_words = f->bits ? dedup_filter_words (f) : 0;
  const uint64_t size = round_up_pow2
    (dedup_segment_used (p->out.nr_entries, f->nr_shards, nr_words),
     x->area_unit);
  int r = 0;

  assert (size <= p->out.size_bytes);
  if (size < p->out.size_bytes)
    r = x->storage.free (x->storage.opaque, p->out.host_off + size,
                         p->out.size_bytes - size);
  p->out.size_bytes = size;
  return r;
}

/* Frees what the segment does not need of its area, and makes the segment
 * durable (law 8).  -EAGAIN: its file has failed. */
static int
finish_area (struct dedup_index *x, struct merge_plan *p)
{
  int r;

  if (mutation (MUTATION_MERGE_NO_SYNC))
    return 0;
  r = cut_area (x, p);
  if (r == 0)
    r = x->storage.sync (x->storage.opaque, p->out.host_off);   /* law 8 */
  if (r < 0 && x->storage.file_failed (x->storage.opaque, p->out.host_off))
    r = -EAGAIN;
  return r;
}

/* Lists the segment that the step wrote.  *LISTED: the segment's area is the
 * list's, or retired. */
static int
list_step (struct dedup_index *x, struct merge_plan *p, bool *listed)
{
  const bool any = p->nr_out > 0;
  struct index_news news = { .segment = any ? &p->out : NULL };
  struct index_edit e;
  int r = any ? finish_area (x, p) : 0;

  if (r == 0)
    r = index_edit_begin (x, &e);
  if (r < 0)
    return r;
  cut_inputs (&e, p);
  if (any) {
    p->out.merge = p->merge;
    p->out.output = true;
    r = dedup_manifest_add_segment (e.m, &p->out);
    assert (r == 0);                     /* choose_range: there is a place */
    news.meta = p->meta;
    news.new_off = p->out.host_off;
    news.new_size = p->out.size_bytes;
    p->meta = NULL;
    *listed = true;
  }
  index_limit_edit (&e);
  if (p->out.hi == UINT32_MAX) {
    end_merge (e.m, p->merge);
    if (p->out.level == DEDUP_MAX_LEVEL)
      merge_reused_free (x);
  }
  return index_edit_commit (&e, &news);
}

/* Ends exactness if an input has damaged pages: they were skipped, and
 * tombstones may be lost with them. */
static void
doubt_if_damaged (struct dedup_index *x, const struct merge_plan *p)
{
  size_t i, k;

  for (i = 0; i < p->nr_sources; i++)
    for (k = 0; k < p->sources[i].nr; k++)
      if (dedup_segment_damaged (p->sources[i].v[k]))
        index_doubt (x);
}

static int
finish_plan (struct dedup_index *x, struct merge_plan *p)
{
  bool listed = false;
  int r;

  doubt_if_damaged (x, p);
  r = index_settle (x);
  if (r == 0)
    r = merge_plan_holds (x, p) ? list_step (x, p, &listed)
      : -EAGAIN;                         /* an input was dropped meanwhile */
  if (!listed && !mutation (MUTATION_LAW_9_RUN))
    index_give_up_area (x, p->out.host_off, p->out.size_bytes);
  return r == -EAGAIN ? 0 : r;
}

/* Finishes a step; R is what run_plan returned. */
static int
finish_merge (struct dedup_index *x, struct merge_plan *p, int r)
{
  if (r == 0)
    return finish_plan (x, p);
  index_give_up_area (x, p->out.host_off, p->out.size_bytes);
  if (r != -EINTR &&
      x->storage.file_failed (x->storage.opaque, p->out.host_off))
    return 0;                            /* the next is written elsewhere */
  return r;
}

/* --- Steps --------------------------------------------------------------- */

struct dedup_index_step {
  struct dedup_index *x;
  struct merge_plan *merge;              /* or */
  struct conversion *conversion;
};

/* Chooses what S does.  Returns 1, or 0 if there is nothing to do.  If a
 * conversion can't begin, a merge is started, which may free the space that it
 * lacks. */
static int
choose (struct dedup_index *x, unsigned flags, struct dedup_index_step *s)
{
  int r = 0, r2;

  if (!(flags & DEDUP_STEP_NO_CONVERSION) && convert_is_next (x)) {
    r = conversion_new (x, &s->conversion);
    if (r == 0)
      return 1;
  }
  r2 = merge_plan_new (x, flags & DEDUP_STEP_IDLE, &s->merge);
  return r2 == 0 ? r : r2;
}

int
dedup_index_step_start (struct dedup_index *x, unsigned flags,
                        struct dedup_index_step **out)
{
  struct dedup_index_step *s;
  int r = index_settle (x);

  if (r < 0)
    return r;
  s = calloc (1, sizeof *s);
  if (s == NULL)
    return -ENOMEM;
  s->x = x;
  r = choose (x, flags, s);
  if (r == 1)
    *out = s;
  else
    free (s);
  return r;
}

bool
dedup_index_step_converts (const struct dedup_index_step *s)
{
  return s->conversion != NULL;
}

int
dedup_index_step_work (struct dedup_index_step *s)
{
  return s->conversion ? conversion_run (s->x, s->conversion)
    : run_plan (s->x, s->merge);
}

int
dedup_index_step_finish (struct dedup_index_step *s, int r)
{
  struct dedup_index *x = s->x;

  if (s->conversion)
    r = conversion_finish (x, s->conversion, r);
  else
    r = finish_merge (x, s->merge, r);
  /* The step has references to its inputs, so it is freed before they can
   * be. */
  conversion_free (s->conversion);
  merge_plan_free (s->merge);
  free (s);
  return r == 0 ? dedup_index_reap (x) : r;
}

/* Conversions are left out: they make no list shorter. */
int
index_merge_now (struct dedup_index *x)
{
  struct dedup_index_step *s;
  int r = dedup_index_step_start (x, DEDUP_STEP_NO_CONVERSION, &s);

  if (r <= 0)
    return r < 0 ? r : -ENOSPC;
  return dedup_index_step_finish (s, dedup_index_step_work (s));
}

void
dedup_index_look (struct dedup_index *x, bool idle_failed)
{
  __atomic_store_n (&x->merge_due, merge_wanted (x, false), __ATOMIC_RELAXED);
  __atomic_store_n (&x->merge_idle_due, !idle_failed && merge_wanted (x, true),
                    __ATOMIC_RELAXED);
}
