/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs: the log store that was set aside becomes one, and the list of their
 * segments in the configuration.
 *
 * A segment is written and made durable before the configuration lists it
 * (law 8).  One that the configuration lists no more keeps its space until
 * that configuration is durable (law 9), and until nobody reads it, so that no
 * lookup misses what is there.  Interrupted at any point, an area that nothing
 * lists is garbage, which the next session's sweep frees.
 *
 * Maintenance only.  The frozen log store does not change meanwhile.
 */
#include "disk.h"

#include <errno.h>

/* --- Figures ------------------------------------------------------------- */

uint64_t
dedup_config_entries (const struct dedup_config *c)
{
  uint64_t n = 0;
  size_t i;

  for (i = 0; i < c->nr_incarnations; i++)
    n += c->incarnations[i].nr_entries;
  for (i = 0; i < c->nr_segments; i++)
    n += c->segments[i].nr_entries;
  return n;
}

/* All filters together shall say yes in vain for less than 1 % of the misses,
 * in as little memory as can be: then each run's share of false positives is
 * its share of the entries.  3/400 in all, for widths are rounded and the run
 * may be joined by younger ones (docs/ARCHITECTURE.md section 8).  Runs of the
 * lowest levels are small enough to have more where the index is small. */
unsigned
dedup_run_bits (unsigned level, uint64_t in_all, uint64_t nr_entries)
{
  const uint64_t all = MAX_OF (in_all, nr_entries) * 400;
  unsigned bits = level < 2 ? 12 : 7;

  /* round (log2 (all / (3 * nr_entries))): 181/128 is the root of 2 */
  while (bits < DEDUP_FILTER_MAX_BITS &&
         ((nr_entries * 3 * 181 / 128) << bits) < all)
    bits++;
  return bits;
}

/* --- The list ------------------------------------------------------------ */

static bool
stands_before (const struct dedup_segment_desc *a,
               const struct dedup_segment_desc *b)
{
  if (a->age != b->age)
    return a->age < b->age;
  if (a->level != b->level)
    return a->level < b->level;
  return a->lo < b->lo;
}

int
dedup_runs_list (struct dedup_config *c, const struct dedup_segment_desc *desc)
{
  size_t i = c->nr_segments;

  if (c->nr_segments == DEDUP_MAX_SEGMENTS)
    return -ENOSPC;
  for (; i > 0 && stands_before (desc, &c->segments[i - 1]); i--)
    c->segments[i] = c->segments[i - 1];
  c->segments[i] = *desc;
  c->nr_segments++;
  return 0;
}

/* Remember what is to be freed; without memory for it, it is left to the next
 * session's sweep. */
static void
remember_dropped (struct dedup_disk *d, struct dedup_dropped what)
{
  struct dedup_dropped *v;

  v = realloc (d->dropped, (d->nr_dropped + 1) * sizeof *v);
  if (v == NULL)
    return;
  d->dropped = v;
  if (what.segment)
    dedup_segment_get (what.segment);
  if (what.inc)
    dedup_incarnation_get (what.inc);
  v[d->nr_dropped++] = what;
}

void
dedup_runs_unlist (struct dedup_disk *d, size_t i)
{
  const struct dedup_incarnations *set = d->index.set;
  struct dedup_config *c = d->config;
  const struct dedup_segment_desc *desc = &c->segments[i];
  size_t k;

  for (k = 0; k < set->nr_segments; k++)
    if (dedup_segment_desc (set->segments[k])->id == desc->id) {
      remember_dropped (d, (struct dedup_dropped) {
        .segment = set->segments[k], .host_off = desc->host_off,
        .size_bytes = desc->size_bytes });
      break;
    }
  c->nr_segments--;
  memmove (&c->segments[i], &c->segments[i + 1],
           (c->nr_segments - i) * sizeof c->segments[0]);
}

void
dedup_runs_drop_incarnation (struct dedup_disk *d,
                             const struct dedup_incarnation_desc *desc)
{
  const struct dedup_incarnations *set = d->index.set;
  size_t i;

  for (i = 0; i < set->nr; i++)
    if (dedup_incarnation_desc (set->v[i])->id == desc->id) {
      remember_dropped (d, (struct dedup_dropped) {
        .inc = set->v[i], .host_off = desc->host_off,
        .size_bytes = desc->size_bytes });
      break;
    }
}

/* Without a limit, no incarnation will ask for it. */
static void
drop_limbo (struct dedup_disk *d)
{
  struct dedup_config *c = d->config;
  size_t i;

  for (i = 0; i < c->nr_limbo; i++)
    remember_dropped (d, (struct dedup_dropped) {
      .host_off = c->limbo[i].host_off,
      .size_bytes = c->limbo[i].size_bytes });
  c->nr_limbo = 0;
}

