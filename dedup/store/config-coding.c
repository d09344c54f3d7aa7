/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes the configuration (docs/on-disk.md 3.1).  config-check.c
 * knows what the fields may be, config-slot.c where the bytes are.
 *
 * Promises: a decoded configuration is valid by construction, so it need not be
 * checked again; decode after encode gives the same fields.  Bytes behind the
 * length are not looked at: a torn write may have left them.
 *
 * No state, no threads.
 */
#include "config-check.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "wire.h"

#define CONFIG_MAGIC UINT64_C (0x44445550434f4e46)   /* "DDUPCONF" */

/* The version is the highest that the content needs: 2 with segments, 3 with a
 * store file, 4 with lookups that were counted, 5 with disks, 6 where data is or was
 * packed, else 1. */
#define VERSION_SEGMENTS 2
#define VERSION_STORE_FILE 3
#define VERSION_LOOKUPS 4
#define VERSION_DISKS 5
#define VERSION_PACKED 6

struct wire_config {
  be64 magic;
  be32 version;
  be32 length;
  be64 store_id;
  be64 generation;
  be32 epoch;
  be32 block_size;
  be64 epoch_start;
  be64 checkpoint;
  be64 index_start;
  be32 order;
  be32 max_incarnations;
  be32 nr_areas;
  be32 nr_incarnations;
  be32 nr_limbo;
  be32 flags;
  be64 next_incarnation_id;
  be32 max_journal_areas;
  be32 journal_area_size;
  be64 checksum;
  uint8_t hash_key[DEDUP_HASH_KEY_SIZE];
};

struct wire_area {
  be64 host_off;
  be64 first_seq;
  be32 nr_blocks;
  be32 zero;
};

struct wire_incarnation {
  be64 id;
  be64 host_off;
  be64 size_bytes;
  be32 order;
  be32 nr_entries;
  be32 nr_deleted;
  be32 zero;
};

struct wire_limbo {
  be64 host_off;
  be64 size_bytes;
};

/* Stands between limbo areas and segments, from version 2 on. */
struct wire_count {
  be32 nr_segments;
  be32 zero;
};

struct wire_segment {
  be64 id;
  be64 age;
  be64 host_off;
  be64 size_bytes;
  be32 lo;
  be32 hi;
  be32 nr_entries;
  be32 nr_deleted;
  be32 merge;
  uint8_t level;
  uint8_t bits;
  uint8_t output;
  uint8_t zero;
};

/* Stands behind the segments, from version 3 on. */
struct wire_store_file {
  be64 session;
  be64 zero;
};

/* Stands behind that, from version 4 on. */
struct wire_lookups {
  be64 guessed;
  be64 lookups;
  be64 hits;
  be64 hit_reads;
  be64 miss_reads;
  be64 false_positives;
};

/* Stands behind that, in version 6. */
struct wire_packed {
  be32 flags;
  be32 zero;
};
#define PACKED_DISKS 1u         /* what version 5 says by its number */
#define PACKED_COMPRESS 2u

struct wire_cut {
  be64 seq;
  be32 len;
  be32 zero;
};

WIRE_FIELD_AT (struct wire_config, version, 8);
WIRE_FIELD_AT (struct wire_config, length, 12);
WIRE_FIELD_AT (struct wire_config, store_id, 16);
WIRE_FIELD_AT (struct wire_config, generation, 24);
WIRE_FIELD_AT (struct wire_config, epoch, 32);
WIRE_FIELD_AT (struct wire_config, block_size, 36);
WIRE_FIELD_AT (struct wire_config, epoch_start, 40);
WIRE_FIELD_AT (struct wire_config, checkpoint, 48);
WIRE_FIELD_AT (struct wire_config, index_start, 56);
WIRE_FIELD_AT (struct wire_config, order, 64);
WIRE_FIELD_AT (struct wire_config, max_incarnations, 68);
WIRE_FIELD_AT (struct wire_config, nr_areas, 72);
WIRE_FIELD_AT (struct wire_config, nr_incarnations, 76);
WIRE_FIELD_AT (struct wire_config, nr_limbo, 80);
WIRE_FIELD_AT (struct wire_config, flags, 84);
WIRE_FIELD_AT (struct wire_config, next_incarnation_id, 88);
WIRE_FIELD_AT (struct wire_config, max_journal_areas, 96);
WIRE_FIELD_AT (struct wire_config, journal_area_size, 100);
WIRE_FIELD_AT (struct wire_config, checksum, 104);
WIRE_FIELD_AT (struct wire_config, hash_key, 112);

