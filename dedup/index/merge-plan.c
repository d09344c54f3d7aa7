/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides what to merge next (docs/ARCHITECTURE.md section 8).
 *
 * The manifest lists runs by age.  Runs that follow each other and have the
 * same level are merged into one of the next level when there are MERGE_TIER
 * of them.  The oldest run does not wait for so many: when the younger runs
 * from BOTTOM_LEVEL up have a third of its entries, they are merged into it.
 * Merges of young runs come first, since there are most of them and they are
 * short; the others continue in between.
 *
 * At most one value for each slot is live, so where there are more entries
 * than slots, some are dead.  Where there are twice as many, all runs but the
 * youngest are merged into the oldest, whatever their level: dead entries are
 * dropped there.
 *
 * When nothing else is due, the youngest levels are merged whole until few runs
 * are left: each run costs every miss two cache lines.
 *
 * Incarnations, which are from a time when their number was limited, separate
 * the runs that are older from those that are younger: no merge joins the two.
 *
 * A merge under way is known by its number in the manifest: its inputs answer
 * for the hashes above the last segment of its output.
 *
 * Editing functions only.
 */
#include "merge.h"

#include <errno.h>

/* The crash tests, whose stores are tiny, merge more often and in more
 * steps. */
#ifndef MERGE_TIER
#define MERGE_TIER 8             /* runs of a level that are merged */
#define MERGE_STEP 16            /* a step's least size, in log stores */
#define MERGE_STALE 2            /* entries for each slot that are too many */
#define MERGE_FEW 4              /* runs that idle merges leave */
#endif
#define MAX_TIER (2 * MERGE_TIER)   /* runs of one merge, when it is late */
#define BOTTOM_LEVEL 2
#define LARGEST_STEP (UINT64_C (1) << 28)   /* entries: 11 GB */
/* A step does not rest where there are so many runs or more: */
#define URGENT_YOUNG_RUNS 12     /* of level 0 */
#define URGENT_RUNS 24           /* of all levels */

struct run {
  uint64_t age;
  unsigned level;
  uint32_t merge;
  bool output;
  bool apart;                    /* an incarnation is next older, not a run */
  size_t first, nr;              /* segments in the manifest */
  uint64_t nr_entries;
};

struct choice {
  uint32_t merge;                /* 0: a new one */
  size_t first, nr;              /* inputs, if new: runs */
  unsigned level;                /* the lowest of its inputs */
  unsigned out_level;
};

/* Returns the number of entries from which on at least half are dead, apart
 * from some young ones. */
static uint64_t
stale_limit (struct dedup_index *x)
{
  return MERGE_STALE * x->values.end (x->values.opaque) +
    ((uint64_t) MERGE_TIER * DEDUP_BUCKET_SLOTS << x->manifest->order);
}

/* Returns true if an incarnation is older than AGE, but not one of the *NR
 * oldest.  *NR becomes the number of incarnations that are older than AGE. */
static bool
passes_incarnation (const struct dedup_index_manifest *m, uint64_t age,
                    size_t *nr)
{
  const size_t before = *nr;

  while (*nr < m->nr_incarnations && m->incarnations[*nr].id < age)
    ++*nr;
  return *nr > before;
}

/* Returns the runs of M, oldest first; the caller frees them. */
static struct run *
list_runs (const struct dedup_index_manifest *m, size_t *nr)
{
  struct run *v = calloc (m->nr_segments + 1, sizeof *v);
  size_t i, n = 0, older = 0;

  if (v == NULL)
    return NULL;
  for (i = 0; i < m->nr_segments; i++) {
    const struct dedup_segment_desc *s = &m->segments[i];

    /* The output of a merge is a run apart from its inputs, even where they
     * have one age and level, as at the highest level. */
    if (i == 0 || !dedup_same_run (&s[-1], s) || s[-1].output != s->output)
      v[n++] = (struct run) {
        .age = s->age, .level = s->level, .merge = s->merge,
        .output = s->output, .first = i,
        .apart = passes_incarnation (m, s->age, &older) };
    v[n - 1].nr++;
    v[n - 1].nr_entries += s->nr_entries;
  }
  *nr = n;
  return v;
}

