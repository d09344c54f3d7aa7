/* SPDX-License-Identifier: BSD-3-Clause */
/* Journal records: coding.
 *
 * Owns the byte layout of every record (docs/on-disk.md 3.2).  The layouts
 * are a table, in the order and with the widths of that document, and one
 * loop each way follows it: encoding and decoding can't disagree.
 *
 * A decoded record has a known type, exactly the size of that type, and
 * counts above 0.  Whether its numbers fit an image is not known here.
 *
 * Pure functions; safe from any thread.
 */
#include <assert.h>
#include <errno.h>

#include "record.h"
#include "wire.h"

/* One field: where it is in struct dedup_record, how wide there, how wide on
 * disk.  A field of 32 bytes is a hash, others are big-endian numbers. */
struct field {
  uint16_t at;
  uint8_t width;
  uint8_t wire;       /* 0 ends the list */
};

#define FIELD(member, wire_bytes)                               \
  { offsetof (struct dedup_record, member),                     \
    sizeof (((struct dedup_record *) 0)->member), (wire_bytes) }

struct layout {
  uint8_t size;       /* 0: no such type */
  struct field fields[7];
};

static const struct layout layouts[] = {
  [DEDUP_REC_END] = { 2, { { 0 } } },
  [DEDUP_REC_HASH] = { 52, {
      FIELD (root, 2), FIELD (hash, 32), FIELD (host_idx, 8),
      FIELD (guest_idx, 8) } },
  [DEDUP_REC_WRITE] = { 28, {
      FIELD (root, 2), FIELD (checksum, 8), FIELD (host_idx, 8),
      FIELD (guest_idx, 8) } },
  [DEDUP_REC_INDEX] = { 42, { FIELD (hash, 32), FIELD (host_idx, 8) } },
  [DEDUP_REC_DELETE] = { 34, { FIELD (hash, 32) } },
  [DEDUP_REC_L2] = { 24, {
      FIELD (change.root, 2), FIELD (change.guest_idx, 8),
      FIELD (change.entry, 8), FIELD (change.count, 4) } },
  [DEDUP_REC_REFCOUNT] = { 23, {
      FIELD (change.host_idx, 8), FIELD (change.refcount, 8),
      FIELD (change.anchored, 1), FIELD (change.count, 4) } },
  [DEDUP_REC_L2TABLE] = { 24, {
      FIELD (change.root, 2), FIELD (change.table_idx, 4),
      FIELD (change.host_off, 8), FIELD (change.source_off, 8) } },
  [DEDUP_REC_REFBLOCK] = { 18, {
      FIELD (change.table_idx, 8), FIELD (change.host_off, 8) } },
  [DEDUP_REC_ANCHORTABLE] = { 14, {
      FIELD (change.table_idx, 4), FIELD (change.host_off, 8) } },
  [DEDUP_REC_FREEZE] = { 2, { { 0 } } },
  [DEDUP_REC_HEADER] = { 38, {
      FIELD (change.header.reftable_off, 8),
      FIELD (change.header.reftable_clusters, 4),
      FIELD (change.header.nr_snapshots, 4),
      FIELD (change.header.snapshots_off, 8),
      FIELD (change.header.anchor_l1_off, 8),
      FIELD (change.header.anchor_l1_entries, 4) } },
  [DEDUP_REC_BITMAP] = { 18, {
      FIELD (change.table_idx, 8), FIELD (change.host_off, 8) } },
};
#define NR_LAYOUTS (sizeof layouts / sizeof layouts[0])

/* Records that carry a format change. */
static const struct {
  bool any;
  enum qcow2_change_type type;
} changes[] = {
  [DEDUP_REC_L2] = { true, QCOW2_CHANGE_L2 },
  [DEDUP_REC_REFCOUNT] = { true, QCOW2_CHANGE_REFCOUNT },
  [DEDUP_REC_L2TABLE] = { true, QCOW2_CHANGE_L2_TABLE },
  [DEDUP_REC_REFBLOCK] = { true, QCOW2_CHANGE_REFBLOCK },
  [DEDUP_REC_ANCHORTABLE] = { true, QCOW2_CHANGE_ANCHOR_TABLE },
  [DEDUP_REC_HEADER] = { true, QCOW2_CHANGE_HEADER },
  [DEDUP_REC_BITMAP] = { true, QCOW2_CHANGE_BITMAP },
};
#define NR_CHANGES (sizeof changes / sizeof changes[0])

/* Numbers of 1, 2, 4 or 8 bytes. */
static uint64_t
get_number (const uint8_t *wire, unsigned bytes)
{
  be16 v16;
  be32 v32;
  be64 v64;

  switch (bytes) {               /* a replay reads millions of them */
  case 1: return *wire;
  case 2: memcpy (&v16, wire, sizeof v16); return be16_load (v16);
  case 4: memcpy (&v32, wire, sizeof v32); return be32_load (v32);
  default: memcpy (&v64, wire, sizeof v64); return be64_load (v64);
  }
}