WIRE_FIELD_AT (struct wire_area, first_seq, 8);
WIRE_FIELD_AT (struct wire_area, nr_blocks, 16);
WIRE_FIELD_AT (struct wire_area, zero, 20);

WIRE_FIELD_AT (struct wire_incarnation, host_off, 8);
WIRE_FIELD_AT (struct wire_incarnation, size_bytes, 16);
WIRE_FIELD_AT (struct wire_incarnation, order, 24);
WIRE_FIELD_AT (struct wire_incarnation, nr_entries, 28);
WIRE_FIELD_AT (struct wire_incarnation, nr_deleted, 32);
WIRE_FIELD_AT (struct wire_incarnation, zero, 36);

WIRE_FIELD_AT (struct wire_limbo, size_bytes, 8);

WIRE_FIELD_AT (struct wire_segment, age, 8);
WIRE_FIELD_AT (struct wire_segment, host_off, 16);
WIRE_FIELD_AT (struct wire_segment, size_bytes, 24);
WIRE_FIELD_AT (struct wire_segment, lo, 32);
WIRE_FIELD_AT (struct wire_segment, hi, 36);
WIRE_FIELD_AT (struct wire_segment, nr_entries, 40);
WIRE_FIELD_AT (struct wire_segment, nr_deleted, 44);
WIRE_FIELD_AT (struct wire_segment, merge, 48);
WIRE_FIELD_AT (struct wire_segment, level, 52);
WIRE_FIELD_AT (struct wire_segment, bits, 53);
WIRE_FIELD_AT (struct wire_segment, output, 54);
WIRE_FIELD_AT (struct wire_segment, zero, 55);

WIRE_FIELD_AT (struct wire_lookups, false_positives, 40);

WIRE_FIELD_AT (struct wire_cut, len, 8);
WIRE_FIELD_AT (struct wire_cut, zero, 12);

_Static_assert (sizeof (struct wire_config) == 128, "configuration");
_Static_assert (sizeof (struct wire_area) == 24, "journal area");
_Static_assert (sizeof (struct wire_cut) == 16, "cut block");
_Static_assert (sizeof (struct wire_segment) == 56, "segment");
_Static_assert (sizeof (struct wire_store_file) == 16, "store file");
_Static_assert (sizeof (struct wire_lookups) == 48, "lookups");
_Static_assert (sizeof (struct wire_incarnation) == 40, "incarnation");
_Static_assert (sizeof (struct wire_limbo) == 16, "limbo area");

_Static_assert (128 + DEDUP_MAX_JOURNAL_AREAS * 24 +
                DEDUP_MAX_INCARNATIONS * 40 + DEDUP_MAX_LIMBO * 16 <=
                DEDUP_CONFIG_SLOT, "a full configuration fits its slot");

_Static_assert (128 + DEDUP_MAX_JOURNAL_AREAS * 24 +
                DEDUP_MAX_INCARNATIONS * 40 + DEDUP_MAX_LIMBO * 16 +
                8 + DEDUP_MAX_SEGMENTS * 56 + 16 + 48 + DEDUP_MAX_CUTS * 16 <=
                DEDUP_CONFIG_SLOT, "so does one of versions 4 and 5");

_Static_assert (128 + DEDUP_MAX_JOURNAL_AREAS * 24 +
                DEDUP_MAX_INCARNATIONS * 40 + DEDUP_MAX_LIMBO * 16 +
                8 + DEDUP_MAX_SEGMENTS * 56 + 16 + 48 + 8 + DEDUP_MAX_CUTS * 16 <=
                DEDUP_CONFIG_SLOT, "and one of version 6");

/* --- Encoding ----------------------------------------------------------- */