/* --- Choosing ------------------------------------------------------------ */

/* Returns true if run I may be merged with the one before it.  Not so across an
 * incarnation: lookups would then ask entries that are older than it first. */
static bool
joins_older (const struct run *v, size_t i)
{
  return v[i].merge == 0 && !v[i].apart;
}

/* Makes C the best choice, if it is of a lower level than the best so far; of
 * one level, a merge that was begun is not replaced. */
static void
consider (struct choice *best, bool *any, struct choice c)
{
  if (*any && (best->level < c.level ||
               (best->level == c.level && best->merge != 0)))
    return;
  *best = c;
  *any = true;
}

/* Considers the merges that were begun. */
static void
consider_begun (const struct run *v, size_t nr, struct choice *best, bool *any)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (v[i].merge && !v[i].output)
      consider (best, any, (struct choice) {
        .merge = v[i].merge, .level = v[i].level });
}

/* Considers runs that follow each other and have the same level. */
static void
consider_tiers (const struct run *v, size_t nr, struct choice *best, bool *any)
{
  size_t i, n;

  for (i = 0; i < nr; i += n) {
    n = 1;
    if (v[i].merge || v[i].level == DEDUP_MAX_LEVEL)
      continue;
    while (i + n < nr && joins_older (v, i + n) && v[i + n].level == v[i].level)
      n++;
    if (n >= MERGE_TIER)
      consider (best, any, (struct choice) {
        .first = i, .nr = MIN_OF (n, MAX_TIER), .level = v[i].level,
        .out_level = MIN_OF (v[i].level + 1, DEDUP_MAX_LEVEL) });
  }
}

/* Returns how many of the oldest runs may be merged: those from LEVEL up, and
 * smaller ones that are older than these, because they were incarnations.
 * *BASE becomes the first from LEVEL up; *SUM: the entries of all. */
static size_t
oldest_runs (const struct run *v, size_t nr, unsigned level, size_t *base,
             uint64_t *sum)
{
  size_t n;

  *sum = 0;
  for (*base = 0; *base < nr && v[*base].level < level; ++*base)
    ;
  if (*base == nr || v[0].merge)
    return 0;
  for (n = 0; n < nr && (n == 0 || joins_older (v, n)) &&
         (n < *base || v[n].level >= level); n++)
    *sum += v[n].nr_entries;
  return n > *base ? n : 0;
}

/* Considers a merge into the oldest run, when the others have a third of its
 * entries. */
static void
consider_bottom (const struct run *v, size_t nr, struct choice *best,
                 bool *any)
{
  uint64_t sum;
  size_t base, n = oldest_runs (v, nr, BOTTOM_LEVEL, &base, &sum);

  if (n > 1 && (sum - v[base].nr_entries) * 3 >= v[base].nr_entries)
    consider (best, any, (struct choice) {
      .first = 0, .nr = n, .level = BOTTOM_LEVEL,
      .out_level = DEDUP_MAX_LEVEL });
}

/* Considers a merge of nearly all runs into the oldest, where too many entries
 * are dead.  Not where the young runs are few: the large one would be written
 * again and again for them. */
static void
consider_stale (struct dedup_index *x, const struct run *v, size_t nr,
                struct choice *best, bool *any)
{
  uint64_t sum;
  size_t base, n = oldest_runs (v, nr, 1, &base, &sum);

  if (n > 1 && sum >= stale_limit (x) &&
      (sum - v[base].nr_entries) * 4 >= v[base].nr_entries)
    consider (best, any, (struct choice) {
      .first = 0, .nr = n, .level = 1, .out_level = DEDUP_MAX_LEVEL });
}

/* Returns the level of the output of a merge whose inputs have levels from
 * LOWEST to HIGHEST; OLDEST: no run is older. */
static unsigned
level_above (bool oldest, unsigned lowest, unsigned highest)
{
  return oldest && (highest >= BOTTOM_LEVEL || lowest < highest)
    ? DEDUP_MAX_LEVEL : MIN_OF (highest + 1, DEDUP_MAX_LEVEL);
}