static bool
lists_area (const struct dedup_config *c, uint64_t host_off)
{
  size_t i;

  for (i = 0; i < c->nr_segments; i++)
    if (c->segments[i].host_off == host_off)
      return true;
  for (i = 0; i < c->nr_incarnations; i++)
    if (c->incarnations[i].host_off == host_off)
      return true;
  for (i = 0; i < c->nr_limbo; i++)
    if (c->limbo[i].host_off == host_off)
      return true;
  return false;
}

void
dedup_dropped_put (const struct dedup_dropped *p)
{
  if (p->segment)
    dedup_segment_put (p->segment);
  dedup_incarnation_put (p->inc);
}

void
dedup_runs_undrop (struct dedup_disk *d)
{
  size_t i, nr = 0;

  for (i = 0; i < d->nr_dropped; i++)
    if (lists_area (d->config, d->dropped[i].host_off))
      dedup_dropped_put (&d->dropped[i]);
    else
      d->dropped[nr++] = d->dropped[i];
  d->nr_dropped = nr;
}

static bool
is_read (const struct dedup_dropped *p)
{
  return (p->segment && dedup_segment_users (p->segment) > 1) ||
    (p->inc && dedup_incarnation_users (p->inc) > 1);
}

int
dedup_runs_reap (struct dedup_disk *d)
{
  size_t i, nr = 0;
  int r = 0;

  if (dedup_config_owed (d))
    return 0;                   /* law 9 */
  for (i = 0; i < d->nr_dropped; i++) {
    const struct dedup_dropped *p = &d->dropped[i];

    if (r < 0 || is_read (p)) {
      d->dropped[nr++] = *p;
      continue;
    }
    if (!mutation (MUTATION_LAW_9_RUN))
      r = dedup_index_area_free (d, p->host_off, p->size_bytes);
    dedup_dropped_put (p);
  }
  d->nr_dropped = nr;
  return r;
}

/* --- Commit -------------------------------------------------------------- */

/* The writer's fences and filter, so that they need not be read. */
static void
adopt (struct dedup_incarnations *set, const struct dedup_segment_desc *new,
       struct dedup_segment_meta **meta)
{
  size_t i;

  for (i = 0; new != NULL && i < set->nr_segments; i++)
    if (dedup_segment_desc (set->segments[i])->id == new->id) {
      dedup_segment_adopt (set->segments[i], *meta);
      *meta = NULL;
    }
}

static bool
has_input (const struct dedup_config *c, uint32_t merge)
{
  size_t i;

  for (i = 0; i < c->nr_segments; i++)
    if (c->segments[i].merge == merge && !c->segments[i].output)
      return true;
  return false;
}

void
dedup_runs_settle (struct dedup_config *c)
{
  size_t i;

  for (i = 0; i < c->nr_segments; i++)
    if (c->segments[i].output && !has_input (c, c->segments[i].merge)) {
      c->segments[i].merge = 0;
      c->segments[i].output = false;
    }
}

int
dedup_runs_commit (struct dedup_disk *d, const struct dedup_config *before,
                   const struct dedup_segment_desc *new,
                   struct dedup_segment_meta *meta, bool frozen_done)
{
  struct dedup_incarnations *set;
  int r;

  dedup_runs_settle (d->config);
  if (d->config->max_incarnations == 0)
    drop_limbo (d);
  r = dedup_index_prepare (d, &set);
  if (r < 0) {
    *d->config = *before;
    dedup_runs_undrop (d);
    dedup_segment_meta_free (meta);
    return r;
  }
  adopt (set, new, &meta);
  dedup_segment_meta_free (meta);
  return dedup_config_commit (d, set, frozen_done);
}

/* --- Freeze -------------------------------------------------------------- */

/* Where in the log store, and the first word to sort by. */
struct key {
  uint64_t word0;
  uint32_t slot;
};

#define RADIX_BITS 11
#define RADIX (1u << RADIX_BITS)
#define PREFIX_SHIFT 31          /* 3 digits of 11 bits: the upper 33 bits */

static void
sort_by_digit (const struct key *from, struct key *to, size_t nr,
               unsigned shift)
{
  size_t start[RADIX] = { 0 }, i, sum = 0, n;

  for (i = 0; i < nr; i++)
    start[from[i].word0 >> shift & (RADIX - 1)]++;
  for (i = 0; i < RADIX; i++) {
    n = start[i];
    start[i] = sum;
    sum += n;
  }
  for (i = 0; i < nr; i++)
    to[start[from[i].word0 >> shift & (RADIX - 1)]++] = from[i];
}

static bool
hash_below (const struct dedup_log_store *ls, const struct key *a,
            const struct key *b)
{
  struct dedup_hash x, y;
  uint64_t v;

  if (a->word0 != b->word0)
    return a->word0 < b->word0;
  dedup_log_store_slot (ls, a->slot, &x, &v);
  dedup_log_store_slot (ls, b->slot, &y, &v);
  return memcmp (&x, &y, sizeof x) < 0;
}