/* Returns the length of what every version has before the cut blocks. */
static size_t
fixed_length (uint32_t nr_areas, uint32_t nr_incarnations, uint32_t nr_limbo)
{
  return sizeof (struct wire_config) +
    nr_areas * sizeof (struct wire_area) +
    nr_incarnations * sizeof (struct wire_incarnation) +
    nr_limbo * sizeof (struct wire_limbo);
}

/* Returns the length of what versions 2 to 6 add to that. */
static size_t
added_length (uint32_t version, uint32_t nr_segments)
{
  return (version >= VERSION_SEGMENTS ? sizeof (struct wire_count) : 0) +
    nr_segments * sizeof (struct wire_segment) +
    (version >= VERSION_STORE_FILE ? sizeof (struct wire_store_file) : 0) +
    (version >= VERSION_LOOKUPS ? sizeof (struct wire_lookups) : 0) +
    (version >= VERSION_PACKED ? sizeof (struct wire_packed) : 0);
}

static uint32_t
config_version (const struct dedup_config *c)
{
  const struct dedup_lookups none = { 0 };

  return c->may_pack ? VERSION_PACKED
    : c->has_disks ? VERSION_DISKS
    : memcmp (&c->lookups, &none, sizeof none) != 0 ? VERSION_LOOKUPS
    : c->store_session ? VERSION_STORE_FILE
    : c->index.nr_segments ? VERSION_SEGMENTS : 1;
}

size_t
dedup_config_length (const struct dedup_config *c)
{
  return fixed_length (c->nr_areas, c->index.nr_incarnations,
                       c->index.nr_limbo) +
    added_length (config_version (c), c->index.nr_segments) +
    c->nr_cuts * sizeof (struct wire_cut);
}

static struct wire_config
encode_fields (const struct dedup_config *c, size_t length)
{
  struct wire_config w;

  memset (&w, 0, sizeof w);
  w.magic = be64_make (CONFIG_MAGIC);
  w.version = be32_make (config_version (c));
  w.length = be32_make ((uint32_t) length);
  w.store_id = be64_make (c->store_id);
  w.generation = be64_make (c->generation);
  w.epoch = be32_make (c->epoch);
  w.block_size = be32_make (DEDUP_BLOCK_SIZE);
  w.epoch_start = be64_make (c->epoch_start);
  w.checkpoint = be64_make (c->checkpoint);
  w.index_start = be64_make (c->index_start);
  w.order = be32_make (c->index.order);
  w.max_incarnations = be32_make (c->index.max_incarnations);
  w.nr_areas = be32_make (c->nr_areas);
  w.nr_incarnations = be32_make (c->index.nr_incarnations);
  w.nr_limbo = be32_make (c->index.nr_limbo);
  w.flags = be32_make (c->flags);
  w.next_incarnation_id = be64_make (c->index.next_id);
  w.max_journal_areas = be32_make (c->max_journal_areas);
  w.journal_area_size = be32_make (c->journal_area_size);
  memcpy (w.hash_key, c->hash_key, sizeof w.hash_key);
  return w;
}

static struct wire_area
encode_area (const struct dedup_journal_area *a)
{
  return (struct wire_area) {
    .host_off = be64_make (a->host_off),
    .first_seq = be64_make (a->first_seq),
    .nr_blocks = be32_make (a->nr_blocks),
  };
}

static struct wire_incarnation
encode_incarnation (const struct dedup_incarnation_desc *d)
{
  return (struct wire_incarnation) {
    .id = be64_make (d->id),
    .host_off = be64_make (d->host_off),
    .size_bytes = be64_make (d->size_bytes),
    .order = be32_make (d->order),
    .nr_entries = be32_make (d->nr_entries),
    .nr_deleted = be32_make (d->nr_deleted),
  };
}

static struct wire_limbo
encode_limbo (const struct dedup_limbo_area *l)
{
  return (struct wire_limbo) {
    .host_off = be64_make (l->host_off),
    .size_bytes = be64_make (l->size_bytes),
  };
}

static struct wire_cut
encode_cut (const struct dedup_cut *x)
{
  return (struct wire_cut) {
    .seq = be64_make (x->seq),
    .len = be32_make (x->len),
  };
}