/* Considers the youngest levels as a whole, so that an older run is of a lower
 * level only where it was an incarnation. */
static void
consider_idle (const struct run *v, size_t nr, struct choice *best, bool *any)
{
  size_t first = nr - 1;
  unsigned lowest, highest;

  if (nr <= MERGE_FEW)
    return;
  lowest = highest = v[first].level;
  while (first > 0 && joins_older (v, first) && v[first - 1].merge == 0 &&
         (first >= MERGE_FEW || v[first - 1].level == v[first].level)) {
    first--;
    lowest = MIN_OF (lowest, v[first].level);
    highest = MAX_OF (highest, v[first].level);
  }
  if (first < nr - 1)
    consider (best, any, (struct choice) {
      .first = first, .nr = nr - first, .level = lowest,
      .out_level = level_above (first == 0, lowest, highest) });
}

/* Considers runs of the same level under a bound on memory: runs stay in order
 * of age, none becomes so large that dropping it would forget much, and tables
 * that are about to be forgotten are not merged (memory-limit.c). */
static void
consider_window (const struct dedup_index *x, const struct run *v, size_t nr,
                 struct choice *best, bool *any)
{
  const uint64_t most = index_largest_run (x);
  const uint64_t aging = x->view->aging;
  uint64_t bytes;
  size_t i, n, m;

  for (i = 0; i < nr; i++) {
    if (v[i].merge || v[i].age <= aging ||
        v[i].level >= DEDUP_MAX_LEVEL - 1 ||
        (*any && best->level <= v[i].level))
      continue;
    for (n = 1; i + n < nr && joins_older (v, i + n) &&
           v[i + n].level == v[i].level; n++)
      ;
    if (n < MERGE_TIER)
      continue;
    for (m = 0, bytes = 0; m < MIN_OF (n, MAX_TIER); m++) {
      bytes += index_run_bytes (x, x->manifest, v[i + m].first,
                                v[i + m].nr);
      if (bytes > most)
        break;
    }
    if (m >= 2)
      consider (best, any, (struct choice) {
        .first = i, .nr = m, .level = v[i].level,
        .out_level = v[i].level + 1 });
  }
}

/* Chooses the next merge: *BEST.  Returns false if there is nothing to
 * merge. */
static bool
choose (struct dedup_index *x, const struct run *v, size_t nr, bool idle,
        struct choice *best)
{
  bool any = false;

  /* Where incarnations are limited, the oldest table is dropped at each freeze,
   * which could not be done if it were merged with younger ones. */
  if (x->manifest->max_incarnations != 0)
    return false;
  consider_begun (v, nr, best, &any);
  if (x->memory_bound != 0) {
    consider_window (x, v, nr, best, &any);
    return any;
  }
  consider_bottom (v, nr, best, &any);
  consider_tiers (v, nr, best, &any);
  consider_stale (x, v, nr, best, &any);
  if (idle && !any)
    consider_idle (v, nr, best, &any);
  return any;
}

/* Chooses the next merge among the listed runs: *BEST.  Returns false if there
 * is nothing to merge. */
static bool
look_for_merge (struct dedup_index *x, bool idle, struct choice *best)
{
  CLEANUP_FREE struct run *v = NULL;
  size_t nr = 0;

  v = list_runs (x->manifest, &nr);
  return v != NULL && choose (x, v, nr, idle, best);
}

bool
merge_wanted (struct dedup_index *x, bool idle)
{
  struct choice c;

  return conversion_possible (x) || look_for_merge (x, idle, &c);
}

/* Conversions come before all merges except those of level 0.  So there are
 * never more tables than before, and the outputs of later merges are in order
 * of levels. */
bool
convert_is_next (struct dedup_index *x)
{
  struct choice c;

  return conversion_possible (x) &&
    (!look_for_merge (x, false, &c) || c.level > 0);
}

/* --- The plan ------------------------------------------------------------ */

/* Returns true if R, run number I, is an input of the merge C. */
static bool
is_input (const struct run *r, size_t i, const struct choice *c)
{
  return c->merge ? r->merge == c->merge && !r->output
    : i >= c->first && i < c->first + c->nr;
}

