/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the fields of a configuration (docs/on-disk.md 3.1).
 *
 * Promises: every area of a configuration that passed is aligned, below 2^56
 * in its file and apart from all others; every count is within dedup-limits.h;
 * every sequence number, generation and id is so small that sums of two can't
 * overflow.
 *
 * No state, no threads.  Left out: whether areas are inside the file
 * (config-slot.c), anchored, and hold what they should.
 */
#include "config-check.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "checked.h"

/* The bound for generations, sequence numbers and ids: more than are ever
 * written. */
#define MAX_COUNTER (UINT64_C (1) << 62)

static int
check_scalars (const struct dedup_config *c, uint64_t cluster_size,
               struct fault *f)
{
  if (c->store_id == 0)
    return wrong (f, "configuration: store id is 0");
  if (c->generation == 0 || c->generation >= MAX_COUNTER)
    return wrong (f, "configuration: generation is out of range");
  if (c->index.order < DEDUP_MIN_ORDER || c->index.order > DEDUP_MAX_ORDER)
    return wrong (f, "configuration: order %" PRIu32 " of log stores is out "
                  "of range", c->index.order);
  if (c->max_journal_areas < 2 ||
      c->max_journal_areas > DEDUP_MAX_JOURNAL_AREAS)
    return wrong (f, "configuration: maximum number of journal areas %"
                  PRIu32 " is out of range", c->max_journal_areas);
  if (c->journal_area_size == 0 || c->journal_area_size > DEDUP_MAX_AREA ||
      c->journal_area_size % DEDUP_AREA_UNIT != 0 ||
      c->journal_area_size % cluster_size != 0)
    return wrong (f, "configuration: size %" PRIu32 " of new journal areas "
                  "is no multiple of 512 KiB and the cluster size, or more "
                  "than 64 MiB", c->journal_area_size);
  return 0;
}

static uint64_t
in_its_file (uint64_t host_off)
{
  return host_off & ~DEDUP_IN_STORE_FILE;
}

/* Checks the place of one area of any kind, at its offset in its file. */
static int
check_place (const char *what, uint32_t i, uint64_t host_off,
             uint64_t size_bytes, uint64_t cluster_size, struct fault *f)
{
  if (host_off < cluster_size || host_off >= MAX_HOST_OFF ||
      host_off % cluster_size != 0)
    return wrong (f, "configuration: %s %" PRIu32 ": host offset 0x%" PRIx64
                  " is out of range or not aligned", what, i, host_off);
  if (size_bytes == 0 || size_bytes > MAX_HOST_OFF - host_off ||
      size_bytes % cluster_size != 0)
    return wrong (f, "configuration: %s %" PRIu32 ": size %" PRIu64
                  " is out of range or not aligned", what, i, size_bytes);
  return 0;
}

/* Checks the place of an area that may lie in the store file. */
static int
check_index_place (const struct dedup_config *c, const char *what, uint32_t i,
                   uint64_t host_off, uint64_t size_bytes,
                   uint64_t cluster_size, struct fault *f)
{
  if (dedup_in_store_file (host_off) && c->store_session == 0)
    return wrong (f, "configuration: %s %" PRIu32 " lies in a store file, but "
                  "there is none", what, i);
  return check_place (what, i, in_its_file (host_off), size_bytes,
                      cluster_size, f);
}

static uint64_t
area_bytes (const struct dedup_journal_area *a)
{
  return (uint64_t) a->nr_blocks * DEDUP_BLOCK_SIZE;
}

static int
check_journal_areas (const struct dedup_config *c, uint64_t cluster_size,
                     struct fault *f)
{
  uint64_t next = c->areas[0].first_seq;
  uint32_t i;
  int r;

  if (next < 1)
    return wrong (f, "configuration: journal area 0: first sequence number "
                  "is 0");
  for (i = 0; i < c->nr_areas; ++i) {
    const struct dedup_journal_area *a = &c->areas[i];

    r = check_place ("journal area", i, a->host_off, area_bytes (a),
                     cluster_size, f);
    if (r < 0)
      return r;
    if (area_bytes (a) % DEDUP_AREA_UNIT != 0 ||
        area_bytes (a) > DEDUP_MAX_AREA)
      return wrong (f, "configuration: journal area %" PRIu32 ": number of "
                    "blocks %" PRIu32 " is no multiple of 512 KiB, or more "
                    "than 64 MiB", i, a->nr_blocks);
    if (a->first_seq != next || next >= MAX_COUNTER)
      return wrong (f, "configuration: journal area %" PRIu32 ": first "
                    "sequence number %" PRIu64 " does not follow", i,
                    a->first_seq);
    next += a->nr_blocks;
  }
  return 0;
}

/* Checks that the journal still has the blocks that are needed (law 7), and
 * that no number lies behind its end. */
