/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps samples of what the image held in the past, in a part of the configuration's
 * slots that short configurations leave free.
 *
 * The samples are for people who look at them, and nothing depends on them.  So they
 * take no area, no version and no part in any ordering: a program that does not know
 * them sees bytes behind the end of a configuration, which it does not look at.
 * Each slot has room for one copy of the list; they are written in turn, the second one
 * when the first is durable, so that a torn write leaves the other.  A configuration that grows over the place destroys a copy,
 * which its checksum shows; while it is so long, nothing is written.
 *
 * A copy lies on blocks of 4096 bytes of its own, so that a torn write of it does not
 * touch the configuration.
 *
 * Threads: the caller holds the maintenance mutex, which keeps the configuration from
 * being written meanwhile.
 */
#include "samples.h"

#include <errno.h>

#include "aligned.h"
#include "mutation.h"
#include "wire.h"

#define SAMPLES_MAGIC UINT64_C (0x44445550484953a1)
#define COPY_BYTES 16384u
#define COPY_OFF (DEDUP_CONFIG_SLOT - COPY_BYTES)       /* in a slot */

struct wire_samples {
  be64 magic;
  be64 store_id;
  be64 seq;
  be32 nr;
  be32 zero;
  be64 checksum;
  uint8_t reserved[24];
};

struct wire_sample {
  be64 time;
  be64 logical_bytes;
  be64 stored_bytes;
  be64 free_bytes;
};

WIRE_FIELD_AT (struct wire_samples, store_id, 8);
WIRE_FIELD_AT (struct wire_samples, seq, 16);
WIRE_FIELD_AT (struct wire_samples, nr, 24);
WIRE_FIELD_AT (struct wire_samples, zero, 28);
WIRE_FIELD_AT (struct wire_samples, checksum, 32);
WIRE_FIELD_AT (struct wire_samples, reserved, 40);
WIRE_FIELD_AT (struct wire_sample, logical_bytes, 8);
WIRE_FIELD_AT (struct wire_sample, stored_bytes, 16);
WIRE_FIELD_AT (struct wire_sample, free_bytes, 24);
_Static_assert (sizeof (struct wire_samples) == 64, "header of the samples");
_Static_assert (sizeof (struct wire_sample) == 32, "sample");
_Static_assert (64 + DEDUP_MAX_SAMPLES * 32 <= COPY_BYTES, "all samples fit");
_Static_assert (COPY_OFF % DEDUP_BLOCK_SIZE == 0, "blocks of its own");

/* --- The list ------------------------------------------------------------- */

/* Returns how much sample I is missed, which is neither the first nor the last: the
 * distance of its neighbours by its age at NOW. */
static double
worth (const struct dedup_sample_list *l, uint32_t i, uint64_t now)
{
  return (double) (l->v[i + 1].time - l->v[i - 1].time) /
    (double) (now - l->v[i].time);
}

static void
drop_one (struct dedup_sample_list *l, uint64_t now)
{
  uint32_t least = 1, i;

  for (i = 2; i + 1 < l->nr; i++)
    if (worth (l, i, now) < worth (l, least, now))
      least = i;
  memmove (&l->v[least], &l->v[least + 1],
           (l->nr - least - 1) * sizeof l->v[0]);
  l->nr--;
}

bool
dedup_sample_list_add (struct dedup_sample_list *l,
                       const struct dedup_sample *sample)
{
  if (l->nr > 0 && sample->time <= l->v[l->nr - 1].time)
    return false;
  if (l->nr == DEDUP_MAX_SAMPLES)
    drop_one (l, sample->time);
  l->v[l->nr++] = *sample;
  return true;
}

/* --- Bytes ---------------------------------------------------------------- */

static size_t
length_of (uint32_t nr)
{
  return sizeof (struct wire_samples) + nr * sizeof (struct wire_sample);
}

static void
encode (const struct dedup_sample_list *l, uint64_t store_id, uint8_t *buf)
{
  struct wire_samples w = {
    .magic = be64_make (SAMPLES_MAGIC), .store_id = be64_make (store_id),
    .seq = be64_make (l->seq), .nr = be32_make (l->nr),
  };
  uint32_t i;

  memset (buf, 0, COPY_BYTES);
  for (i = 0; i < l->nr; i++) {
    const struct wire_sample v = {
      .time = be64_make (l->v[i].time),
      .logical_bytes = be64_make (l->v[i].logical_bytes),
      .stored_bytes = be64_make (l->v[i].stored_bytes),
      .free_bytes = be64_make (l->v[i].free_bytes),
    };

    memcpy (buf + length_of (i), &v, sizeof v);
  }
  memcpy (buf, &w, sizeof w);
  w.checksum = be64_make (dedup_checksum (buf, length_of (l->nr)));
  memcpy (buf, &w, sizeof w);
}

