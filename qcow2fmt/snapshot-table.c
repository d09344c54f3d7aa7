/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the snapshot table: at open, and again after a replay or a plan that
 * switched to another one.
 *
 * Owns struct qcow2_snapshot_table.  Promises that every entry in it was inside
 * the file and its strings and L1 size inside the limits, and that the bytes of
 * each entry are kept, so that fields of future versions survive when the table
 * is written anew (snapshot-encode.c).
 *
 * The table does not store its own length, so it is read piece by piece: each
 * entry's fixed part tells how much more to read.  At most three times
 * QCOW2_MAX_SNAPSHOT_TABLE_BYTES are held in memory (the table as it is read,
 * its entries and their strings).
 *
 * An entry with extra data of this program is a disk.  A disk that this version
 * must not write to loses the flag QCOW2_DISK_WRITABLE in memory: one with
 * flags that this version does not know, one that is larger than its L1 table
 * can map, and all but the first of those that have the same name or id.
 *
 * Runs without other threads.  The contents of the snapshots' L1 tables are
 * left to check/ and anchor.c, and what overlaps to guard-begin.c.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "header-format.h"
#include "image.h"

/* A new anchor has the first of these as its id and name.  Anchors that old
 * versions made have the second, which does not warn against applying them. */
static const char anchor_name[] = QCOW2_ANCHOR_NAME;
static const char old_anchor_name[] = QCOW2_OLD_ANCHOR_NAME;

#define READ_AHEAD 65536

/* --- Reading -------------------------------------------------------- */

struct table_reader {
  struct qcow2_image *img;
  struct qcow2_snapshot_table *t;
  uint64_t table_off;
  uint64_t file_size;
  uint8_t *buf;                /* the table as far as it was read */
  size_t len;
  struct fault *f;
};

static int
no_memory (struct table_reader *rd)
{
  return fault_io (rd->f, ENOMEM, UINT64_MAX, "out of memory");
}

static int
read_more (struct table_reader *rd, size_t len)
{
  uint8_t *buf;
  int r;

  buf = realloc (rd->buf, len);
  if (buf == NULL)
    return no_memory (rd);
  rd->buf = buf;
  r = io_pread (rd->img->io, buf + rd->len, len - rd->len,
                rd->table_off + rd->len);
  if (r < 0)
    return fault_io (rd->f, -r, rd->table_off, "reading the snapshot table: "
                     "%s", strerror (-r));
  rd->len = len;
  return 0;
}