static struct wire_segment
encode_segment (const struct dedup_segment_desc *s)
{
  return (struct wire_segment) {
    .id = be64_make (s->id), .age = be64_make (s->age),
    .host_off = be64_make (s->host_off),
    .size_bytes = be64_make (s->size_bytes),
    .lo = be32_make (s->lo), .hi = be32_make (s->hi),
    .nr_entries = be32_make (s->nr_entries),
    .nr_deleted = be32_make (s->nr_deleted),
    .merge = be32_make (s->merge), .level = s->level, .bits = s->bits,
    .output = s->output,
  };
}

static uint8_t *
encode_segments (const struct dedup_config *c, uint8_t *p)
{
  const uint32_t nr = c->index.nr_segments;
  const struct wire_count count = { .nr_segments = be32_make (nr) };
  uint32_t i;

  if (config_version (c) < VERSION_SEGMENTS)
    return p;
  memcpy (p, &count, sizeof count);
  p += sizeof count;
  for (i = 0; i < nr; ++i) {
    const struct wire_segment w = encode_segment (&c->index.segments[i]);

    memcpy (p, &w, sizeof w);
    p += sizeof w;
  }
  return p;
}

static uint8_t *
encode_store_file (const struct dedup_config *c, uint8_t *p)
{
  const struct wire_store_file w = {
    .session = be64_make (c->store_session) };

  if (config_version (c) < VERSION_STORE_FILE)
    return p;
  memcpy (p, &w, sizeof w);
  return p + sizeof w;
}

static uint8_t *
encode_lookups (const struct dedup_config *c, uint8_t *p)
{
  const struct dedup_lookups *l = &c->lookups;
  const struct wire_lookups w = {
    .guessed = be64_make (l->guessed), .lookups = be64_make (l->lookups),
    .hits = be64_make (l->hits), .hit_reads = be64_make (l->hit_reads),
    .miss_reads = be64_make (l->miss_reads),
    .false_positives = be64_make (l->false_positives),
  };

  if (config_version (c) < VERSION_LOOKUPS)
    return p;
  memcpy (p, &w, sizeof w);
  return p + sizeof w;
}

static uint8_t *
encode_packed (const struct dedup_config *c, uint8_t *p)
{
  const struct wire_packed w = {
    .flags = be32_make ((c->has_disks ? PACKED_DISKS : 0) |
                        (c->compress ? PACKED_COMPRESS : 0)) };

  if (config_version (c) < VERSION_PACKED)
    return p;
  memcpy (p, &w, sizeof w);
  return p + sizeof w;
}

static void
encode_arrays (const struct dedup_config *c, uint8_t *p)
{
  uint32_t i;

  for (i = 0; i < c->nr_areas; ++i) {
    const struct wire_area w = encode_area (&c->areas[i]);

    memcpy (p, &w, sizeof w);
    p += sizeof w;
  }
  for (i = 0; i < c->index.nr_incarnations; ++i) {
    const struct wire_incarnation w =
      encode_incarnation (&c->index.incarnations[i]);

    memcpy (p, &w, sizeof w);
    p += sizeof w;
  }
  for (i = 0; i < c->index.nr_limbo; ++i) {
    const struct wire_limbo w = encode_limbo (&c->index.limbo[i]);

    memcpy (p, &w, sizeof w);
    p += sizeof w;
  }
  p = encode_lookups (c, encode_store_file (c, encode_segments (c, p)));
  p = encode_packed (c, p);
  for (i = 0; i < c->nr_cuts; ++i) {
    const struct wire_cut w = encode_cut (&c->cuts[i]);

    memcpy (p, &w, sizeof w);
    p += sizeof w;
  }
}

size_t
dedup_config_encode (const struct dedup_config *c,
                     uint8_t buf[DEDUP_CONFIG_SLOT])
{
  struct wire_config w;
  size_t length;

  assert (c->nr_areas <= DEDUP_MAX_JOURNAL_AREAS);
  assert (c->index.nr_incarnations <= DEDUP_MAX_INCARNATIONS);
  assert (c->index.nr_limbo <= DEDUP_MAX_LIMBO);
  assert (c->nr_cuts <= DEDUP_MAX_CUTS);
  assert (c->index.nr_segments <= DEDUP_MAX_SEGMENTS);
  length = dedup_config_length (c);
  w = encode_fields (c, length);
  memset (buf, 0, DEDUP_CONFIG_SLOT);
  memcpy (buf, &w, sizeof w);
  encode_arrays (c, buf + sizeof w);
  w.checksum = be64_make (dedup_checksum (buf, length));
  memcpy (buf, &w, sizeof w);
  return length;
}