static void
put_number (uint8_t *wire, unsigned bytes, uint64_t v)
{
  be16 v16 = be16_make ((uint16_t) v);
  be32 v32 = be32_make ((uint32_t) v);
  be64 v64 = be64_make (v);

  /* No number is too large for its field. */
  assert (bytes == 8 || v >> 8 * bytes == 0);
  switch (bytes) {
  case 1: *wire = (uint8_t) v; break;
  case 2: memcpy (wire, &v16, sizeof v16); break;
  case 4: memcpy (wire, &v32, sizeof v32); break;
  default: memcpy (wire, &v64, sizeof v64); break;
  }
}

static uint64_t
load_member (const void *p, unsigned width)
{
  uint16_t v16;
  uint32_t v32;
  uint64_t v64;

  switch (width) {
  case 1: return *(const uint8_t *) p;
  case 2: memcpy (&v16, p, sizeof v16); return v16;
  case 4: memcpy (&v32, p, sizeof v32); return v32;
  default: memcpy (&v64, p, sizeof v64); return v64;
  }
}

static void
store_member (void *p, unsigned width, uint64_t v)
{
  uint16_t v16 = (uint16_t) v;
  uint32_t v32 = (uint32_t) v;

  switch (width) {
  case 1: *(uint8_t *) p = (uint8_t) v; break;
  case 2: memcpy (p, &v16, sizeof v16); break;
  case 4: memcpy (p, &v32, sizeof v32); break;
  default: memcpy (p, &v, sizeof v); break;
  }
}

size_t
dedup_record_encode (const struct dedup_record *r,
                     uint8_t buf[DEDUP_REC_MAX])
{
  const struct layout *l;
  uint8_t *p = buf + 2;

  buf[1] = (uint8_t) r->type;
  if (r->type == DEDUP_REC_NONE)
    return buf[0] = 2;
  assert (r->type < NR_LAYOUTS && layouts[r->type].size > 0);
  l = &layouts[r->type];
  buf[0] = l->size;

  for (const struct field *f = l->fields; f->wire; p += f->wire, f++) {
    const uint8_t *member = (const uint8_t *) r + f->at;

    if (f->wire == sizeof r->hash)
      memcpy (p, member, f->wire);
    else
      put_number (p, f->wire, load_member (member, f->width));
  }
  assert ((size_t) (p - buf) == l->size);
  return l->size;
}

int
dedup_record_check (const uint8_t *buf, size_t len)
{
  static const uint8_t none[4];

  if (len < 2 || buf[0] < 2 || buf[0] > len)
    return -EBADMSG;
  if (buf[1] == DEDUP_REC_NONE)
    return buf[0];
  if (buf[1] >= NR_LAYOUTS || buf[0] != layouts[buf[1]].size)
    return -EBADMSG;    /* unknown types have size 0, which none has */
  /* A bool must hold 0 or 1; further flag bits are not ours. */
  if (buf[1] == DEDUP_REC_REFCOUNT && buf[18] > 1)
    return -EBADMSG;
  /* Both end with the number of clusters. */
  if ((buf[1] == DEDUP_REC_REFCOUNT || buf[1] == DEDUP_REC_L2) &&
      memcmp (buf + buf[0] - sizeof none, none, sizeof none) == 0)
    return -EBADMSG;
  return buf[0];
}

static void
decode_fields (const struct layout *l, const uint8_t *p,
               struct dedup_record *r)
{
  for (const struct field *f = l->fields; f->wire; p += f->wire, f++) {
    uint8_t *member = (uint8_t *) r + f->at;

    if (f->wire == sizeof r->hash)
      memcpy (member, p, f->wire);
    else if (f->at == offsetof (struct dedup_record, change.anchored))
      r->change.anchored = *p & 1;
    else
      store_member (member, f->width, get_number (p, f->wire));
  }
}

int
dedup_record_decode (const uint8_t *buf, size_t len, struct dedup_record *r)
{
  int size = dedup_record_check (buf, len);

  memset (r, 0, sizeof *r);
  if (size < 0)
    return size;
  r->type = buf[1];
  if (r->type == DEDUP_REC_NONE)
    return size;
  decode_fields (&layouts[r->type], buf + 2, r);
  if (r->type < NR_CHANGES && changes[r->type].any)
    r->change.type = changes[r->type].type;
  return size;
}

void
dedup_record_of_change (const struct qcow2_change *c, struct dedup_record *r)
{
  memset (r, 0, sizeof *r);
  r->change = *c;
  for (size_t i = 0; i < NR_CHANGES; i++)
    if (changes[i].any && changes[i].type == c->type)
      r->type = (enum dedup_record_type) i;
  assert (r->type != 0);
}
