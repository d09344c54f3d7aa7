/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes the snapshot table: with another anchor, and with other disks.
 *
 * Promises that entries which do not change are written byte for byte as they
 * were read, and that of a disk that does change everything stays which this
 * version does not know.  It builds tables in memory and writes none, but for
 * one field of the anchor, which keeps QEMU from applying it.
 *
 * The image's lock protects the slots once there are other threads.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "aligned.h"
#include "checked.h"
#include "header-format.h"
#include "image.h"

#define SECTOR 512

/* --- The anchor ------------------------------------------------------- */

/* Returns the disk size that the anchor claims: all that its L1 table can map,
 * less a byte.  No disk ends inside a sector, so QEMU refuses to apply the
 * anchor, before it changes anything (docs/on-disk.md section 2). */
static uint64_t
anchor_disk_size (const struct qcow2_geometry *g, uint32_t l1_entries)
{
  /* At most 2^22 entries of 2^39 bytes. */
  uint64_t bytes = l1_entries * (g->l2_entries * g->cluster_size);

  return MAX_OF (bytes, SECTOR) - 1;
}

/* Returns the name of the anchor: the one that it has, or that of a new one. */
static const char *
name_of_anchor (const struct qcow2_snapshot_table *t)
{
  return t->anchor >= 0 ? t->v[t->anchor].name : QCOW2_ANCHOR_NAME;
}

static size_t
anchor_entry_len (const char *name)
{
  return round_up_pow2 (sizeof (struct qcow2_wire_snapshot) +
                        sizeof (struct qcow2_wire_snapshot_extra) +
                        2 * strlen (name), 8);
}

/* Writes the entry of the anchor called NAME, with its padding, to P, which is
 * zeroed. */
static void
encode_anchor (const struct qcow2_geometry *g, const char *name,
               uint64_t l1_off, uint32_t l1_entries, uint8_t *p)
{
  const size_t len = strlen (name);
  struct timespec now;
  struct qcow2_wire_snapshot w = {
    .l1_off = be64_make (l1_off),
    .l1_entries = be32_make (l1_entries),
    .id_len = be16_make ((uint16_t) len),
    .name_len = be16_make ((uint16_t) len),
    .extra_len = be32_make (sizeof (struct qcow2_wire_snapshot_extra)),
  };
  struct qcow2_wire_snapshot_extra x = {
    .disk_size = be64_make (anchor_disk_size (g, l1_entries)),
  };

  clock_gettime (CLOCK_REALTIME, &now);
  w.date_sec = be32_make (now.tv_sec);
  w.date_nsec = be32_make (now.tv_nsec);
  memcpy (p, &w, sizeof w);
  p += sizeof w;
  memcpy (p, &x, sizeof x);
  p += sizeof x;
  memcpy (p, name, len);
  memcpy (p + len, name, len);
}

/* --- A table ---------------------------------------------------------- */

