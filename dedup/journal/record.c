/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes journal records.
 *
 * Owns the byte layout of every record (docs/on-disk.md 3.2).  The layouts
 * are a table, in the order and with the widths of that document, which one
 * loop follows to encode and one to decode: the two can't disagree.
 *
 * A decoded record has a known type, exactly the size of that type, and
 * counts above 0.  Whether its numbers fit an image is not known here.
 *
 * Functions of their arguments: any thread may call them.
 */
#include <assert.h>
#include <errno.h>

#include "record.h"
#include "wire.h"

/* Describes one field: its offset in struct dedup_record, and its width there
 * and on disk.  A field of 32 bytes is a hash, others are big-endian
 * numbers. */
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
  [DEDUP_REC_ENTRY] = { 23, {
      FIELD (change.place, 8), FIELD (change.entry, 8),
      FIELD (change.count, 4), FIELD (entry_kind, 1) } },
  [DEDUP_REC_TABLE] = { 18, {
      FIELD (change.host_off, 8), FIELD (change.source_off, 8) } },
  [DEDUP_REC_HASHAT] = { 50, {
      FIELD (hash, 32), FIELD (host_idx, 8), FIELD (place, 8) } },
  [DEDUP_REC_WRITEAT] = { 26, {
      FIELD (checksum, 8), FIELD (host_idx, 8), FIELD (place, 8) } },
  [DEDUP_REC_PACKED] = { 52, {
      FIELD (root, 2), FIELD (hash, 32), FIELD (host_idx, 8),
      FIELD (guest_idx, 8) } },
  [DEDUP_REC_PACKEDAT] = { 50, {
      FIELD (hash, 32), FIELD (host_idx, 8), FIELD (place, 8) } },
};
#define NR_LAYOUTS (sizeof layouts / sizeof layouts[0])

/* Maps the records that carry a format change to its type. */
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
  [DEDUP_REC_ENTRY] = { true, QCOW2_CHANGE_ENTRY },
  [DEDUP_REC_TABLE] = { true, QCOW2_CHANGE_TABLE },
};
#define NR_CHANGES (sizeof changes / sizeof changes[0])

/* Loads a big-endian number of 1, 2, 4 or 8 bytes. */
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

  /* Our own bug if a number is too large for its field. */
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

/* --- REFLIST -------------------------------------------------------------- */

/* The list is a pair of numbers for each cluster: by how much its index is
 * higher than the one before (0 for the first), and twice its refcount, plus 1
 * if it is anchored.  A number is stored in groups of 7 bits, the lowest first;
 * all bytes but its last have bit 7 set. */

#define LIST_AT 11              /* behind size, type, first index and length */
#define MAX_PAIR 20             /* bytes of two numbers */

static size_t
put_varint (uint8_t *p, uint64_t v)
{
  size_t n = 0;

  for (; v >= 128; v >>= 7)
    p[n++] = (uint8_t) (v | 128);
  p[n++] = (uint8_t) v;
  return n;
}

/* Returns how many bytes the number at P takes; 0 if it does not end within LEN
 * bytes, or has more than 63 bits. */
static size_t
get_varint (const uint8_t *p, size_t len, uint64_t *v)
{
  *v = 0;
  for (size_t n = 0; n < len && n < 9; n++) {
    *v |= (uint64_t) (p[n] & 127) << 7 * n;
    if (p[n] < 128)
      return n + 1;
  }
  return 0;
}

static size_t
put_pair (uint8_t out[MAX_PAIR], uint64_t gap, uint64_t refcount, bool anchored)
{
  const size_t n = put_varint (out, gap);

  return n + put_varint (out + n, refcount * 2 + anchored);
}

/* Returns how many bytes the pair at P takes, 0 if it is none. */
static size_t
get_pair (const uint8_t *p, size_t len, uint64_t *gap, uint64_t *v)
{
  const size_t n = get_varint (p, len, gap);
  const size_t m = n ? get_varint (p + n, len - n, v) : 0;

  return m ? n + m : 0;
}

void
dedup_reflist_begin (struct dedup_record *r, uint64_t host_idx,
                     uint64_t refcount, bool anchored)
{
  *r = (struct dedup_record) { .type = DEDUP_REC_REFLIST,
                               .host_idx = host_idx };
  r->list.len = (uint8_t) put_pair (r->list.bytes, 0, refcount, anchored);
}

size_t
dedup_reflist_extend (uint8_t *rec, size_t room, uint64_t gap,
                      uint64_t refcount, bool anchored)
{
  uint8_t pair[MAX_PAIR];
  size_t n;

  assert (rec[1] == DEDUP_REC_REFLIST && gap > 0);
  if (gap >> 32 != 0)           /* a record of its own is as short */
    return 0;
  n = put_pair (pair, gap, refcount, anchored);
  if (n > room || rec[0] + n > DEDUP_REC_MAX)
    return 0;
  memcpy (rec + rec[0], pair, n);
  rec[0] = (uint8_t) (rec[0] + n);
  rec[LIST_AT - 1] = (uint8_t) (rec[LIST_AT - 1] + n);
  return n;
}

bool
dedup_reflist_next (const struct dedup_record *r, size_t *at,
                    struct qcow2_change *c)
{
  uint64_t gap = 0, v = 0;

