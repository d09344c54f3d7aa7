/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets of tables: the incarnations and runs that lookups ask, youngest first.
 *
 * A set is immutable and counted: made from the configuration, published
 * under the disk's lock, given back by its last reader.  What an older set
 * has open already is shared.
 *
 * A run is cut into segments by range of hashes, so one segment of it is
 * asked.  While runs are merged, their segments answer for what the merge has
 * not reached, and its output for the rest: the ranges say so, which are the
 * set's own, since segments are shared by sets.
 */
#include "disk.h"

#include <errno.h>

/* --- Making a set -------------------------------------------------------- */

static void
free_set (struct dedup_incarnations *s)
{
  size_t i;

  for (i = 0; i < s->nr; i++)
    dedup_incarnation_put (s->v[i]);
  for (i = 0; s->segments && i < s->nr_segments; i++)
    dedup_segment_put (s->segments[i]);
  free (s->segments);
  free (s->ranges);
  free (s->tables);
  free (s);
}

static struct dedup_incarnations *
new_set (size_t nr, size_t nr_segments)
{
  struct dedup_incarnations *s;

  s = calloc (1, sizeof *s + nr * sizeof s->v[0]);
  if (s == NULL)
    return NULL;
  s->users = 1;
  s->nr = nr;
  s->nr_segments = nr_segments;
  s->segments = calloc (nr_segments + 1, sizeof *s->segments);
  s->ranges = calloc (nr_segments + 1, sizeof *s->ranges);
  s->tables = calloc (nr + nr_segments + 1, sizeof *s->tables);
  if (s->segments && s->ranges && s->tables)
    return s;
  free_set (s);
  return NULL;
}

void
dedup_incarnations_put (struct dedup_incarnations *s)
{
  if (s != NULL && __atomic_sub_fetch (&s->users, 1, __ATOMIC_ACQ_REL) == 0)
    free_set (s);
}

struct dedup_incarnations *
dedup_index_set_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  __atomic_add_fetch (&d->index.set->users, 1, __ATOMIC_RELAXED);
  return d->index.set;
}

static int
open_incarnation (struct dedup_disk *d,
                  const struct dedup_incarnation_desc *desc,
                  struct dedup_incarnation **out)
{
  struct dedup_incarnations *old = d->index.set;
  size_t i;

  for (i = 0; old != NULL && i < old->nr; i++)
    if (dedup_incarnation_desc (old->v[i])->id == desc->id) {
      *out = dedup_incarnation_get (old->v[i]);
      return 0;
    }
  return dedup_incarnation_open (dedup_index_io (d), d->config->store_id, desc,
                                 out);
}

static int
open_segment (struct dedup_disk *d, const struct dedup_segment_desc *desc,
              struct dedup_segment **out)
{
  struct dedup_incarnations *old = d->index.set;
  size_t i;

  for (i = 0; old != NULL && i < old->nr_segments; i++)
    if (dedup_segment_desc (old->segments[i])->id == desc->id) {
      *out = dedup_segment_get (old->segments[i]);
      return 0;
    }
  return dedup_segment_open (dedup_index_io (d), d->config->store_id, desc,
                             out);
}

static int
open_incarnations (struct dedup_disk *d, struct dedup_incarnations *s)
{
  const struct dedup_config *c = d->config;
  size_t i, pos;
  int r;

  for (i = 0; i < c->nr_incarnations; i++) {
    pos = c->nr_incarnations - 1 - i;    /* listed oldest first */
    r = open_incarnation (d, &c->incarnations[i], &s->v[pos]);
    if (r < 0)
      return r;
    s->tables[s->nr_tables++] = (struct dedup_table) {
      .age = c->incarnations[i].id, .inc = s->v[pos] };
  }
  return 0;
}

/* Listed by age, level, range: a run's segments stand together. */
static int
open_segments (struct dedup_disk *d, struct dedup_incarnations *s)
{
  const struct dedup_config *c = d->config;
  const struct dedup_segment_desc *desc = c->segments;
  size_t i;
  int r;

  for (i = 0; i < c->nr_segments; i++, desc++) {
    r = open_segment (d, desc, &s->segments[i]);
    if (r < 0)
      return r;
    s->ranges[i] = (struct dedup_range) { desc->lo, desc->hi };
    if (i == 0 || !dedup_same_run (&desc[-1], desc))
      s->tables[s->nr_tables++] = (struct dedup_table) {
        .age = desc->age, .first = i };
    s->tables[s->nr_tables - 1].nr++;
  }
  return 0;
}

/* Youngest first.  Of the same age are only a merge's output and its youngest
 * input, whose ranges are apart. */