static int
check_sequence (const struct dedup_config *c, struct fault *f)
{
  const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];
  const uint64_t first = c->areas[0].first_seq;
  const uint64_t end = last->first_seq + last->nr_blocks;

  if (c->checkpoint < first || c->checkpoint > end)
    return wrong (f, "configuration: checkpoint %" PRIu64 " is outside the "
                  "journal", c->checkpoint);
  if (c->index_start < first || c->index_start > end)
    return wrong (f, "configuration: index start %" PRIu64 " is outside the "
                  "journal", c->index_start);
  if (c->epoch_start < 1 || c->epoch_start > end)
    return wrong (f, "configuration: epoch start %" PRIu64 " is out of "
                  "range", c->epoch_start);
  return 0;
}

static int
check_incarnation (const struct dedup_config *c, uint32_t i,
                   uint64_t cluster_size, struct fault *f)
{
  const struct dedup_incarnation_desc *d = &c->index.incarnations[i];
  int r;

  r = check_index_place (c, "incarnation", i, d->host_off, d->size_bytes,
                         cluster_size, f);
  if (r < 0)
    return r;
  if (d->order < DEDUP_MIN_ORDER || d->order > DEDUP_MAX_ORDER)
    return wrong (f, "configuration: incarnation %" PRIu32 ": order %" PRIu32
                  " is out of range", i, d->order);
  if (d->size_bytes < dedup_incarnation_size (d->order))
    return wrong (f, "configuration: incarnation %" PRIu32 ": size %" PRIu64
                  " is too small for order %" PRIu32, i, d->size_bytes,
                  d->order);
  if (d->nr_entries > (uint32_t) DEDUP_BUCKET_SLOTS << d->order ||
      d->nr_deleted > d->nr_entries)
    return wrong (f, "configuration: incarnation %" PRIu32 ": entries %"
                  PRIu32 ", tombstones %" PRIu32 " are out of range", i,
                  d->nr_entries, d->nr_deleted);
  return 0;
}

static int
check_incarnations (const struct dedup_config *c, uint64_t cluster_size,
                    struct fault *f)
{
  const struct dedup_incarnation_desc *v = c->index.incarnations;
  uint32_t i;
  int r;

  for (i = 0; i < c->index.nr_incarnations; ++i) {
    r = check_incarnation (c, i, cluster_size, f);
    if (r < 0)
      return r;
    if (i > 0 && v[i].id <= v[i - 1].id)
      return wrong (f, "configuration: incarnation %" PRIu32 ": id %" PRIu64
                    " is not above the one before", i, v[i].id);
  }
  if (c->index.next_id >= MAX_COUNTER ||
      (i > 0 && c->index.next_id <= v[i - 1].id))
    return wrong (f, "configuration: next incarnation id %" PRIu64
                  " is out of range", c->index.next_id);
  return 0;
}

static int
check_limbo (const struct dedup_config *c, uint64_t cluster_size,
             struct fault *f)
{
  uint32_t i;
  int r;

  for (i = 0; i < c->index.nr_limbo; ++i) {
    r = check_index_place (c, "limbo area", i, c->index.limbo[i].host_off,
                           c->index.limbo[i].size_bytes, cluster_size, f);
    if (r < 0)
      return r;
  }
  return 0;
}

static int
check_segment (const struct dedup_config *c, uint32_t i,
               uint64_t cluster_size, struct fault *f)
{
  const struct dedup_segment_desc *s = &c->index.segments[i];
  int r;

  r = check_index_place (c, "segment", i, s->host_off, s->size_bytes,
                         cluster_size, f);
  if (r < 0)
    return r;
  if (s->size_bytes < dedup_segment_size (s->nr_entries, 0))
    return wrong (f, "configuration: segment %" PRIu32 ": size %" PRIu64
                  " is too small for %" PRIu32 " entries", i, s->size_bytes,
                  s->nr_entries);
  if (s->nr_deleted > s->nr_entries || s->lo > s->hi ||
      s->level > DEDUP_MAX_LEVEL || s->bits > DEDUP_FILTER_MAX_BITS)
    return wrong (f, "configuration: segment %" PRIu32 ": tombstones, range, "
                  "level or bits are out of range", i);
  return 0;
}

/* Returns whether A comes before B: by age, level and range, and those of one
 * run do not overlap. */
static bool
segments_in_order (const struct dedup_segment_desc *a,
                   const struct dedup_segment_desc *b)
{
  if (a->age != b->age)
    return a->age < b->age;
  if (a->level != b->level)
    return a->level < b->level;
  return a->hi < b->lo;
}

/* Returns whether AGE is the id of an incarnation: no run may have that age,
 * because the run that the incarnation becomes will have it.  *FROM is where
 * the search begins; ages come in order. */
static bool
is_incarnation (const struct dedup_index_manifest *m, uint64_t age,
                uint32_t *from)
{
  while (*from < m->nr_incarnations && m->incarnations[*from].id < age)
    ++*from;
  return *from < m->nr_incarnations && m->incarnations[*from].id == age;
}

static int
check_segments (const struct dedup_config *c, uint64_t cluster_size,
                struct fault *f)
{
  uint32_t i, older = 0;
  int r;