/* --- Decoding ----------------------------------------------------------- */

static int
check_checksum (const uint8_t *buf, const struct wire_config *w,
                struct fault *f)
{
  const size_t length = be32_load (w->length);
  CLEANUP_FREE uint8_t *copy = NULL;
  struct wire_config without = *w;

  copy = malloc (length);       /* at most DEDUP_CONFIG_SLOT */
  if (copy == NULL)
    return -ENOMEM;
  without.checksum = be64_make (0);
  memcpy (copy, buf, length);
  memcpy (copy, &without, sizeof without);
  if (dedup_checksum (copy, length) != be64_load (w->checksum))
    return wrong (f, "configuration: wrong checksum");
  return 0;
}

/* Checks magic, version, length and checksum: that the bytes are those that
 * were written. */
static int
check_envelope (const uint8_t *buf, const struct wire_config *w,
                struct fault *f)
{
  const uint32_t length = be32_load (w->length);

  if (be64_load (w->magic) != CONFIG_MAGIC)
    return wrong (f, "configuration: wrong magic");
  if (be32_load (w->version) < 1 || be32_load (w->version) > VERSION_PACKED)
    return wrong (f, "configuration: version %" PRIu32 " is unknown",
                  be32_load (w->version));
  if (length < sizeof *w || length > DEDUP_CONFIG_SLOT)
    return wrong (f, "configuration: length %" PRIu32 " is out of range",
                  length);
  return check_checksum (buf, w, f);
}

/* Refuses a block size or flags that this version does not know. */
static int
check_known (const struct wire_config *w, struct fault *f)
{
  const uint32_t known = DEDUP_CONFIG_EXACT |
    (be32_load (w->version) >= VERSION_DISKS ? DEDUP_CONFIG_WORK_LEFT : 0);

  if (be32_load (w->block_size) != DEDUP_BLOCK_SIZE)
    return wrong (f, "configuration: journal block size %" PRIu32
                  " is not served", be32_load (w->block_size));
  if (be32_load (w->flags) & ~known)
    return wrong (f, "configuration: unknown flags 0x%" PRIx32,
                  be32_load (w->flags));
  return 0;
}

/* Returns the number of segments, which stands behind the limbo areas; 0 if it
 * would lie behind the length, which check_counts refuses. */
static uint32_t
load_nr_segments (const uint8_t *buf, const struct wire_config *w)
{
  const size_t at = fixed_length (be32_load (w->nr_areas),
                                  be32_load (w->nr_incarnations),
                                  be32_load (w->nr_limbo));
  struct wire_count count;

  if (be32_load (w->version) < VERSION_SEGMENTS ||
      at + sizeof count > be32_load (w->length))
    return 0;
  memcpy (&count, buf + at, sizeof count);
  return be32_load (count.nr_segments);
}

static int
check_counts (const uint8_t *buf, const struct wire_config *w, struct fault *f)
{
  const uint32_t nr_areas = be32_load (w->nr_areas);
  const uint32_t nr_incarnations = be32_load (w->nr_incarnations);
  const uint32_t nr_limbo = be32_load (w->nr_limbo);
  const uint32_t length = be32_load (w->length);
  const uint32_t version = be32_load (w->version);
  uint32_t nr_segments;
  size_t rest;

  if (nr_areas < 1 || nr_areas > DEDUP_MAX_JOURNAL_AREAS)
    return wrong (f, "configuration: %" PRIu32 " journal areas", nr_areas);
  if (nr_incarnations > DEDUP_MAX_INCARNATIONS)
    return wrong (f, "configuration: %" PRIu32 " incarnations",
                  nr_incarnations);
  if (nr_limbo > DEDUP_MAX_LIMBO)
    return wrong (f, "configuration: %" PRIu32 " limbo areas", nr_limbo);
  nr_segments = load_nr_segments (buf, w);
  if (nr_segments > DEDUP_MAX_SEGMENTS ||
      (nr_segments == 0 && version == VERSION_SEGMENTS))
    return wrong (f, "configuration: version %" PRIu32 " with %" PRIu32
                  " segments", version, nr_segments);
  rest = fixed_length (nr_areas, nr_incarnations, nr_limbo) +
    added_length (version, nr_segments);
  if (length < rest || (length - rest) % sizeof (struct wire_cut) != 0 ||
      (length - rest) / sizeof (struct wire_cut) > DEDUP_MAX_CUTS)
    return wrong (f, "configuration: length contradicts the counts");
  return 0;
}