/* Returns the prefix at which the merge continues: where its inputs begin, and
 * behind its output; 2^32 if its output is complete. */
static uint64_t
find_start (const struct dedup_index *x, const struct run *v, size_t nr,
            const struct choice *c)
{
  const struct dedup_segment_desc *s = x->manifest->segments;
  uint64_t inputs = UINT32_MAX, output = 0;
  size_t i, k;

  for (i = 0; i < nr; i++)
    for (k = v[i].first; k < v[i].first + v[i].nr; k++)
      if (is_input (&v[i], i, c))
        inputs = MIN_OF (inputs, s[k].lo);
      else if (c->merge && v[i].merge == c->merge)
        output = MAX_OF (output, (uint64_t) s[k].hi + 1);
  return c->merge ? MAX_OF (inputs, output) : 0;
}

/* Returns an upper bound on the number of entries of the inputs with prefixes
 * from FROM to TO, by their fences (load_inputs). */
static uint64_t
bound_entries (struct dedup_index *x, const struct run *v, size_t nr,
               const struct choice *c, uint32_t from, uint32_t to)
{
  uint64_t n = 0;
  size_t i, k;

  for (i = 0; i < nr; i++)
    for (k = v[i].first; is_input (&v[i], i, c) &&
           k < v[i].first + v[i].nr; k++) {
      const struct dedup_segment_desc *desc = &x->manifest->segments[k];
      struct dedup_segment *s = index_find_segment (x, desc->id);

      if (desc->lo > to || desc->hi < from || s == NULL)
        continue;
      n += dedup_segment_bound (s, MAX_OF (from, desc->lo),
                                MIN_OF (to, desc->hi));
    }
  return n;
}

/* Loads the fences of the inputs.  -ENOMEM. */
static int
load_inputs (struct dedup_index *x, const struct run *v, size_t nr,
             const struct choice *c)
{
  size_t i, k;
  int r;

  for (i = 0; i < nr; i++)
    for (k = v[i].first; is_input (&v[i], i, c) &&
           k < v[i].first + v[i].nr; k++) {
      struct dedup_segment *s = index_find_segment
        (x, x->manifest->segments[k].id);

      r = s ? dedup_segment_load (s) : 0;
      if (r == -ENOMEM)
        return r;                /* else its pages may still be readable */
    }
  return 0;
}

/* Returns the size of a segment in entries: so large that a run has at most 64
 * of them, and that a step is worth its fixed costs; so small that a step
 * takes seconds. */
static uint64_t
segment_entries (const struct dedup_index_manifest *m)
{
  const uint64_t small = (uint64_t) MERGE_STEP * DEDUP_BUCKET_SLOTS
    << m->order;
  const uint64_t large = UINT64_C (1) << 26;

  return MIN_OF (MAX_OF (small, dedup_manifest_entries (m) / 64), large);
}

/* Adds RUN to P's inputs; OLDEST: it is the oldest of them. */
static void
add_source (struct dedup_index *x, const struct run *run, bool oldest,
            struct merge_plan *p)
{
  struct merge_source *src = &p->sources[p->nr_sources++];
  size_t k;

  src->age = run->age;
  for (k = run->first; k < run->first + run->nr; k++) {
    const struct dedup_segment_desc *s = &x->manifest->segments[k];
    struct dedup_segment *seg = index_find_segment (x, s->id);

    p->ids[p->nr_ids++] = s->id;
    if (seg != NULL && !oldest)
      p->younger[p->nr_younger++] = dedup_segment_get (seg);
    if (s->lo <= p->out.hi && s->hi >= p->out.lo && seg != NULL)
      src->v[src->nr++] = dedup_segment_get (seg);
  }
}