static int
compare_ages (const void *a, const void *b)
{
  const struct dedup_table *x = a, *y = b;

  return x->age > y->age ? -1 : x->age < y->age;
}

int
dedup_index_prepare (struct dedup_disk *d, struct dedup_incarnations **out)
{
  const struct dedup_config *c = d->config;
  struct dedup_incarnations *s = new_set (c->nr_incarnations, c->nr_segments);
  int r;

  if (s == NULL)
    return -ENOMEM;
  if ((r = open_incarnations (d, s)) < 0 || (r = open_segments (d, s)) < 0) {
    dedup_incarnations_put (s);
    return r;
  }
  qsort (s->tables, s->nr_tables, sizeof *s->tables, compare_ages);
  s->aging = d->index.set ? dedup_window_aging (d) : 0;
  *out = s;
  return 0;
}

void
dedup_index_publish (struct dedup_disk *d, struct dedup_incarnations *set,
                     bool frozen_done)
{
  struct dedup_incarnations *old;
  struct dedup_log_store *done = NULL;

  lock_acquire (d->lock);
  old = d->index.set;
  d->index.set = set;
  if (frozen_done) {
    done = d->index.frozen;
    d->index.frozen = NULL;
  }
  lock_release (d->lock);
  dedup_incarnations_put (old);
  dedup_index_keep_spare (d, done);
  dedup_merge_look (d);
}

static bool
is_damaged (const struct dedup_incarnations *set)
{
  size_t i;

  for (i = 0; i < set->nr; i++)
    if (dedup_incarnation_damaged (set->v[i]))
      return true;
  for (i = 0; i < set->nr_segments; i++)
    if (dedup_segment_damaged (set->segments[i]))
      return true;
  return false;
}

void
dedup_index_distrust_damaged (struct dedup_disk *d,
                              const struct dedup_incarnations *set)
{
  if (is_damaged (set)) {
    LOCK_FOR_SCOPE (d->lock);
    d->exact = false;
    __atomic_store_n (&d->filters_loaded, false, __ATOMIC_RELAXED);
  }
}

/* --- Lookup -------------------------------------------------------------- */

/* Pairs of a hash and a table whose filters are asked in one go: enough of
 * them that memory has time to bring what is tested. */
#define BATCH_HASHES 64
#define BATCH_PAIRS 128

struct batch {
  struct dedup_incarnations *set;
  struct dedup_probe *probes;
  struct dedup_filter_key keys[BATCH_HASHES];
  size_t nr_pending;
  uint8_t pending[BATCH_HASHES];       /* not found yet */
  struct pair {
    const struct dedup_table *table;
    struct dedup_segment *segment;     /* of a run */
    unsigned probe;
  } pairs[BATCH_PAIRS];
  struct dedup_filter_place places[BATCH_PAIRS];
};

/* Which segment of a run answers for PREFIX?  -1: none.  Their ranges, NR of
 * them, are about equal, so it is found by a guess and few steps. */
static inline ssize_t
segment_for (const struct dedup_range *r, size_t nr, uint32_t prefix)
{
  size_t i = (size_t) ((uint64_t) prefix * nr >> 32);

  while (i > 0 && r[i].lo > prefix)
    i--;
  while (i + 1 < nr && r[i].hi < prefix)
    i++;
  return r[i].lo <= prefix && prefix <= r[i].hi ? (ssize_t) i : -1;
}

/* Note the pairs of one table; returns the number of all. */
static size_t
add_incarnation (struct batch *b, const struct dedup_table *t, size_t nr)
{
  static const uint64_t somewhere;
  size_t i;

  for (i = 0; i < b->nr_pending; i++, nr++) {
    b->places[nr].head = &somewhere;      /* asks its own filter */
    b->places[nr].bits = 0;
    b->pairs[nr] = (struct pair) { .table = t, .probe = b->pending[i] };
  }
  return nr;
}

static size_t
add_run (struct batch *b, const struct dedup_table *t, size_t nr)
{
  struct dedup_segment **segments = b->set->segments + t->first;
  const struct dedup_range *ranges = b->set->ranges + t->first;
  const size_t nr_ranges = t->nr, nr_pending = b->nr_pending;
  size_t i;

  for (i = 0; i < nr_pending; i++) {
    const unsigned probe = b->pending[i];
    const struct dedup_filter_key *key = &b->keys[probe];
    ssize_t k = segment_for (ranges, nr_ranges, (uint32_t) (key->pos >> 32));

    if (k < 0)
      continue;
    b->pairs[nr] = (struct pair) { t, segments[k], probe };
    dedup_segment_place (segments[k], key, &b->places[nr++]);
  }
  return nr;
}

