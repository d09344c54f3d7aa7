/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads and writes the configuration's two slots, and codes the header
 * extension that leads to them.
 *
 * Promises: as long as one slot is whole, there is a configuration.  A read
 * that fails is an error, not an invalid slot: the slot that can't be read may
 * be the newer one, and the journal has advanced since the older one was
 * written.
 *
 * Ordering: a slot is written over only when the other one is durable, so the
 * caller syncs between two calls of dedup_config_write; and it grows the file
 * over a new area before it lists that area, because a slot that names bytes
 * past the end of the file is not valid.  A write that failed leaves the
 * generation alone: the next try goes to the same slot again and not to the
 * one that is still whole.
 *
 * A slot has no other place, so it is written also where a write that was lost with a
 * connection may still land (io_tainted).  What lands there late is an older generation,
 * or no valid slot, and the other slot is in force: it is durable whenever this one is
 * not being written.
 *
 * No state, no threads: one maintenance job at a time writes.
 */
#include "aligned.h"
#include "config-check.h"

#include <errno.h>
#include <inttypes.h>

#include "checked.h"
#include "wire.h"
#include "zero.h"

#define LAYOUT_VERSION 1

struct wire_ext {
  be64 config_off;
  be32 config_size;
  be32 max_incarnations;
  be32 flags;
  uint8_t hash_alg;
  uint8_t layout_version;
  uint8_t reserved[10];
};

WIRE_FIELD_AT (struct wire_ext, config_size, 8);
WIRE_FIELD_AT (struct wire_ext, max_incarnations, 12);
WIRE_FIELD_AT (struct wire_ext, flags, 16);
WIRE_FIELD_AT (struct wire_ext, hash_alg, 20);
WIRE_FIELD_AT (struct wire_ext, layout_version, 21);
WIRE_FIELD_AT (struct wire_ext, reserved, 22);
_Static_assert (sizeof (struct wire_ext) == DEDUP_EXT_SIZE, "extension");

void
dedup_ext_encode (const struct dedup_ext *e, uint8_t out[DEDUP_EXT_SIZE])
{
  struct wire_ext w;

  memset (&w, 0, sizeof w);
  w.config_off = be64_make (e->config_off);
  w.config_size = be32_make (e->config_size);
  w.max_incarnations = be32_make (e->max_incarnations);
  w.flags = be32_make (e->flags);
  w.hash_alg = e->hash_alg;
  w.layout_version = LAYOUT_VERSION;
  memcpy (out, &w, sizeof w);
}

int
dedup_ext_decode (const uint8_t in[DEDUP_EXT_SIZE], struct dedup_ext *e)
{
  struct wire_ext w;

  memcpy (&w, in, sizeof w);
  if (w.layout_version != LAYOUT_VERSION || be32_load (w.flags) != 0 ||
      !all_zero (w.reserved, sizeof w.reserved))
    return -EINVAL;
  e->config_off = be64_load (w.config_off);
  e->config_size = be32_load (w.config_size);
  e->max_incarnations = be32_load (w.max_incarnations);
  e->flags = be32_load (w.flags);
  e->hash_alg = w.hash_alg;
  return 0;
}

/* --- The slots ---------------------------------------------------------- */

static uint64_t
slot_off (const struct dedup_ext *ext, uint64_t generation)
{
  return ext->config_off + (generation % 2 ? ext->config_size / 2 : 0);
}

static int
check_ext (const struct dedup_ext *ext, uint64_t cluster_size,
           uint64_t file_end, struct fault *f)
{
  if (ext->config_size / 2 < DEDUP_CONFIG_SLOT ||
      ext->config_size % cluster_size != 0)
    return wrong (f, "header extension: size %" PRIu32 " of the configuration "
                  "area is too small or not aligned", ext->config_size);
  if (ext->config_off < cluster_size ||
      ext->config_off >= MIN_OF (MAX_HOST_OFF, file_end) ||
      ext->config_off % cluster_size != 0 ||
      ext->config_size > file_end - ext->config_off)
    return wrong (f, "header extension: offset 0x%" PRIx64 " of the "
                  "configuration area is out of range or not aligned",
                  ext->config_off);
  return 0;
}

struct reader {
  struct io_store *io;
  const struct dedup_ext *ext;
  uint64_t cluster_size, file_end;
};