static int
add_sources (struct dedup_index *x, const struct run *v, size_t nr,
             const struct choice *c, struct merge_plan *p)
{
  size_t i, first = 0;

  while (first < nr && !is_input (&v[first], first, c))
    first++;
  p->sources = calloc (nr, sizeof *p->sources);
  p->ids = calloc (x->manifest->nr_segments, sizeof *p->ids);
  p->younger = calloc (x->manifest->nr_segments, sizeof *p->younger);
  if (p->sources == NULL || p->ids == NULL || p->younger == NULL)
    return -ENOMEM;
  for (i = nr; i-- > 0; ) {      /* youngest first */
    if (!is_input (&v[i], i, c))
      continue;
    p->sources[p->nr_sources].v = calloc (v[i].nr, sizeof (void *));
    if (p->sources[p->nr_sources].v == NULL)
      return -ENOMEM;
    add_source (x, &v[i], i == first, p);
  }
  return 0;
}

/* Chooses the step's range: about as many prefixes as make a segment, or all
 * that are left.  The inputs may stay listed up to the last step, so there
 * must never be more steps than free places in the list; the last step needs
 * none. */
static void
choose_range (struct dedup_index *x, const struct run *v, size_t nr,
              const struct choice *c, struct merge_plan *p)
{
  const uint64_t places = dedup_manifest_full (x->manifest) ? 1 :
    DEDUP_MAX_SEGMENTS - DEDUP_SPARE_SEGMENTS - x->manifest->nr_segments;
  uint64_t from = find_start (x, v, nr, c), to = UINT32_MAX, left, want;

  from = MIN_OF (from, UINT32_MAX);
  left = bound_entries (x, v, nr, c, (uint32_t) from, UINT32_MAX);
  want = places == 1 ? left : MAX_OF (segment_entries (x->manifest),
                                      left / places + 1);
  if (x->manifest->nr_segments < DEDUP_MAX_SEGMENTS)
    want = MIN_OF (want, LARGEST_STEP / 2);   /* by the spare places */
  if (left > want + want / 4)
    to = from + (uint64_t) ((double) (UINT32_MAX - from) * (double) want /
                            (double) left);
  p->out.lo = (uint32_t) from;
  p->out.hi = (uint32_t) MIN_OF (to, UINT32_MAX);
  p->nr_bound = bound_entries (x, v, nr, c, p->out.lo, p->out.hi);
}

/* Fills in the id, age, level and filter width of P's output, and whether the
 * step is at the bottom and may rest. */
static void
name_output (struct dedup_index *x, const struct run *v, size_t nr,
             const struct choice *c, struct merge_plan *p)
{
  struct dedup_index_manifest *m = x->manifest;
  uint64_t entries = 0;
  size_t i, young = 0;

  p->bottom = true;
  p->out.level = (uint8_t) c->out_level;
  for (i = 0; i < nr; i++) {
    young += v[i].level == 0 && v[i].merge == 0;
    if (is_input (&v[i], i, c)) {
      p->out.age = v[i].age;             /* the youngest is last */
      entries += v[i].nr_entries;
    }
    else if (c->merge && v[i].merge == c->merge) {
      p->out.level = (uint8_t) v[i].level;
      entries += v[i].nr_entries;
    }
    else if (entries == 0)
      p->bottom = false;                 /* it is older than the inputs */
  }
  for (i = 0; i < m->nr_incarnations; i++)
    if (m->incarnations[i].id < p->out.age)
      p->bottom = false;
  p->may_rest = young < URGENT_YOUNG_RUNS && nr < URGENT_RUNS &&
    dedup_manifest_entries (m) < 2 * stale_limit (x);
  p->out.id = m->next_id++;
  p->merge = c->merge ? c->merge : (uint32_t) p->out.id | 1u << 31;
  p->out.bits = (uint8_t) index_run_bits (p->out.level,
                                          dedup_manifest_entries (m),
                                          entries);
}

/* Returns the level of the output of a merge that was begun but has no segment
 * listed yet: it follows from its inputs' levels, as when it was chosen. */
static unsigned
level_of_begun (const struct run *v, size_t nr, uint32_t merge)
{
  unsigned level = 0, lowest = DEDUP_MAX_LEVEL, runs = 0, oldest = 0;
  size_t i;

  for (i = 0; i < nr; i++)
    if (v[i].merge == merge) {
      level = MAX_OF (level, v[i].level);
      lowest = MIN_OF (lowest, v[i].level);
      oldest = runs++ == 0 ? (unsigned) i : oldest;
    }
  return level_above (oldest == 0, lowest, level);
}