int
qcow2_snapshot_join (const struct qcow2_snapshot_raw *raw, size_t nr_raw,
                     uint8_t **buf, size_t *len, uint32_t *nr)
{
  size_t new_len = 0, new_nr = 0;
  uint8_t *p;

  for (size_t i = 0; i < nr_raw; i++)
    if (raw[i].bytes) {
      new_len += raw[i].len;
      new_nr++;
    }
  if (new_nr > QCOW2_MAX_SNAPSHOTS || new_len > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
    return -ENOSPC;
  p = aligned_new (new_len);
  if (p == NULL)
    return -ENOMEM;
  *buf = p;
  *len = new_len;
  *nr = new_nr;
  for (size_t i = 0; i < nr_raw; i++)
    if (raw[i].bytes) {
      memcpy (p, raw[i].bytes, raw[i].len);
      p += raw[i].len;
    }
  return 0;
}

int
qcow2_snapshot_encode (struct qcow2_image *img, uint64_t anchor_l1_off,
                       uint32_t anchor_l1_entries, uint8_t **buf,
                       size_t *len, uint32_t *nr)
{
  const struct qcow2_snapshot_table *t = &img->snapshots;
  const char *name = name_of_anchor (t);
  const size_t at = t->anchor >= 0 ? (size_t) t->anchor : t->nr;
  struct qcow2_snapshot_raw anchor = { .len = anchor_entry_len (name) };
  CLEANUP_FREE struct qcow2_snapshot_raw *raw =
    calloc (t->nr + 1, sizeof *raw);
  CLEANUP_FREE uint8_t *bytes = anchor.bytes = calloc (1, anchor.len);

  if (raw == NULL || bytes == NULL)
    return -ENOMEM;
  encode_anchor (&img->header.geo, name, anchor_l1_off, anchor_l1_entries,
                 bytes);
  if (t->nr > 0)
    memcpy (raw, t->raw, t->nr * sizeof *raw);
  raw[at] = anchor;
  return qcow2_snapshot_join (raw, MAX_OF (t->nr, at + 1), buf, len, nr);
}

/* --- A disk ------------------------------------------------------------ */

/* Sets W and X to the fixed part of the entry of a new disk. */
static void
new_disk (const struct qcow2_snapshot *s, struct qcow2_wire_snapshot *w,
          struct qcow2_wire_disk *x)
{
  *w = (struct qcow2_wire_snapshot) {
    .date_sec = be32_make (s->date_sec),
    .date_nsec = be32_make (s->date_nsec),
    .extra_len = be32_make (sizeof *x),
  };
  *x = (struct qcow2_wire_disk) {
    .icount = be64_make (UINT64_MAX),
    .version = be32_make (QCOW2_DISK_VERSION),
  };
  memcpy (x->magic, QCOW2_DISK_MAGIC, sizeof x->magic);
}

/* Returns the flags to be written: a disk with flags that this version does not
 * know keeps all that it has. */
static uint32_t
flags_of (const struct qcow2_snapshot *s, const struct qcow2_wire_disk *old)
{
  const uint32_t was = be32_load (old->flags);

  return (was & ~QCOW2_DISK_KNOWN) != 0 ?
    was | (s->disk_flags & QCOW2_DISK_DOOMED) : s->disk_flags;
}

static void
put_disk (const struct qcow2_snapshot *s, struct qcow2_wire_snapshot *w,
          struct qcow2_wire_disk *x)
{
  w->l1_off = be64_make (s->l1_off);
  w->l1_entries = be32_make (s->l1_entries);
  w->id_len = be16_make ((uint16_t) strlen (s->id));
  w->name_len = be16_make ((uint16_t) strlen (s->name));
  x->disk_size = be64_make (s->disk_size);
  x->flags = be32_make (flags_of (s, x));
  memcpy (x->uuid, s->uuid, sizeof x->uuid);
  memcpy (x->origin, s->origin, sizeof x->origin);
  x->created = be64_make (s->created);
  x->compress = s->compress;
}

int
qcow2_snapshot_encode_disk (const struct qcow2_snapshot *s,
                            const struct qcow2_snapshot_raw *old,
                            struct qcow2_snapshot_raw *out)
{
  const size_t id_len = strlen (s->id), name_len = strlen (s->name);
  struct qcow2_wire_snapshot w;
  struct qcow2_wire_disk x;
  size_t extra_len;
  uint8_t *p;

  if (id_len > UINT16_MAX || name_len > UINT16_MAX)
    return -EINVAL;
  new_disk (s, &w, &x);
  if (old) {
    memcpy (&w, old->bytes, sizeof w);
    memcpy (&x, old->bytes + sizeof w, sizeof x);
  }
  extra_len = be32_load (w.extra_len);
  assert (extra_len >= sizeof x);      /* the old entry is a disk's */
  put_disk (s, &w, &x);
  out->len = round_up_pow2 (sizeof w + extra_len + id_len + name_len, 8);
  out->bytes = p = calloc (1, out->len);
  if (p == NULL)
    return -ENOMEM;
  memcpy (p, &w, sizeof w);
  memcpy (p + sizeof w, &x, sizeof x);
  if (old)
    memcpy (p + sizeof w + sizeof x, old->bytes + sizeof w + sizeof x,
            extra_len - sizeof x);
  memcpy (p + sizeof w + extra_len, s->id, id_len);
  memcpy (p + sizeof w + extra_len + id_len, s->name, name_len);
  return 0;
}

/* --- Keeping QEMU from applying the anchor ---------------------------- */

int
qcow2_anchor_deter (struct qcow2_image *img)
{
  struct qcow2_snapshot_table *t = &img->snapshots;
  struct qcow2_wire_snapshot w;
  uint64_t at = 0;
  uint8_t *raw;
  bool once;
  be64 size;
  int r;

  /* A table that moved since the open was encoded here, with such a size. */
  if (t->anchor < 0 || img->fields.snapshots_off != t->host_off ||
      t->v[t->anchor].disk_size % SECTOR != 0)
    return 0;
  for (int i = 0; i < t->anchor; i++)
    at += t->raw[i].len;
  raw = t->raw[t->anchor].bytes;
  memcpy (&w, raw, sizeof w);
  if (be32_load (w.extra_len) < sizeof (struct qcow2_wire_snapshot_extra))
    return 0;                  /* the entry has no field for it */
  at += sizeof w + offsetof (struct qcow2_wire_snapshot_extra, disk_size);
  if (qcow2_used_once (img, t->host_off + at, sizeof size, &once) < 0 || !once)
    return 0;
  size = be64_make (anchor_disk_size (&img->header.geo,
                                      t->v[t->anchor].l1_entries));
  r = io_pwrite (img->io, &size, sizeof size, t->host_off + at);
  if (r < 0)
    return r;
  memcpy (raw + sizeof w +
          offsetof (struct qcow2_wire_snapshot_extra, disk_size),
          &size, sizeof size);
  t->v[t->anchor].disk_size = be64_load (size);
  return 0;
}