  for (i = 0; i < c->index.nr_segments; ++i) {
    const struct dedup_segment_desc *s = &c->index.segments[i];

    r = check_segment (c, i, cluster_size, f);
    if (r < 0)
      return r;
    if (i > 0 && !segments_in_order (s - 1, s))
      return wrong (f, "configuration: segment %" PRIu32 " is out of order",
                    i);
    if (s->id >= c->index.next_id || s->age >= c->index.next_id ||
        is_incarnation (&c->index, s->age, &older))
      return wrong (f, "configuration: segment %" PRIu32 ": id %" PRIu64
                    " or age %" PRIu64 " is out of range", i, s->id, s->age);
  }
  return 0;
}

/* Checks the cuts: in order, and below the epoch that began when they were
 * made. */
static int
check_cuts (const struct dedup_config *c, struct fault *f)
{
  uint64_t least = 1;
  uint32_t i;

  for (i = 0; i < c->nr_cuts; ++i) {
    const struct dedup_cut *x = &c->cuts[i];

    if (x->seq < least || x->seq >= c->epoch_start ||
        x->len < DEDUP_BLOCK_HEADER || x->len > DEDUP_BLOCK_SIZE)
      return wrong (f, "configuration: cut block %" PRIu32 ": number %" PRIu64
                    " or length %" PRIu32 " is out of range", i, x->seq,
                    x->len);
    least = x->seq + 1;
  }
  return 0;
}

/* --- Areas apart from each other ---------------------------------------- */

#define MAX_PLACES (DEDUP_MAX_JOURNAL_AREAS + DEDUP_MAX_INCARNATIONS + \
                    DEDUP_MAX_LIMBO + DEDUP_MAX_SEGMENTS)

struct place {
  uint64_t host_off, end;
};

static size_t
nr_places (const struct dedup_config *c)
{
  return (size_t) c->nr_areas + c->index.nr_incarnations + c->index.nr_limbo +
    c->index.nr_segments;
}

static struct place
place_of (uint64_t host_off, uint64_t size_bytes)
{
  return (struct place) { host_off, host_off + size_bytes };
}

/* Returns area I of all that C lists. */
static struct place
place_at (const struct dedup_config *c, size_t i)
{
  if (i < c->nr_areas)
    return place_of (c->areas[i].host_off, area_bytes (&c->areas[i]));
  i -= c->nr_areas;
  if (i < c->index.nr_incarnations)
    return place_of (c->index.incarnations[i].host_off,
                     c->index.incarnations[i].size_bytes);
  i -= c->index.nr_incarnations;
  if (i < c->index.nr_segments)
    return place_of (c->index.segments[i].host_off,
                     c->index.segments[i].size_bytes);
  i -= c->index.nr_segments;
  return place_of (c->index.limbo[i].host_off, c->index.limbo[i].size_bytes);
}

static int
compare_places (const void *a, const void *b)
{
  const struct place *x = a, *y = b;

  return x->host_off < y->host_off ? -1 : x->host_off > y->host_off;
}

static int
check_apart (const struct dedup_config *c, struct fault *f)
{
  CLEANUP_FREE struct place *v = malloc (MAX_PLACES * sizeof *v);
  size_t n = nr_places (c), i;

  if (v == NULL)
    return -ENOMEM;
  for (i = 0; i < n; ++i)
    v[i] = place_at (c, i);
  qsort (v, n, sizeof *v, compare_places);
  for (i = 1; i < n; ++i)
    if (v[i].host_off < v[i - 1].end)
      return wrong (f, "configuration: areas at 0x%" PRIx64 " and 0x%" PRIx64
                    " overlap", v[i - 1].host_off, v[i].host_off);
  return 0;
}

int
dedup_config_check (const struct dedup_config *c, uint64_t cluster_size,
                    struct fault *f)
{
  int r;

  assert (is_pow2 (cluster_size) && cluster_size <= MAX_CLUSTER);
  if ((r = check_scalars (c, cluster_size, f)) < 0 ||
      (r = check_journal_areas (c, cluster_size, f)) < 0 ||
      (r = check_sequence (c, f)) < 0 ||
      (r = check_incarnations (c, cluster_size, f)) < 0 ||
      (r = check_limbo (c, cluster_size, f)) < 0 ||
      (r = check_segments (c, cluster_size, f)) < 0 ||
      (r = check_cuts (c, f)) < 0)
    return r;
  return check_apart (c, f);
}

int
dedup_config_check_file (const struct dedup_config *c,
                         const struct dedup_ext *ext, uint64_t file_end,
                         struct fault *f)
{
  const uint64_t config_end = ext->config_off + ext->config_size;
  size_t n = nr_places (c), i;

  for (i = 0; i < n; ++i) {
    const struct place p = place_at (c, i);

    if (dedup_in_store_file (p.host_off))
      continue;                 /* which may be lost at any time */
    if (p.end > file_end)
      return wrong (f, "configuration: area at 0x%" PRIx64 " reaches past "
                    "the end of the file", p.host_off);
    if (p.host_off < config_end && ext->config_off < p.end)
      return wrong (f, "configuration: area at 0x%" PRIx64 " overlaps the "
                    "configuration area", p.host_off);
  }
  return 0;
}