/* Allocates the area of P's output.  -ENOSPC: the bound on its entries, which
 * comes from the storage, is more than a segment holds.  Where a filter would
 * have more than DEDUP_MAX_SHARDS shards, the segment has none. */
static int
alloc_output (struct dedup_index *x, struct merge_plan *p)
{
  if (p->nr_bound > LARGEST_STEP)
    return -ENOSPC;
  if (dedup_filter_shards (p->nr_bound) > DEDUP_MAX_SHARDS)
    p->out.bits = 0;
  p->out.size_bytes = round_up_pow2 (dedup_segment_size (p->nr_bound,
                                                         p->out.bits),
                                     x->area_unit);
  return x->storage.alloc (x->storage.opaque, p->out.size_bytes,
                           &p->out.host_off);
}

/* Breaks law 9, for a test: frees the inputs before the step is listed. */
static int
free_inputs_too_early (struct dedup_index *x, const struct merge_plan *p)
{
  size_t i, k;
  int r = 0;

  for (i = 0; i < p->nr_sources; i++)
    for (k = 0; k < p->sources[i].nr && r == 0; k++) {
      const struct dedup_segment_desc *s =
        dedup_segment_desc (p->sources[i].v[k]);

      r = x->storage.free (x->storage.opaque, s->host_off, s->size_bytes);
    }
  return r;
}

static int
fill_plan (struct dedup_index *x, const struct run *v, size_t nr,
           struct choice *c, struct merge_plan *p)
{
  int r;

  if (c->merge)
    c->out_level = level_of_begun (v, nr, c->merge);
  r = load_inputs (x, v, nr, c);
  if (r < 0)
    return r;
  choose_range (x, v, nr, c, p);
  name_output (x, v, nr, c, p);
  lock_acquire (x->lock);
  p->look_for_dead = !x->exact;
  lock_release (x->lock);
  r = add_sources (x, v, nr, c, p);
  if (r == 0 && mutation (MUTATION_LAW_9_RUN))
    r = free_inputs_too_early (x, p);
  return r == 0 ? alloc_output (x, p) : r;
}

int
merge_plan_new (struct dedup_index *x, bool idle, struct merge_plan **out)
{
  CLEANUP_FREE struct run *v = NULL;
  struct merge_plan *p;
  struct choice c;
  size_t nr = 0;
  int r;

  v = list_runs (x->manifest, &nr);
  if (v == NULL)
    return -ENOMEM;
  if (!choose (x, v, nr, idle, &c))
    return 0;
  p = calloc (1, sizeof *p);
  if (p == NULL)
    return -ENOMEM;
  r = fill_plan (x, v, nr, &c, p);
  if (r < 0) {
    merge_plan_free (p);
    return r;
  }
  *out = p;
  return 1;
}

void
merge_plan_free (struct merge_plan *p)
{
  size_t i, k;

  if (p == NULL)
    return;
  for (i = 0; p->sources && i < p->nr_sources; i++) {
    for (k = 0; k < p->sources[i].nr; k++)
      dedup_segment_put (p->sources[i].v[k]);
    free (p->sources[i].v);
  }
  for (i = 0; i < p->nr_younger; i++)
    dedup_segment_put (p->younger[i]);
  dedup_segment_meta_free (p->meta);
  free (p->younger);
  free (p->sources);
  free (p->ids);
  free (p);
}

bool
merge_plan_has_input (const struct merge_plan *p,
                      const struct dedup_segment_desc *s)
{
  size_t i;

  for (i = 0; i < p->nr_ids; i++)
    if (p->ids[i] == s->id)
      return true;
  return false;
}

bool
merge_plan_holds (const struct dedup_index *x, const struct merge_plan *p)
{
  size_t i, nr = 0;

  for (i = 0; i < x->manifest->nr_segments; i++)
    nr += merge_plan_has_input (p, &x->manifest->segments[i]);
  return nr == p->nr_ids;
}
