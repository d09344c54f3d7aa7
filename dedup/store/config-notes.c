/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes the notes: what the store knows about the health of data,
 * and which jobs have not ended (docs/on-disk.md 3.1.2), behind the configuration in
 * the same slot.
 *
 * Notes are advice.  Their loss costs another scrub, so they have a checksum of
 * their own, and a configuration is valid without them.  They name the
 * generation that they belong to: older programs write a slot without notes, and
 * may leave old ones behind it.
 *
 * No state, no threads.
 */
#include "config-check.h"

#include "wire.h"

#define NOTES_MAGIC UINT64_C (0x444455504e4f5445)   /* "DDUPNOTE" */
#define NOTES_COMPLETE 1u
#define NOTES_INDEXING 2u
#define SAMPLES_AT 49152u

struct wire_notes {
  be64 magic;
  be64 generation;
  be32 flags;
  be32 nr_bad;
  be64 scrub_position;
  be64 checksum;
};

struct wire_bad {
  be64 host_idx;
  be64 flags;
  uint8_t hash[sizeof (struct dedup_hash)];
};

WIRE_FIELD_AT (struct wire_notes, generation, 8);
WIRE_FIELD_AT (struct wire_notes, flags, 16);
WIRE_FIELD_AT (struct wire_notes, nr_bad, 20);
WIRE_FIELD_AT (struct wire_notes, scrub_position, 24);
WIRE_FIELD_AT (struct wire_notes, checksum, 32);
WIRE_FIELD_AT (struct wire_bad, flags, 8);
WIRE_FIELD_AT (struct wire_bad, hash, 16);
_Static_assert (sizeof (struct wire_notes) == 40, "notes");
_Static_assert (sizeof (struct wire_bad) == 48, "bad cluster");

/* Returns where the notes of a configuration of LENGTH bytes must end: what is behind
 * a short configuration has other users (docs/on-disk.md 3.1.1). */
static size_t
notes_end (size_t length)
{
  return length <= SAMPLES_AT ? SAMPLES_AT : DEDUP_CONFIG_SLOT;
}

/* Returns where the notes of a configuration of LENGTH bytes begin. */
static size_t
notes_at (size_t length)
{
  return (size_t) round_up_pow2 (length, 8);
}

/* Returns the checksum of NR clusters' notes at P, with the field 0. */
static uint64_t
checksum_of (uint8_t *p, size_t nr)
{
  struct wire_notes w, without;
  uint64_t sum;

  memcpy (&w, p, sizeof w);
  without = w;
  without.checksum = be64_make (0);
  memcpy (p, &without, sizeof without);
  sum = dedup_checksum (p, sizeof w + nr * sizeof (struct wire_bad));
  memcpy (p, &w, sizeof w);
  return sum;
}

static void
encode_bad (const struct dedup_bad_cluster *b, uint8_t *p)
{
  struct wire_bad w = {
    .host_idx = be64_make (b->host_idx),
    .flags = be64_make (b->flags & DEDUP_BAD_FLAGS),
  };

  memcpy (w.hash, b->hash.b, sizeof w.hash);
  memcpy (p, &w, sizeof w);
}

size_t
dedup_notes_encode (const struct dedup_config *c,
                    uint8_t buf[DEDUP_CONFIG_SLOT], size_t length)
{
  uint8_t *p = buf + notes_at (length);
  struct wire_notes w;
  size_t left, nr, i;

  if (notes_at (length) + sizeof w > notes_end (length))
    return length;
  left = notes_end (length) - notes_at (length) - sizeof w;
  nr = MIN_OF (c->notes.nr_bad, left / sizeof (struct wire_bad));
  w = (struct wire_notes) {
    .magic = be64_make (NOTES_MAGIC),
    .generation = be64_make (c->generation),
    .flags = be32_make ((c->notes.complete ? NOTES_COMPLETE : 0) |
                        (c->notes.indexing ? NOTES_INDEXING : 0)),
    .nr_bad = be32_make ((uint32_t) nr),
    .scrub_position = be64_make (c->notes.scrub_position),
  };
  memcpy (p, &w, sizeof w);
  for (i = 0; i < nr; i++)
    encode_bad (&c->notes.bad[i],
                p + sizeof w + i * sizeof (struct wire_bad));
  w.checksum = be64_make (checksum_of (p, nr));
  memcpy (p, &w, sizeof w);
  return notes_at (length) + sizeof w + nr * sizeof (struct wire_bad);
}

static void
load_bad (const uint8_t *p, struct dedup_bad_cluster *b)
{
  struct wire_bad w;

  memcpy (&w, p, sizeof w);
  b->host_idx = be64_load (w.host_idx);
  b->flags = (uint32_t) be64_load (w.flags) & DEDUP_BAD_FLAGS;
  memcpy (b->hash.b, w.hash, sizeof w.hash);
}

/* Checks the notes W at P, which has LEFT bytes. */
static bool
are_valid (const struct wire_notes *w, uint8_t *p, size_t left, uint64_t gen)
{
  const size_t nr = be32_load (w->nr_bad);

  return be64_load (w->magic) == NOTES_MAGIC &&
    be64_load (w->generation) == gen && nr <= DEDUP_MAX_BAD &&
    nr <= (left - sizeof *w) / sizeof (struct wire_bad) &&
    checksum_of (p, nr) == be64_load (w->checksum);
}

void
dedup_notes_decode (uint8_t buf[DEDUP_CONFIG_SLOT], size_t length,
                    struct dedup_config *c)
{
  const size_t at = notes_at (length);
  struct wire_notes w;
  size_t i;

  memset (&c->notes, 0, sizeof c->notes);
  if (at + sizeof w > notes_end (length))
    return;
  memcpy (&w, buf + at, sizeof w);
  if (!are_valid (&w, buf + at, notes_end (length) - at, c->generation))
    return;
  c->notes.complete = be32_load (w.flags) & NOTES_COMPLETE;
  c->notes.indexing = be32_load (w.flags) & NOTES_INDEXING;
  c->notes.scrub_position = be64_load (w.scrub_position);
  c->notes.nr_bad = be32_load (w.nr_bad);
  for (i = 0; i < c->notes.nr_bad; i++)
    load_bad (buf + at + sizeof w + i * sizeof (struct wire_bad),
              &c->notes.bad[i]);
}