/* Reads the slot of odd or even generations.  1: it is valid; 0: it is not,
 * and *F says why; or -errno. */
static int
read_slot (const struct reader *rd, unsigned odd, struct dedup_config *c,
           struct fault *f)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (DEDUP_CONFIG_SLOT);
  int r;

  if (buf == NULL)
    return -ENOMEM;
  r = io_pread (rd->io, buf, DEDUP_CONFIG_SLOT, slot_off (rd->ext, odd));
  if (r < 0)
    return r;
  r = dedup_config_decode (buf, rd->cluster_size, c, f);
  if (r == 0)
    r = dedup_config_check_file (c, rd->ext, rd->file_end, f);
  if (r == 0 && c->generation % 2 != odd)
    r = wrong (f, "configuration: generation %" PRIu64 " is in the wrong "
               "slot", c->generation);
  if (r < 0)
    return f->kind == FAULT_CORRUPT ? 0 : r;
  dedup_notes_decode (buf, dedup_slot_length (buf), c);
  return 1;
}

/* Copies the newer one of C[0] and C[1], as far as VALID, into *C[0]. */
static int
choose_slot (struct dedup_config *c[2], const int valid[2],
             const struct fault why[2], uint64_t config_off, struct fault *f)
{
  if (!valid[0] && !valid[1])
    return fault_corrupt (f, config_off, "no valid slot: %.100s; %.100s",
                          why[0].msg, why[1].msg);
  if (valid[1] && (!valid[0] || c[1]->generation > c[0]->generation))
    *c[0] = *c[1];
  return 0;
}

static int
file_end (struct io_store *io, uint64_t cluster_size, uint64_t *end)
{
  const int64_t size = io_size (io);

  if (size < 0)
    return (int) size;
  /* SIZE has 63 bits: rounding up can't overflow. */
  *end = round_up_pow2 ((uint64_t) size, cluster_size);
  return 0;
}

int
dedup_config_read (struct io_store *io, const struct dedup_ext *ext,
                   uint64_t cluster_size, struct dedup_config *c,
                   struct fault *f)
{
  CLEANUP_FREE struct dedup_config *other = malloc (sizeof *other);
  struct dedup_config *both[2] = { c, other };
  struct reader rd = { io, ext, cluster_size, 0 };
  struct fault why[2] = { { 0 }, { 0 } };
  int valid[2];
  unsigned i;
  int r;

  if (other == NULL)
    return -ENOMEM;
  r = file_end (io, cluster_size, &rd.file_end);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "the size of the file is unknown");
  r = check_ext (ext, cluster_size, rd.file_end, f);
  if (r < 0)
    return r;
  for (i = 0; i < 2; ++i) {
    valid[i] = read_slot (&rd, i, both[i], &why[i]);
    if (valid[i] < 0)
      return fault_io (f, -valid[i], slot_off (ext, i),
                       "reading the configuration");
  }
  return choose_slot (both, valid, why, ext->config_off, f);
}

int
dedup_config_write (struct io_store *io, const struct dedup_ext *ext,
                    struct dedup_config *c)
{
  /* On the stack: -ENOMEM must not stop a checkpoint. */
  CACHE_ALIGNED uint8_t buf[DEDUP_CONFIG_SLOT];
  uint64_t end = 0;
  size_t len;
  int r;

  /* The cluster size is not known here, so the end is that for the largest one:
   * this finds most slots that would not be valid, while it is not too late. */
  r = file_end (io, MAX_CLUSTER, &end);
  if (r == 0)
    r = dedup_config_check_file (c, ext, end, NULL);
  if (r < 0)
    return r == -EINVAL ? -EIO : r;
  c->generation++;
  len = dedup_notes_encode (c, buf, dedup_config_encode (c, buf));
  r = io_forget_taint (io, slot_off (ext, c->generation), DEDUP_CONFIG_SLOT);
  if (r == 0)
    r = io_pwrite (io, buf, round_up_pow2 (len, DEDUP_BLOCK_SIZE),
                   slot_off (ext, c->generation));
  if (r < 0)
    c->generation--;
  return r;
}

void
dedup_forget_cuts (struct dedup_config *c, uint64_t below)
{
  uint32_t i, n = 0;

  for (i = 0; i < c->nr_cuts; i++)
    if (c->cuts[i].seq >= below)
      c->cuts[n++] = c->cuts[i];
  c->nr_cuts = n;
}