  if (*at >= r->list.len)
    return false;
  if (*at == 0)
    *c = (struct qcow2_change) { .type = QCOW2_CHANGE_REFCOUNT, .count = 1,
                                 .host_idx = r->host_idx };
  *at += get_pair (r->list.bytes + *at, r->list.len - *at, &gap, &v);
  c->host_idx += gap;           /* checked when it was decoded */
  c->refcount = v >> 1;
  c->anchored = v & 1;
  return true;
}

/* Checks the list of a record of SIZE bytes: whole pairs, the first with gap 0,
 * the others without, and no index past 64 bits. */
static bool
list_is_valid (const uint8_t *buf, size_t size)
{
  uint64_t gap, v, idx;
  size_t at = LIST_AT, n;

  if (size <= LIST_AT || buf[LIST_AT - 1] != size - LIST_AT)
    return false;
  for (idx = get_number (buf + 2, 8); at < size; at += n, idx += gap) {
    n = get_pair (buf + at, size - at, &gap, &v);
    if (n == 0 || (gap == 0) != (at == LIST_AT) || gap > UINT64_MAX - idx)
      return false;
  }
  return true;
}

static size_t
encode_list (const struct dedup_record *r, uint8_t *buf)
{
  const size_t size = LIST_AT + (size_t) r->list.len;

  assert (r->list.len > 0 && r->list.len <= DEDUP_LIST_MAX);
  buf[0] = (uint8_t) size;
  put_number (buf + 2, 8, r->host_idx);
  buf[LIST_AT - 1] = r->list.len;
  memcpy (buf + LIST_AT, r->list.bytes, r->list.len);
  return size;
}

static void
decode_list (const uint8_t *buf, struct dedup_record *r)
{
  r->host_idx = get_number (buf + 2, 8);
  r->list.len = buf[LIST_AT - 1];
  memcpy (r->list.bytes, buf + LIST_AT, r->list.len);
}

/* --- Records --------------------------------------------------------------- */

size_t
dedup_record_encode (const struct dedup_record *r,
                     uint8_t buf[DEDUP_REC_MAX])
{
  const struct layout *l;
  uint8_t *p = buf + 2;

  buf[1] = (uint8_t) r->type;
  if (r->type == DEDUP_REC_NONE)
    return buf[0] = 2;
  if (r->type == DEDUP_REC_REFLIST)
    return encode_list (r, buf);
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

/* Returns whether the count of a record of SIZE bytes is 0, which no record
 * means. */
static bool
counts_nothing (const uint8_t *buf, size_t size)
{
  static const uint8_t none[4];

  switch (buf[1]) {
  case DEDUP_REC_REFCOUNT:
  case DEDUP_REC_L2:            /* both end with it */
    return memcmp (buf + size - sizeof none, none, sizeof none) == 0;
  case DEDUP_REC_ENTRY:
    return memcmp (buf + 18, none, sizeof none) == 0;
  default:
    return false;
  }
}

/* Returns whether the descriptor of a record, which begins at P, is that of
 * compressed data: bit 62 is set, and bit 63 is not. */
static bool
is_descriptor (const uint8_t *p)
{
  return *p >> 6 == 1;
}

int
dedup_record_check (const uint8_t *buf, size_t len)
{
  if (len < 2 || buf[0] < 2 || buf[0] > len)
    return -EBADMSG;
  if (buf[1] == DEDUP_REC_NONE)
    return buf[0];
  if (buf[1] == DEDUP_REC_REFLIST)
    return buf[0] <= DEDUP_REC_MAX && list_is_valid (buf, buf[0]) ? buf[0]
      : -EBADMSG;
  if (buf[1] >= NR_LAYOUTS || buf[0] != layouts[buf[1]].size)
    return -EBADMSG;    /* unknown types have size 0, as no record does */
  /* A bool must hold 0 or 1; further flag bits belong to other versions. */
  if (buf[1] == DEDUP_REC_REFCOUNT && buf[18] > 1)
    return -EBADMSG;
  if (buf[1] == DEDUP_REC_ENTRY && buf[22] > 1)
    return -EBADMSG;
  if ((buf[1] == DEDUP_REC_PACKED && !is_descriptor (buf + 36)) ||
      (buf[1] == DEDUP_REC_PACKEDAT && !is_descriptor (buf + 34)))
    return -EBADMSG;
  return counts_nothing (buf, buf[0]) ? -EBADMSG : buf[0];
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
  if (r->type == DEDUP_REC_REFLIST) {
    decode_list (buf, r);
    return size;
  }
  decode_fields (&layouts[r->type], buf + 2, r);
  if (r->type < NR_CHANGES && changes[r->type].any)
    r->change.type = changes[r->type].type;
  r->change.is_l1 = r->type == DEDUP_REC_ENTRY && r->entry_kind == 0;
  return size;
}

void
dedup_record_of_change (const struct qcow2_change *c, struct dedup_record *r)
{
  memset (r, 0, sizeof *r);
  r->change = *c;
  if (c->type == QCOW2_CHANGE_L2 && c->place != 0)
    r->change.type = QCOW2_CHANGE_ENTRY;
  for (size_t i = 0; i < NR_CHANGES; i++)
    if (changes[i].any && changes[i].type == r->change.type)
      r->type = (enum dedup_record_type) i;
  assert (r->type != 0);
  r->entry_kind = r->type == DEDUP_REC_ENTRY && !r->change.is_l1;
}