static bool
has_filter (const struct pair *p)
{
  const struct dedup_segment_meta *m;

  if (p->table->inc)
    return dedup_incarnation_loaded (p->table->inc);
  m = dedup_segment_meta (p->segment);
  return m != NULL && m->filter.bits > 0;
}

static void
look (const struct batch *b, struct dedup_probe *probe, const struct pair *p)
{
  struct dedup_incarnation *inc = p->table->inc;
  unsigned reads = 0;
  uint64_t at;
  int r;

  r = inc ? dedup_incarnation_lookup (inc, &probe->hash, &at, &reads)
    : dedup_segment_lookup (p->segment, &probe->hash, &at, &reads);
  probe->reads += reads;
  if (r != 1) {
    probe->vain += reads > 0 && has_filter (p);
    return;
  }
  probe->host_idx = at;
  probe->aging = p->table->age <= b->set->aging;
  probe->found = at == DEDUP_DELETED ? DEDUP_MISS : DEDUP_HIT;
}

/* Ask what may have them, in order: the first that has says all. */
static void
ask_pairs (struct batch *b, size_t nr)
{
  uint16_t maybe[BATCH_PAIRS];
  size_t i, n, left = 0;

  n = dedup_filter_test (b->places, nr, maybe);
  if (n == 0)
    return;
  for (i = 0; i < n; i++) {
    const struct pair *p = &b->pairs[maybe[i]];

    if (b->probes[p->probe].found == DEDUP_PROBE)
      look (b, &b->probes[p->probe], p);
  }
  for (i = 0; i < b->nr_pending; i++)
    if (b->probes[b->pending[i]].found == DEDUP_PROBE)
      b->pending[left++] = b->pending[i];
  b->nr_pending = left;
}

static void
probe_batch (struct batch *b, size_t nr)
{
  size_t i, pairs = 0;

  for (i = 0; i < nr; i++) {
    dedup_filter_key (&b->probes[i].hash, &b->keys[i]);
    b->probes[i].found = DEDUP_PROBE;
    b->probes[i].reads = b->probes[i].vain = 0;
    b->probes[i].aging = false;
    b->pending[i] = (uint8_t) i;
  }
  b->nr_pending = nr;
  for (i = 0; i < b->set->nr_tables && b->nr_pending > 0; i++) {
    const struct dedup_table *t = &b->set->tables[i];

    pairs = t->inc ? add_incarnation (b, t, pairs) : add_run (b, t, pairs);
    if (pairs + b->nr_pending <= BATCH_PAIRS)
      continue;
    ask_pairs (b, pairs);
    pairs = 0;
  }
  ask_pairs (b, pairs);
  for (i = 0; i < nr; i++)
    if (b->probes[i].found == DEDUP_PROBE)
      b->probes[i].found = DEDUP_MISS;
}

void
dedup_index_probe_many (struct dedup_incarnations *set, struct dedup_probe *p,
                        size_t nr)
{
  struct batch b;
  size_t done, n;

  b.set = set;
  for (done = 0; done < nr; done += n) {
    n = MIN_OF (nr - done, BATCH_HASHES);
    b.probes = p + done;
    probe_batch (&b, n);
  }
}

static bool
filter_denies (struct dedup_segment *s, const struct dedup_filter_key *key)
{
  struct dedup_filter_place place;
  uint16_t maybe;

  dedup_segment_place (s, key, &place);
  return dedup_filter_test (&place, 1, &maybe) == 0;
}

bool
dedup_index_hidden (const struct dedup_incarnations *set, size_t table,
                    const struct dedup_hash *h)
{
  struct dedup_filter_key key;
  struct dedup_segment *s;
  ssize_t k;
  uint64_t at;
  size_t i;
  int r;

  dedup_filter_key (h, &key);
  for (i = 0; i < table; i++) {
    const struct dedup_table *t = &set->tables[i];

    if (t->inc)
      r = dedup_incarnation_lookup (t->inc, h, &at, NULL);
    else {
      k = segment_for (set->ranges + t->first, t->nr, dedup_hash_prefix (h));
      if (k < 0)
        continue;
      s = set->segments[t->first + (size_t) k];
      r = !filter_denies (s, &key) && dedup_segment_lookup (s, h, &at, NULL);
    }
    if (r == 1)
      return true;
  }
  return false;
}

enum dedup_found
dedup_index_probe (struct dedup_incarnations *set, const struct dedup_hash *h,
                   uint64_t *host_idx)
{
  struct dedup_probe p = { .hash = *h };

  dedup_index_probe_many (set, &p, 1);
  *host_idx = p.host_idx;
  return p.found;
}