static void
load_fields (const struct wire_config *w, struct dedup_config *c)
{
  c->store_id = be64_load (w->store_id);
  c->generation = be64_load (w->generation);
  c->epoch = be32_load (w->epoch);
  c->epoch_start = be64_load (w->epoch_start);
  c->checkpoint = be64_load (w->checkpoint);
  c->index_start = be64_load (w->index_start);
  c->index.order = be32_load (w->order);
  c->index.max_incarnations = be32_load (w->max_incarnations);
  c->flags = be32_load (w->flags);
  c->has_disks = be32_load (w->version) >= VERSION_DISKS;
  c->index.next_id = be64_load (w->next_incarnation_id);
  c->max_journal_areas = be32_load (w->max_journal_areas);
  c->journal_area_size = be32_load (w->journal_area_size);
  c->nr_areas = be32_load (w->nr_areas);
  c->index.nr_incarnations = be32_load (w->nr_incarnations);
  c->index.nr_limbo = be32_load (w->nr_limbo);
  /* They take the rest of the length; check_counts saw that it is a
   * multiple. */
  c->nr_cuts = (be32_load (w->length) -
                (uint32_t) (fixed_length (c->nr_areas, c->index.nr_incarnations,
                                          c->index.nr_limbo) +
                            added_length (be32_load (w->version),
                                          c->index.nr_segments))) /
    sizeof (struct wire_cut);
  memcpy (c->hash_key, w->hash_key, sizeof c->hash_key);
}

static const uint8_t *
load_segments (const uint8_t *p, uint32_t version, struct dedup_config *c)
{
  uint32_t i;

  p += version >= VERSION_SEGMENTS ? sizeof (struct wire_count) : 0;
  for (i = 0; i < c->index.nr_segments;
       ++i, p += sizeof (struct wire_segment)) {
    struct dedup_segment_desc *s = &c->index.segments[i];
    struct wire_segment w;

    memcpy (&w, p, sizeof w);
    s->id = be64_load (w.id);
    s->age = be64_load (w.age);
    s->host_off = be64_load (w.host_off);
    s->size_bytes = be64_load (w.size_bytes);
    s->lo = be32_load (w.lo);
    s->hi = be32_load (w.hi);
    s->nr_entries = be32_load (w.nr_entries);
    s->nr_deleted = be32_load (w.nr_deleted);
    s->merge = be32_load (w.merge);
    s->level = w.level;
    s->bits = w.bits;
    s->output = w.output != 0;
  }
  return p;
}

static const uint8_t *
load_store_file (const uint8_t *p, uint32_t version, struct dedup_config *c)
{
  struct wire_store_file w;

  c->store_session = 0;
  if (version < VERSION_STORE_FILE)
    return p;
  memcpy (&w, p, sizeof w);
  c->store_session = be64_load (w.session);
  return p + sizeof w;
}

static const uint8_t *
load_lookups (const uint8_t *p, uint32_t version, struct dedup_config *c)
{
  struct wire_lookups w;

  memset (&c->lookups, 0, sizeof c->lookups);
  if (version < VERSION_LOOKUPS)
    return p;
  memcpy (&w, p, sizeof w);
  c->lookups = (struct dedup_lookups) {
    .guessed = be64_load (w.guessed), .lookups = be64_load (w.lookups),
    .hits = be64_load (w.hits), .hit_reads = be64_load (w.hit_reads),
    .miss_reads = be64_load (w.miss_reads),
    .false_positives = be64_load (w.false_positives),
  };
  return p + sizeof w;
}