/* After the digits were sorted, few neighbours are out of order. */
static void
sort_rest (const struct dedup_log_store *ls, struct key *v, size_t nr)
{
  size_t i, k;

  for (i = 1; i < nr; i++)
    for (k = i; k > 0 && hash_below (ls, &v[k], &v[k - 1]); k--) {
      const struct key t = v[k];

      v[k] = v[k - 1];
      v[k - 1] = t;
    }
}

/* The entries of LS in hash order; *KEYS is the caller's. */
static int
sort_log_store (const struct dedup_log_store *ls, struct key **keys,
                size_t *nr)
{
  const size_t slots = (size_t) DEDUP_BUCKET_SLOTS <<
    dedup_log_store_order (ls);
  const size_t max = dedup_log_store_count (ls);
  CLEANUP_FREE struct key *a = calloc (max + 1, sizeof *a);
  CLEANUP_FREE struct key *b = calloc (max + 1, sizeof *b);
  struct dedup_hash h;
  uint64_t at;
  size_t i, n = 0;

  if (a == NULL || b == NULL)
    return -ENOMEM;
  for (i = 0; i < slots; i++)
    if (dedup_log_store_slot (ls, i, &h, &at))
      a[n++] = (struct key) { dedup_hash_word (&h, 0), (uint32_t) i };
  assert (n == max);
  sort_by_digit (a, b, n, PREFIX_SHIFT);
  sort_by_digit (b, a, n, PREFIX_SHIFT + RADIX_BITS);
  sort_by_digit (a, b, n, PREFIX_SHIFT + 2 * RADIX_BITS);
  sort_rest (ls, b, n);
  *keys = b;
  *nr = n;
  b = NULL;
  return 0;
}

static int
write_log_store (struct dedup_disk *d, const struct dedup_log_store *ls,
                 struct dedup_segment_desc *desc,
                 struct dedup_segment_meta **meta)
{
  CLEANUP_FREE struct key *keys = NULL;
  struct dedup_segment_writer *w;
  struct dedup_hash h;
  uint64_t at;
  size_t i, nr;
  int r;

  r = sort_log_store (ls, &keys, &nr);
  if (r < 0)
    return r;
  r = dedup_segment_writer_new (dedup_index_io (d), d->config->store_id, desc,
                                nr, &d->stop, &w);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++) {
    dedup_log_store_slot (ls, keys[i].slot, &h, &at);
    r = dedup_segment_writer_add (w, &h, at);
  }
  if (r == 0)
    r = dedup_segment_writer_finish (w, desc, meta);
  dedup_segment_writer_free (w);
  return r;
}

static int
write_run (struct dedup_disk *d, const struct dedup_log_store *ls,
           struct dedup_segment_desc *desc, struct dedup_segment_meta **meta)
{
  const size_t nr = dedup_log_store_count (ls);
  int r;

  desc->bits = (uint8_t) dedup_run_bits (0, dedup_config_entries (d->config) +
                                         nr, nr);
  desc->size_bytes = round_up_pow2 (dedup_segment_size (nr, desc->bits),
                                    d->cluster_size);
  r = dedup_index_area_alloc (d, desc->size_bytes, &desc->host_off);
  if (r < 0)
    return r;
  r = write_log_store (d, ls, desc, meta);
  if (r == 0 && !mutation (MUTATION_LAW_8_NO_SYNC)) {
    r = dedup_index_sync (d, desc->host_off);
    if (r < 0)
      dedup_segment_meta_free (*meta);
  }
  if (r < 0)
    dedup_index_area_give_up (d, desc->host_off, desc->size_bytes);
  return r;
}

bool
dedup_runs_full (const struct dedup_config *c)
{
  return c->nr_segments >= DEDUP_MAX_SEGMENTS - DEDUP_SPARE_SEGMENTS;
}

int
dedup_run_freeze (struct dedup_disk *d, const struct dedup_log_store *ls)
{
  struct dedup_config *c = d->config;
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  struct dedup_segment_desc desc = { .hi = UINT32_MAX };
  struct dedup_segment_meta *meta = NULL;
  int r;

  if (before == NULL)
    return -ENOMEM;
  if (dedup_log_store_count (ls) == 0) {
    *before = *c;
    return dedup_runs_commit (d, before, NULL, NULL, true);
  }
  while (dedup_runs_full (c)) {
    r = dedup_merge_step_now (d);        /* merges could not keep up */
    if (r == -ENOSPC && d->index_memory)
      r = dedup_window_shift (d);
    if (r < 0)
      return r;
  }
  do {                                   /* the id is used: pages have it */
    desc.id = desc.age = c->next_incarnation_id++;
    desc.host_off = 0;
    r = write_run (d, ls, &desc, &meta);
  } while (r < 0 && r != -EINTR && dedup_store_file_lost (d, desc.host_off));
  if (r < 0)
    return r;
  *before = *c;
  r = dedup_runs_list (c, &desc);
  assert (r == 0);
  dedup_window_drop (d);
  r = dedup_runs_commit (d, before, &desc, meta, true);
  if (r < 0)
    return r;
  dedup_window_moved (d);
  return dedup_runs_reap (d);
}
