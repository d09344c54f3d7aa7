/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the snapshot table: the input is the table, in the plain image.  A
 * table that loads is encoded again with an anchor, and loads again with all
 * the other snapshots.  So does each disk, with all of its fields.
 */
#include "fuzz.h"

#include "image.h"

#define TABLE_AT (16 * PLAIN_CLUSTER)

static void
put32 (uint8_t *p, uint32_t v)
{
  for (int i = 0; i < 4; i++)
    p[i] = (uint8_t) (v >> (24 - 8 * i));
}

/* The plain image with TABLE of NR entries. */
static struct io_store *
image_with (const uint8_t *table, size_t len, uint32_t nr)
{
  uint8_t plain[PLAIN_BYTES];
  struct io_store *io;

  make_plain (plain);
  put32 (plain + 60, nr);
  put32 (plain + 68, TABLE_AT);
  io = store_of (plain, sizeof plain);
  MUST (io_pwrite (io, table, len, TABLE_AT) == 0);
  return io;
}

static int
open_image (struct io_store *io, struct qcow2_image **img)
{
  const struct qcow2_open_params p = {
    .path = "fuzz", .cache_bytes = 1 << 16,
  };
  struct fault f = { 0 };
  int r = qcow2_open (io, &p, img, &f);

  MUST (r == 0 || f.msg[0]);
  return r;
}

/* Encode with an anchor; all others are there afterwards, as they were. */
static void
encode_again (struct qcow2_image *img)
{
  struct qcow2_snapshot_table *t = &img->snapshots, *u;
  struct qcow2_image *again;
  struct io_store *io;
  uint8_t *buf;
  uint32_t nr;
  size_t len;

  if (qcow2_snapshot_encode (img, 0x4000, 1, &buf, &len, &nr) < 0)
    return;
  MUST (nr == t->nr + (t->anchor < 0));
  io = image_with (buf, len, nr);
  MUST (io_pwrite (io, "", 1, 0x10000 + len) == 0);
  MUST (open_image (io, &again) == 0);
  u = &again->snapshots;
  MUST (u->nr == nr && u->anchor >= 0);
  for (size_t i = 0; i < t->nr; i++)
    MUST ((int) i == t->anchor || (strcmp (t->v[i].name, u->v[i].name) == 0 &&
                                   t->v[i].l1_off == u->v[i].l1_off &&
                                   t->v[i].disk_size == u->v[i].disk_size));
  qcow2_close (again);
  io_close (io);
  free (buf);
}

/* Returns whether A and B have equal fields. */
static bool
same_disk (const struct qcow2_snapshot *a, const struct qcow2_snapshot *b)
{
  return strcmp (a->id, b->id) == 0 && strcmp (a->name, b->name) == 0 &&
    a->l1_off == b->l1_off && a->l1_entries == b->l1_entries &&
    a->disk_size == b->disk_size && a->vm_state_size == b->vm_state_size &&
    a->date_sec == b->date_sec && a->date_nsec == b->date_nsec &&
    a->is_disk == b->is_disk && a->disk_flags == b->disk_flags &&
    a->created == b->created && a->compress == b->compress && memcmp (a->uuid, b->uuid, 16) == 0 &&
    memcmp (a->origin, b->origin, 16) == 0;
}

/* Encodes a disk's entry and reads it again: it has the same fields. */
static void
disk_again (const struct qcow2_snapshot *s,
            const struct qcow2_snapshot_raw *raw)
{
  struct qcow2_snapshot_raw out;
  struct qcow2_image *again;
  struct io_store *io;

  MUST (qcow2_snapshot_encode_disk (s, raw, &out) == 0);
  io = image_with (out.bytes, out.len, 1);
  MUST (open_image (io, &again) == 0);
  MUST (again->snapshots.nr == 1 && same_disk (s, &again->snapshots.v[0]));
  qcow2_close (again);
  io_close (io);
  free (out.bytes);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct qcow2_image *img;
  struct io_store *io;
  struct input in = { data, len };
  uint32_t nr = (uint32_t) take (&in, 2);

  if (len < 2 || len > 1 << 16)
    return -1;
  io = image_with (in.p, in.left, nr);
  look_at_image (io);
  if (open_image (io, &img) == 0) {
    encode_again (img);
    for (size_t i = 0; i < img->snapshots.nr && i < 4; i++)
      if (img->snapshots.v[i].is_disk)
        disk_again (&img->snapshots.v[i], &img->snapshots.raw[i]);
    qcow2_close (img);
  }
  io_close (io);
  return 0;
}