/* Reads on until the first END bytes of the table are in memory. */
static int
need (struct table_reader *rd, uint64_t end)
{
  uint64_t in_file = rd->file_size > rd->table_off
    ? rd->file_size - rd->table_off : 0;

  if (end > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
    return fault_corrupt (rd->f, rd->table_off, "snapshot table is larger "
                          "than 64 MiB");
  if (end > in_file)
    return fault_corrupt (rd->f, rd->table_off, "snapshot table reaches past "
                          "the end of the file");
  if (end <= rd->len)
    return 0;
  return read_more (rd, MAX_OF (end, MIN_OF (in_file, rd->len + READ_AHEAD)));
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

/* --- The fields of an entry ------------------------------------------ */

/* Returns whether the L1 table of S can map its whole size. */
static bool
l1_maps_disk (const struct qcow2_geometry *g, const struct qcow2_snapshot *s)
{
  /* At most 2^22 entries of 2^39 bytes. */
  return s->disk_size <= s->l1_entries * (g->l2_entries * g->cluster_size);
}

/* Decodes the extra data of a disk. */
static void
take_disk (const struct qcow2_geometry *g, const struct qcow2_wire_disk *w,
           struct qcow2_snapshot *s)
{
  if (memcmp (w->magic, QCOW2_DISK_MAGIC, sizeof w->magic) != 0 ||
      be32_load (w->version) != QCOW2_DISK_VERSION)
    return;
  s->is_disk = true;
  s->disk_flags = be32_load (w->flags);
  memcpy (s->uuid, w->uuid, sizeof s->uuid);
  memcpy (s->origin, w->origin, sizeof s->origin);
  s->created = be64_load (w->created);
  s->compress = w->compress;
  if ((s->disk_flags & ~QCOW2_DISK_KNOWN) != 0 || !l1_maps_disk (g, s))
    s->disk_flags &= ~QCOW2_DISK_WRITABLE;
}

/* Decodes the optional fields.  RAW is the entry, whole in memory. */
static void
take_extra (const struct qcow2_geometry *g, const uint8_t *raw,
            uint32_t extra_len, struct qcow2_snapshot *s)
{
  struct qcow2_wire_disk x;

  memset (&x, 0, sizeof x);
  memcpy (&x, raw + sizeof (struct qcow2_wire_snapshot),
          MIN_OF (extra_len, sizeof x));
  if (extra_len >= sizeof x.vm_state_size)
    s->vm_state_size = be64_load (x.vm_state_size);
  if (extra_len >= sizeof (struct qcow2_wire_snapshot_extra))
    s->disk_size = be64_load (x.disk_size);
  if (extra_len >= sizeof x)
    take_disk (g, &x, s);
}

/* Returns whether id and name, of these lengths in the file, are both
 * ANCHOR. */
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
    return no_memory (rd);
  s->is_anchor = s->named_anchor =
    are_both (anchor_name, s, id_len, name_len) ||
    are_both (old_anchor_name, s, id_len, name_len);
  return 0;
}

/* Keeps the entry at [AT, END) of the table.  The padding of the last one need
 * not be in the file. */
static int
take_raw (struct table_reader *rd, uint64_t at, uint64_t end,
          struct qcow2_snapshot_raw *raw)
{
  raw->len = round_up_pow2 (end, 8) - at;
  raw->bytes = calloc (1, raw->len);
  if (raw->bytes == NULL)
    return no_memory (rd);
  memcpy (raw->bytes, rd->buf + at, MIN_OF (at + raw->len, rd->len) - at);
  return 0;
}

/* Decodes the entry at *AT of the table, and moves *AT behind it. */
static int
load_entry (struct table_reader *rd, uint64_t *at, struct qcow2_snapshot *s,
            struct qcow2_snapshot_raw *raw)
{
  struct qcow2_wire_snapshot w;
  uint64_t strings_at, end;
  uint32_t extra_len;
  int r;

  r = need (rd, *at + sizeof w);
  if (r < 0)
    return r;
  memcpy (&w, rd->buf + *at, sizeof w);
  extra_len = be32_load (w.extra_len);
  if (extra_len > QCOW2_MAX_SNAPSHOT_EXTRA)
    return fault_corrupt (rd->f, rd->table_off + *at + 36, "extra data of a "
                          "snapshot is too long");
  strings_at = *at + sizeof w + extra_len;
  end = strings_at + be16_load (w.id_len) + be16_load (w.name_len);
  s->l1_off = be64_load (w.l1_off);
  s->l1_entries = be32_load (w.l1_entries);
  s->date_sec = be32_load (w.date_sec);
  s->date_nsec = be32_load (w.date_nsec);
  s->disk_size = rd->img->header.geo.virtual_size;
  s->vm_state_size = be32_load (w.vm_state_size);
  if ((r = check_entry (rd, s, *at)) < 0 || (r = need (rd, end)) < 0 ||
      (r = take_raw (rd, *at, end, raw)) < 0)
    return r;
  take_extra (&rd->img->header.geo, raw->bytes, extra_len, s);
  *at += raw->len;
  return take_strings (rd, rd->buf + strings_at, be16_load (w.id_len),
                       be16_load (w.name_len), s);
}

static int
load_entries (struct table_reader *rd, size_t nr)
{
  struct qcow2_snapshot_table *t = rd->t;
  uint64_t at = 0;
  size_t i;
  int r;

  for (i = 0; i < nr; i++) {
    t->nr++;                  /* what an entry has is freed, also after errors */
    r = load_entry (rd, &at, &t->v[i], &t->raw[i]);
    if (r < 0)
      return r;
    if (t->v[i].is_anchor && t->anchor < 0)
      t->anchor = i;
    else
      t->v[i].is_anchor = false;
  }
  t->raw_len = at;
  return 0;
}

/* --- Names that several have ----------------------------------------- */

struct named {                 /* a name or an id */
  const char *s;
  struct qcow2_snapshot *of;
};

/* Orders by string, equal ones by slot. */
static int
by_string (const void *a, const void *b)
{
  const struct named *x = a, *y = b;
  int c = strcmp (x->s, y->s);

  return c ? c : (x->of > y->of) - (x->of < y->of);
}

/* Makes the disks read-only whose string in V is the same as an earlier
 * one's. */
static void
lock_doubles (struct named *v, size_t nr)
{
  qsort (v, nr, sizeof *v, by_string);
  for (size_t i = 1; i < nr; i++)
    if (strcmp (v[i - 1].s, v[i].s) == 0)
      v[i].of->disk_flags &= ~QCOW2_DISK_WRITABLE;
}

/* Makes disks read-only that have the id or the name of an earlier entry: a
 * name must stand for one disk.  It sorts, so that the time for many entries is
 * bounded. */
static int
lock_doubtful (struct table_reader *rd)
{
  struct qcow2_snapshot_table *t = rd->t;
  CLEANUP_FREE struct named *v = NULL;
  bool any = false;

  for (size_t i = 0; i < t->nr && !any; i++)
    any = t->v[i].is_disk;
  if (!any)
    return 0;
  v = calloc (t->nr, sizeof *v);
  if (v == NULL)
    return no_memory (rd);
  for (size_t i = 0; i < t->nr; i++)
    v[i] = (struct named) { t->v[i].name, &t->v[i] };
  lock_doubles (v, t->nr);
  for (size_t i = 0; i < t->nr; i++)
    v[i] = (struct named) { t->v[i].id, &t->v[i] };
  lock_doubles (v, t->nr);
  return 0;
}

/* --- Load ------------------------------------------------------------ */

/* Reads NR entries at TABLE_OFF into T, which the caller frees, also after an
 * error. */
static int
load_table (struct qcow2_image *img, uint64_t table_off, size_t nr,
            struct qcow2_snapshot_table *t, struct fault *f)
{
  struct table_reader rd = {
    .img = img, .t = t, .table_off = table_off, .f = f,
  };
  int64_t size = io_size (img->io);
  int r;

  *t = (struct qcow2_snapshot_table) {
    .anchor = -1, .host_off = table_off,
    .max = img->writable ? QCOW2_MAX_SNAPSHOTS : nr,
  };
  assert (nr <= QCOW2_MAX_SNAPSHOTS);
  if (size < 0)
    return fault_io (f, -size, UINT64_MAX, "its size cannot be read: %s",
                     strerror (-size));
  rd.file_size = size;
  if (t->max == 0)
    return 0;
  t->v = calloc (t->max, sizeof *t->v);
  t->raw = calloc (t->max, sizeof *t->raw);
  if (t->v == NULL || t->raw == NULL)
    return no_memory (&rd);
  r = load_entries (&rd, nr);
  if (r == 0)
    r = lock_doubtful (&rd);
  for (size_t i = 0; i < t->nr; i++)
    t->nr_compress_on += qcow2_says_compress_on (&t->v[i]);
  free (rd.buf);
  return r;
}

int
qcow2_snapshot_load (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_snapshot_table *t = &img->snapshots;
  struct qcow2_header_fields *fields = &img->header.fields;
  int r;

  /* nr_snapshots is at most QCOW2_MAX_SNAPSHOTS. */
  r = load_table (img, fields->nr_snapshots ? fields->snapshots_off : 0,
                  fields->nr_snapshots, t, f);
  if (r < 0)
    return r;
  if (t->anchor >= 0) {
    fields->anchor_l1_off = t->v[t->anchor].l1_off;
    fields->anchor_l1_entries = t->v[t->anchor].l1_entries;
  }
  img->fields = *fields;
  return 0;
}

/* Returns whether the anchor in T is the one that the header fields name. */
static bool
has_anchor_of (const struct qcow2_snapshot_table *t,
               const struct qcow2_header_fields *fields)
{
  const struct qcow2_snapshot none = { 0 };
  const struct qcow2_snapshot *s = t->anchor >= 0 ? &t->v[t->anchor] : &none;

  return s->l1_entries == fields->anchor_l1_entries &&
    (s->l1_entries == 0 || s->l1_off == fields->anchor_l1_off);
}

/* Takes the table T over.  An image whose journal made its first disk has disks
 * from here on. */
static void
take_table (struct qcow2_image *img, const struct qcow2_snapshot_table *t)
{
  LOCK_FOR_SCOPE (&img->lock);

  qcow2_snapshot_free (&img->snapshots);
  img->snapshots = *t;
  for (size_t i = 0; i < t->nr; i++)
    if (t->v[i].is_disk)
      qcow2_begin_disks_locked (img);
}

int
qcow2_snapshot_reload (struct qcow2_image *img, struct fault *f)
{
  const struct qcow2_header_fields *fields = &img->fields;
  struct qcow2_snapshot_table t;
  int r;

  if ((fields->snapshots_off == img->snapshots.host_off &&
       fields->nr_snapshots == img->snapshots.nr) ||
      mutation (MUTATION_NO_RELOAD))
    return 0;
  r = load_table (img, fields->snapshots_off, fields->nr_snapshots, &t, f);
  if (r == 0 && !has_anchor_of (&t, fields))
    r = fault_corrupt (f, fields->snapshots_off, "the anchor snapshot in it is "
                       "another one than the journal says");
  if (r < 0) {
    qcow2_snapshot_free (&t);
    return r;
  }
  take_table (img, &t);
  return 0;
}

void
qcow2_snapshot_free (struct qcow2_snapshot_table *t)
{
  size_t i;

  for (i = 0; i < t->nr; i++) {
    free ((char *) t->v[i].id);
    free ((char *) t->v[i].name);
    free (t->raw[i].bytes);
  }
  free (t->v);
  free (t->raw);
  *t = (struct qcow2_snapshot_table) { .anchor = -1 };
}