/* Sets *UNKNOWN to the flags of version 6 that this program does not know. */
static const uint8_t *
load_packed (const uint8_t *p, uint32_t version, struct dedup_config *c,
             uint32_t *unknown)
{
  struct wire_packed w;
  uint32_t flags;

  c->may_pack = version >= VERSION_PACKED;
  c->compress = false;
  *unknown = 0;
  if (!c->may_pack)
    return p;
  memcpy (&w, p, sizeof w);
  flags = be32_load (w.flags);
  c->has_disks = flags & PACKED_DISKS;
  c->compress = flags & PACKED_COMPRESS;
  *unknown = flags & ~(PACKED_DISKS | PACKED_COMPRESS);
  return p + sizeof w;
}

/* Loads all arrays; their counts were checked against limits and length. */
static void
load_arrays (const uint8_t *p, uint32_t version, struct dedup_config *c,
             uint32_t *unknown)
{
  uint32_t i;

  for (i = 0; i < c->nr_areas; ++i, p += sizeof (struct wire_area)) {
    struct wire_area w;

    memcpy (&w, p, sizeof w);
    c->areas[i].host_off = be64_load (w.host_off);
    c->areas[i].first_seq = be64_load (w.first_seq);
    c->areas[i].nr_blocks = be32_load (w.nr_blocks);
  }
  for (i = 0; i < c->index.nr_incarnations;
       ++i, p += sizeof (struct wire_incarnation)) {
    struct dedup_incarnation_desc *d = &c->index.incarnations[i];
    struct wire_incarnation w;

    memcpy (&w, p, sizeof w);
    d->id = be64_load (w.id);
    d->host_off = be64_load (w.host_off);
    d->size_bytes = be64_load (w.size_bytes);
    d->order = be32_load (w.order);
    d->nr_entries = be32_load (w.nr_entries);
    d->nr_deleted = be32_load (w.nr_deleted);
  }
  for (i = 0; i < c->index.nr_limbo; ++i, p += sizeof (struct wire_limbo)) {
    struct wire_limbo w;

    memcpy (&w, p, sizeof w);
    c->index.limbo[i].host_off = be64_load (w.host_off);
    c->index.limbo[i].size_bytes = be64_load (w.size_bytes);
  }
  p = load_segments (p, version, c);
  p = load_store_file (p, version, c);
  p = load_lookups (p, version, c);
  p = load_packed (p, version, c, unknown);
  for (i = 0; i < c->nr_cuts; ++i, p += sizeof (struct wire_cut)) {
    struct wire_cut w;

    memcpy (&w, p, sizeof w);
    c->cuts[i].seq = be64_load (w.seq);
    c->cuts[i].len = be32_load (w.len);
  }
}

size_t
dedup_slot_length (const uint8_t buf[DEDUP_CONFIG_SLOT])
{
  struct wire_config w;

  memcpy (&w, buf, sizeof w);
  return be32_load (w.length);
}

int
dedup_config_decode (const uint8_t buf[DEDUP_CONFIG_SLOT],
                     uint64_t cluster_size, struct dedup_config *c,
                     struct fault *f)
{
  struct wire_config w;
  uint32_t unknown;
  int r;

  memcpy (&w, buf, sizeof w);
  if ((r = check_envelope (buf, &w, f)) < 0 ||
      (r = check_known (&w, f)) < 0 ||
      (r = check_counts (buf, &w, f)) < 0)
    return r;
  memset (&c->notes, 0, sizeof c->notes);
  c->index.nr_segments = load_nr_segments (buf, &w);
  load_fields (&w, c);
  load_arrays (buf + sizeof w, be32_load (w.version), c, &unknown);
  if (unknown)
    return wrong (f, "configuration: unknown flags 0x%" PRIx32 " of version 6",
                  unknown);
  if (be32_load (w.version) == VERSION_STORE_FILE && c->store_session == 0)
    return wrong (f, "configuration: session of the store file is 0");
  return dedup_config_check (c, cluster_size, f);
}
