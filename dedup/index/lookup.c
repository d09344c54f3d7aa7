/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks hashes up in the tables of a view, many at once.
 *
 * Filters are asked in batches: for each pair of a hash and a table the place
 * in the filter is computed first, so that memory has time to fetch it, and
 * then all of them are tested.  A page is read only where no filter excludes
 * the hash.
 *
 * Tables are asked from the youngest to the oldest, and the first one that has
 * a hash decides, be it by a tombstone: so younger entries hide older ones.
 *
 * Threads: any number, without locks: a view does not change.
 */
#include "index-private.h"

/* Hashes that are looked up together, and pairs of a hash and a table whose
 * filters are asked together: enough of them to hide the latency of memory. */
#define BATCH_HASHES 64
#define BATCH_PAIRS 128

struct batch {
  const struct dedup_index_view *view;
  struct dedup_probe *probes;
  struct dedup_filter_key keys[BATCH_HASHES];
  size_t nr_pending;
  uint8_t pending[BATCH_HASHES];       /* not found yet */
  struct pair {
    const struct index_table *table;
    struct dedup_segment *segment;     /* of a run */
    unsigned probe;
  } pairs[BATCH_PAIRS];
  struct dedup_filter_place places[BATCH_PAIRS];
};

/* Returns the number of the segment of a run that answers for PREFIX, or -1 if
 * none does.  Their ranges, NR of them, are about equally wide, so a guess and
 * few steps find it. */
static inline ssize_t
segment_for (const struct index_range *r, size_t nr, uint32_t prefix)
{
  size_t i = (size_t) ((uint64_t) prefix * nr >> 32);

  while (i > 0 && r[i].lo > prefix)
    i--;
  while (i + 1 < nr && r[i].hi < prefix)
    i++;
  return r[i].lo <= prefix && prefix <= r[i].hi ? (ssize_t) i : -1;
}

/* Appends the pairs of an incarnation and all pending hashes to NR others;
 * returns the number of all.  An incarnation asks its own filter later. */
static size_t
add_incarnation (struct batch *b, const struct index_table *t, size_t nr)
{
  static const uint64_t any_word;
  size_t i;

  for (i = 0; i < b->nr_pending; i++, nr++) {
    b->places[nr].head = &any_word;      /* 0 bits: it may have it */
    b->places[nr].bits = 0;
    b->pairs[nr] = (struct pair) { .table = t, .probe = b->pending[i] };
  }
  return nr;
}

/* Appends the pairs of a run's segments and pending hashes, as
 * add_incarnation. */
static size_t
add_run (struct batch *b, const struct index_table *t, size_t nr)
{
  struct dedup_segment **segments = b->view->segments + t->first;
  const struct index_range *ranges = b->view->ranges + t->first;
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

/* Looks the hash of PROBE up in the pages of P's table, and notes the
 * result. */
static void
look_in_pages (const struct batch *b, struct dedup_probe *probe,
               const struct pair *p)
{
  struct dedup_incarnation *inc = p->table->inc;
  unsigned reads = 0;
  uint64_t at;
  int r;

  r = inc ? dedup_incarnation_lookup (inc, &probe->hash, &at, &reads)
    : dedup_segment_lookup (p->segment, &probe->hash, &at, &reads);
  probe->reads += reads;
  if (r != 1) {
    probe->false_positives += reads > 0 && has_filter (p);
    return;
  }
  probe->value = at;
  probe->aging = p->table->age <= b->view->aging;
  probe->found = at == DEDUP_DELETED ? DEDUP_MISS : DEDUP_HIT;
}

/* Tests the filters of NR pairs, and looks in the pages of those tables that
 * may have the hash, in order of age.  Found hashes are no longer pending. */
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
      look_in_pages (b, &b->probes[p->probe], p);
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
    b->probes[i].reads = b->probes[i].false_positives = 0;
    b->probes[i].aging = false;
    b->pending[i] = (uint8_t) i;
  }
  b->nr_pending = nr;
  for (i = 0; i < b->view->nr_tables && b->nr_pending > 0; i++) {
    const struct index_table *t = &b->view->tables[i];

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
dedup_index_probe (const struct dedup_index_view *view, struct dedup_probe *p,
                   size_t nr)
{
  struct batch b;
  size_t done, n;

  b.view = view;
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
index_hidden (const struct dedup_index_view *view, size_t table,
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
    const struct index_table *t = &view->tables[i];

    if (t->inc)
      r = dedup_incarnation_lookup (t->inc, h, &at, NULL);
    else {
      k = segment_for (view->ranges + t->first, t->nr, dedup_hash_prefix (h));
      if (k < 0)
        continue;
      s = view->segments[t->first + (size_t) k];
      r = !filter_denies (s, &key) && dedup_segment_lookup (s, h, &at, NULL);
    }
    if (r == 1)
      return true;
  }
  return false;
}