static bool
checksum_is_right (uint8_t *buf, size_t length)
{
  struct wire_samples w;
  be64 checksum;

  memcpy (&w, buf, sizeof w);
  checksum = w.checksum;
  w.checksum = be64_make (0);
  memcpy (buf, &w, sizeof w);
  return dedup_checksum (buf, length) == be64_load (checksum);
}

static struct dedup_sample
decode_sample (const uint8_t *p)
{
  struct wire_sample w;

  memcpy (&w, p, sizeof w);
  return (struct dedup_sample) {
    .time = be64_load (w.time), .logical_bytes = be64_load (w.logical_bytes),
    .stored_bytes = be64_load (w.stored_bytes),
    .free_bytes = be64_load (w.free_bytes),
  };
}

/* Decodes a copy.  False: it is none, or not whole. */
static bool
decode (uint8_t *buf, uint64_t store_id, struct dedup_sample_list *l)
{
  struct wire_samples w;
  uint32_t nr, i;

  memcpy (&w, buf, sizeof w);
  nr = be32_load (w.nr);
  if (be64_load (w.magic) != SAMPLES_MAGIC ||
      be64_load (w.store_id) != store_id || nr > DEDUP_MAX_SAMPLES ||
      !checksum_is_right (buf, length_of (nr)))
    return false;
  l->seq = be64_load (w.seq);
  l->nr = 0;
  for (i = 0; i < nr; i++) {
    const struct dedup_sample v = decode_sample (buf + length_of (i));

    if (!dedup_sample_list_add (l, &v))
      return false;
  }
  return true;
}

/* --- The two copies ------------------------------------------------------- */

/* Returns the slot where the copy with this number belongs. */
static uint64_t
slot_off (const struct dedup_store *s, uint64_t seq)
{
  return s->ext.config_off + (seq % 2 ? s->ext.config_size / 2 : 0);
}

int
dedup_sample_list_read (struct dedup_store *s, struct dedup_sample_list *l)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (COPY_BYTES);
  CLEANUP_FREE struct dedup_sample_list *other = malloc (sizeof *other);
  unsigned i;
  int r = 0;

  if (buf == NULL || other == NULL)
    return -ENOMEM;
  l->nr = 0;
  l->seq = 0;
  for (i = 0; i < 2 && r == 0; i++) {
    r = io_pread (s->b->io, buf, COPY_BYTES, slot_off (s, i) + COPY_OFF);
    if (r == 0 && decode (buf, s->config->store_id, other) &&
        other->seq % 2 == i && other->seq > l->seq)
      *l = *other;
  }
  l->unsynced = false;
  return MIN_OF (r, 0);
}

/* Returns 0 if no configuration reaches to the place of the copy in the slot at OFF:
 * neither that in memory, nor the one in the slot, which is another one where a crash
 * came between the writes of the two slots, or the host had no space for one. */
static int MUST_CHECK
place_is_free (const struct dedup_store *s, uint64_t off)
{
  struct { uint8_t magic_and_version[12]; be32 length; } w;
  int r;

  if (dedup_config_owed (s) || dedup_config_length (s->config) > COPY_OFF)
    return -EBUSY;
  r = io_pread (s->b->io, &w, sizeof w, off);
  return r < 0 ? r : be32_load (w.length) > COPY_OFF ? -EBUSY : 0;
}

int
dedup_sample_list_write (struct dedup_store *s, struct dedup_sample_list *l)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (COPY_BYTES);
  int r = dedup_gate_failed (&s->gate);

  if (buf == NULL)
    return -ENOMEM;
  if (r == 0 && l->unsynced && !mutation (MUTATION_SAMPLES_NO_SYNC))
    r = dedup_sync (s);         /* two torn copies would leave none */
  if (r == 0)
    r = place_is_free (s, slot_off (s, l->seq + 1));
  if (r < 0)
    return r;
  l->seq++;
  encode (l, s->config->store_id, buf);
  r = io_forget_taint (s->b->io, slot_off (s, l->seq) + COPY_OFF, COPY_BYTES);
  if (r == 0)
    r = io_pwrite (s->b->io, buf, COPY_BYTES, slot_off (s, l->seq) + COPY_OFF);
  if (r < 0)
    l->seq--;
  else
    l->unsynced = true;
  return r;
}
