/* SPDX-License-Identifier: BSD-3-Clause */
/* The snapshot table: decode it at open, encode it with another anchor.
 *
 * Owns struct qcow2_snapshot_table.  Promises that every entry in it was
 * inside the file and its strings and L1 size inside the limits, and that an
 * encoded table keeps the entries of others byte for byte: what future
 * versions put into them survives.
 *
 * The table names no length of its own, so it is read piece by piece, each
 * entry's fixed part telling how much more to read.  No more is held in
 * memory than QCOW2_MAX_SNAPSHOT_TABLE_BYTES, twice (raw and strings).
 *
 * Runs at open and in plan.c, both single-threaded, and once before the first
 * change of a session.  What the L1 tables of snapshots hold is left to check.c
 * and anchor.c.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "header-format.h"
#include "image.h"

/* Id and name of a new anchor, and of those made before it had a name that
 * deters. */
static const char anchor_name[] = QCOW2_ANCHOR_NAME;
static const char old_anchor_name[] = QCOW2_OLD_ANCHOR_NAME;

#define SECTOR 512

#define READ_AHEAD 65536

/* --- Reading -------------------------------------------------------- */

struct table_reader {
  struct qcow2_image *img;
  struct qcow2_snapshot_table *t;
  uint64_t table_off;
  struct fault *f;
};

static int
grow_raw (struct table_reader *rd, size_t len)
{
  struct qcow2_snapshot_table *t = rd->t;
  uint8_t *raw;
  int r;

  raw = realloc (t->raw, len);
  if (raw == NULL)
    return fault_io (rd->f, ENOMEM, UINT64_MAX, "out of memory");
  t->raw = raw;
  r = io_pread (rd->img->io, raw + t->raw_len, len - t->raw_len,
                rd->table_off + t->raw_len);
  if (r < 0)
    return fault_io (rd->f, -r, rd->table_off, "reading the snapshot table: "
                     "%s", strerror (-r));
  t->raw_len = len;
  return 0;
}

/* Have the first END bytes of the table in memory. */
static int
need (struct table_reader *rd, uint64_t end)
{
  uint64_t in_file = rd->img->file_size > rd->table_off
    ? rd->img->file_size - rd->table_off : 0;

  if (end > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
    return fault_corrupt (rd->f, rd->table_off, "snapshot table is larger "
                          "than 64 MiB");
  if (end > in_file)
    return fault_corrupt (rd->f, rd->table_off, "snapshot table reaches past "
                          "the end of the file");
  if (end <= rd->t->raw_len)
    return 0;
  return grow_raw (rd, MAX_OF (end, MIN_OF (in_file,
                                            rd->t->raw_len + READ_AHEAD)));
}

static int
check_entry (struct table_reader *rd, const struct qcow2_snapshot *s,
             uint64_t at)
{
  const uint64_t off = rd->table_off + at;

  if (s->l1_entries > QCOW2_MAX_L1_BYTES / sizeof (be64))
    return fault_corrupt (rd->f, off + 8, "L1 table of a snapshot is too "
                          "large");
  if (s->l1_off % rd->img->header.geo.cluster_size != 0 ||
      s->l1_off >= QCOW2_MAX_HOST_OFF)
    return fault_corrupt (rd->f, off, "L1 table offset of a snapshot is "
                          "invalid");
  return 0;
}

/* The optional fields; RAW is the entry, whole in memory. */
static void
take_extra (const uint8_t *raw, uint32_t extra_len, struct qcow2_snapshot *s)
{
  struct qcow2_wire_snapshot_extra x;

  memset (&x, 0, sizeof x);
  memcpy (&x, raw + sizeof (struct qcow2_wire_snapshot),
          MIN_OF (extra_len, sizeof x));
  if (extra_len >= sizeof x.vm_state_size)
    s->vm_state_size = be64_load (x.vm_state_size);
  if (extra_len >= sizeof x)
    s->disk_size = be64_load (x.disk_size);
}

/* Are id and name, of these lengths in the file, both ANCHOR? */
static bool
are_both (const char *anchor, const struct qcow2_snapshot *s, size_t id_len,
          size_t name_len)
{
  const size_t len = strlen (anchor);

  return id_len == len && name_len == len && strcmp (s->id, anchor) == 0 &&
    strcmp (s->name, anchor) == 0;
}

static int
take_strings (struct table_reader *rd, const uint8_t *id, size_t id_len,
              size_t name_len, struct qcow2_snapshot *s)
{
  const char *name = (const char *) id + id_len;

  s->id = strndup ((const char *) id, id_len);
  s->name = strndup (name, name_len);
  if (s->id == NULL || s->name == NULL)
    return fault_io (rd->f, ENOMEM, UINT64_MAX, "out of memory");
  s->is_anchor = s->named_anchor =
    are_both (anchor_name, s, id_len, name_len) ||
    are_both (old_anchor_name, s, id_len, name_len);
  return 0;
}

/* Decode the entry at *AT of the table, and move *AT behind it. */
static int
load_entry (struct table_reader *rd, uint64_t *at, struct qcow2_snapshot *s)
{
  struct qcow2_wire_snapshot w;
  uint64_t strings_at, end;
  uint32_t extra_len;
  int r;

  r = need (rd, *at + sizeof w);
  if (r < 0)
    return r;
  memcpy (&w, rd->t->raw + *at, sizeof w);
  extra_len = be32_load (w.extra_len);
  if (extra_len > QCOW2_MAX_SNAPSHOT_EXTRA)
    return fault_corrupt (rd->f, rd->table_off + *at + 36, "extra data of a "
                          "snapshot is too long");
  strings_at = *at + sizeof w + extra_len;
  end = strings_at + be16_load (w.id_len) + be16_load (w.name_len);
  s->l1_off = be64_load (w.l1_off);
  s->l1_entries = be32_load (w.l1_entries);
  s->disk_size = rd->img->header.geo.virtual_size;
  s->vm_state_size = be32_load (w.vm_state_size);
  if ((r = check_entry (rd, s, *at)) < 0 || (r = need (rd, end)) < 0)
    return r;
  take_extra (rd->t->raw + *at, extra_len, s);
  *at = round_up_pow2 (end, 8);
  return take_strings (rd, rd->t->raw + strings_at, be16_load (w.id_len),
                       be16_load (w.name_len), s);
}

/* Cut what was read too far; the padding of the last entry need not be in
 * the file. */
static int
trim_raw (struct table_reader *rd, size_t len)
{
  struct qcow2_snapshot_table *t = rd->t;
  uint8_t *raw;

  raw = realloc (t->raw, len);
  if (raw == NULL)
    return fault_io (rd->f, ENOMEM, UINT64_MAX, "out of memory");
  if (len > t->raw_len)
    memset (raw + t->raw_len, 0, len - t->raw_len);
  t->raw = raw;
  t->raw_len = len;
  return 0;
}

static int
load_entries (struct table_reader *rd, size_t nr)
{
  struct qcow2_snapshot_table *t = rd->t;
  uint64_t at = 0;
  int r;

  for (; t->nr < nr; t->nr++) {
    t->raw_off[t->nr] = at;
    r = load_entry (rd, &at, &t->v[t->nr]);
    if (r < 0) {
      t->nr++;              /* its strings may be there: free them */
      return r;
    }
    if (t->v[t->nr].is_anchor && t->anchor < 0)
      t->anchor = t->nr;
    else
      t->v[t->nr].is_anchor = false;
  }
  t->raw_off[nr] = at;
  return trim_raw (rd, at);
}

int
qcow2_snapshot_load (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_snapshot_table *t = &img->snapshots;
  struct qcow2_header_fields *fields = &img->header.fields;
  struct table_reader rd = {
    .img = img, .t = t, .table_off = fields->snapshots_off, .f = f,
  };
  size_t nr = fields->nr_snapshots;    /* at most QCOW2_MAX_SNAPSHOTS */
  int r;

  *t = (struct qcow2_snapshot_table) { .anchor = -1 };
  if (nr > 0) {
    t->v = calloc (nr, sizeof *t->v);
    t->raw_off = calloc (nr + 1, sizeof *t->raw_off);
    if (t->v == NULL || t->raw_off == NULL)
      return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
    r = load_entries (&rd, nr);
    if (r < 0)
      return r;
  }
  if (t->anchor >= 0) {
    fields->anchor_l1_off = t->v[t->anchor].l1_off;
    fields->anchor_l1_entries = t->v[t->anchor].l1_entries;
  }
  img->fields = *fields;
  return 0;
}

void
qcow2_snapshot_free (struct qcow2_snapshot_table *t)
{
  size_t i;

  for (i = 0; i < t->nr; i++) {
    free ((char *) t->v[i].id);
    free ((char *) t->v[i].name);
  }
  free (t->v);
  free (t->raw);
  free (t->raw_off);
  *t = (struct qcow2_snapshot_table) { .anchor = -1 };
}

/* --- Encoding ------------------------------------------------------- */

/* The size of the disk that the anchor claims to be: all that its L1 table can
 * map, less a byte.  No disk ends inside a sector, so QEMU refuses to apply
 * the anchor, before it changes anything (docs/on-disk.md section 2). */
static uint64_t
anchor_disk_size (const struct qcow2_geometry *g, uint32_t l1_entries)
{
  /* At most 2^22 entries of 2^39 bytes. */
  uint64_t bytes = l1_entries * (g->l2_entries * g->cluster_size);

  return MAX_OF (bytes, SECTOR) - 1;
}

/* An anchor keeps the name that it has. */
static const char *
name_of_anchor (const struct qcow2_snapshot_table *t)
{
  return t->anchor >= 0 ? t->v[t->anchor].name : anchor_name;
}

static size_t
anchor_entry_len (const char *name)
{
  return round_up_pow2 (sizeof (struct qcow2_wire_snapshot) +
                        sizeof (struct qcow2_wire_snapshot_extra) +
                        2 * strlen (name), 8);
}

/* Write the entry of the anchor called NAME to P, which is zeroed; padding
 * included. */
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

int
qcow2_snapshot_encode (struct qcow2_image *img, uint64_t anchor_l1_off,
                       uint32_t anchor_l1_entries, uint8_t **buf,
                       size_t *len, uint32_t *nr)
{
  const struct qcow2_snapshot_table *t = &img->snapshots;
  const char *name = name_of_anchor (t);
  const size_t entry_len = anchor_entry_len (name);
  /* The anchor replaces [cut, cut_end) of the table. */
  size_t cut = t->anchor >= 0 ? t->raw_off[t->anchor] : t->raw_len;
  size_t cut_end = t->anchor >= 0 ? t->raw_off[t->anchor + 1] : t->raw_len;
  size_t new_len = t->raw_len - (cut_end - cut) + entry_len;
  size_t new_nr = t->nr + (t->anchor < 0);
  uint8_t *p;

  if (new_nr > QCOW2_MAX_SNAPSHOTS || new_len > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
    return -ENOSPC;
  p = calloc (1, new_len);
  if (p == NULL)
    return -ENOMEM;
  if (cut > 0)
    memcpy (p, t->raw, cut);
  encode_anchor (&img->header.geo, name, anchor_l1_off, anchor_l1_entries,
                 p + cut);
  if (t->raw_len > cut_end)
    memcpy (p + cut + entry_len, t->raw + cut_end, t->raw_len - cut_end);
  *buf = p;
  *len = new_len;
  *nr = new_nr;
  return 0;
}

/* --- Making an anchor one that is not applied ------------------------- */

int
qcow2_anchor_deter (struct qcow2_image *img)
{
  struct qcow2_snapshot_table *t = &img->snapshots;
  const uint64_t table_off = img->header.fields.snapshots_off;
  struct qcow2_wire_snapshot w;
  uint64_t at;
  bool once;
  be64 size;
  int r;

  /* A table that moved since the open was encoded here. */
  if (t->anchor < 0 || img->fields.snapshots_off != table_off ||
      t->v[t->anchor].disk_size % SECTOR != 0)
    return 0;
  at = t->raw_off[t->anchor];
  memcpy (&w, t->raw + at, sizeof w);
  if (be32_load (w.extra_len) < sizeof (struct qcow2_wire_snapshot_extra))
    return 0;                  /* nowhere to say it */
  at += sizeof w + offsetof (struct qcow2_wire_snapshot_extra, disk_size);
  if (qcow2_used_once (img, table_off + at, sizeof size, &once) < 0 || !once)
    return 0;
  size = be64_make (anchor_disk_size (&img->header.geo,
                                      t->v[t->anchor].l1_entries));
  r = io_pwrite (img->io, &size, sizeof size, table_off + at);
  if (r < 0)
    return r;
  memcpy (t->raw + at, &size, sizeof size);
  t->v[t->anchor].disk_size = be64_load (size);
  return 0;
}
