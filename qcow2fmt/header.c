/* SPDX-License-Identifier: BSD-3-Clause */
/* Decodes the first cluster.
 *
 * Owns the rules on what a header may contain.  A struct qcow2_header that this
 * file returns is valid by construction: every field is in range, products of
 * its fields fit in 64 bits, and nothing in it needs a feature that this
 * program lacks.  Whether the tables lie inside the file is checked in open.c,
 * which knows the file.
 *
 * The order is: shape first (magic, version, cluster size, header length), then
 * features, because an unknown feature may change the meaning of the rest and
 * "uses feature X" tells a user more than "L1 table too small"; then ranges.
 *
 * The functions depend on the bytes only: no I/O, no threads.  Building a
 * header is in header-build.c; compatible features are ignored on purpose, as
 * the specification allows.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "header-format.h"
#include "image.h"

#define KNOWN_INCOMPATIBLE                                              \
  (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |                      \
   QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION |              \
   QCOW2_INCOMPAT_EXTENDED_L2 | QCOW2_INCOMPAT_RECOVERY)

/* --- Extensions ----------------------------------------------------- */

struct qcow2_ext_walk
qcow2_ext_first (const uint8_t *buf, size_t len, uint32_t header_length)
{
  struct qcow2_wire_header w;
  uint64_t backing_off;
  size_t end = len;

  memcpy (&w, buf, sizeof w);
  backing_off = be64_load (w.backing_off);
  if (backing_off >= header_length && backing_off < len)
    end = backing_off;
  return (struct qcow2_ext_walk) {
    .buf = buf, .at = MIN_OF (header_length, end), .end = end,
  };
}

int
qcow2_ext_next (struct qcow2_ext_walk *w, struct qcow2_ext *e)
{
  struct qcow2_wire_ext wire;

  if (w->end - w->at < sizeof wire)
    return 0;
  memcpy (&wire, w->buf + w->at, sizeof wire);
  e->type = be32_load (wire.type);
  e->len = be32_load (wire.len);
  if (e->type == QCOW2_EXT_END)
    return 0;
  w->at += sizeof wire;
  if (e->len > w->end - w->at)
    return -EINVAL;
  e->data = w->buf + w->at;
  w->at += MIN_OF (round_up_pow2 (e->len, 8), w->end - w->at);
  return 1;
}

/* --- Shape ---------------------------------------------------------- */

static int
check_magic (const struct qcow2_wire_header *w, struct fault *f)
{
  uint32_t version = be32_load (w->version);

  if (memcmp (w, QCOW2_MAKING_MARK, sizeof QCOW2_MAKING_MARK) == 0)
    return fault_corrupt (f, 0, "is an image whose creation was interrupted: "
                          "create it again, with size= or qcow2-dedup create");
  if (be32_load (w->magic) != QCOW2_MAGIC)
    return fault_corrupt (f, 0, "is not a qcow2 image");
  if (version != 2 && version != 3)
    return fault_unsupported (f, "qcow version %u is not supported",
                              (unsigned) version);
  return 0;
}

int
qcow2_header_cluster_size (const uint8_t *buf, uint64_t *cluster_size,
                           struct fault *f)
{
  struct qcow2_wire_header w;
  uint32_t bits;
  int r;

  memcpy (&w, buf, sizeof w);
  r = check_magic (&w, f);
  if (r < 0)
    return r;
  bits = be32_load (w.cluster_bits);
  if (bits < QCOW2_MIN_CLUSTER_BITS || bits > QCOW2_MAX_CLUSTER_BITS)
    return fault_corrupt (f, 20, "cluster size 2^%u is not between 2^%d "
                          "and 2^%d", (unsigned) bits,
                          QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
  *cluster_size = UINT64_C (1) << bits;
  return 0;
}

/* Decodes the header length and the fields that version 2 does not have. */
static int
decode_version (const struct qcow2_wire_header *w, struct qcow2_header *h,
                unsigned *refcount_order, struct fault *f)
{
  struct qcow2_geometry *g = &h->geo;

  g->version = be32_load (w->version);
  if (g->version == 2) {
    h->header_length = QCOW2_V2_HEADER_LENGTH;
    *refcount_order = 4;
    return 0;
  }
  h->header_length = be32_load (w->header_length);
  if (h->header_length < QCOW2_V3_HEADER_LENGTH ||
      h->header_length > g->cluster_size || h->header_length % 8 != 0)
    return fault_corrupt (f, 100, "header length %u is invalid",
                          (unsigned) h->header_length);
  g->incompatible = be64_load (w->incompatible);
  g->compatible = be64_load (w->compatible);
  g->autoclear = be64_load (w->autoclear);
  g->has_data_file = (g->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
  g->data_file_raw = g->has_data_file &&
    (g->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) != 0;
  *refcount_order = be32_load (w->refcount_order);
  if (*refcount_order > 6)
    return fault_corrupt (f, 96, "refcount order %u is above 6",
                          *refcount_order);
  if (h->header_length > offsetof (struct qcow2_wire_header,
                                   compression_type))
    g->compression_type = w->compression_type;
  return 0;
}

static void
derive_geometry (struct qcow2_geometry *g, unsigned refcount_order)
{
  g->l2_entry_size = g->incompatible & QCOW2_INCOMPAT_EXTENDED_L2
    ? QCOW2_EXTENDED_L2_ENTRY : sizeof (be64);
  g->l2_entries = g->cluster_size / g->l2_entry_size;
  g->refcount_bits = 1u << refcount_order;
  g->refcount_max = UINT64_MAX >> (64 - g->refcount_bits);
  g->refblock_entries = g->cluster_size * 8 >> refcount_order;
  g->nr_clusters = div_round_up (g->virtual_size, g->cluster_size);
}

static int
decode_shape (const uint8_t *buf, const struct qcow2_wire_header *w,
              struct qcow2_header *h, struct fault *f)
{
  unsigned refcount_order = 4;
  int r;

  r = qcow2_header_cluster_size (buf, &h->geo.cluster_size, f);
  if (r < 0)
    return r;
  h->geo.cluster_bits = be32_load (w->cluster_bits);
  h->geo.virtual_size = be64_load (w->size);
  r = decode_version (w, h, &refcount_order, f);
  if (r < 0)
    return r;
  derive_geometry (&h->geo, refcount_order);
  return 0;
}

/* --- Features ------------------------------------------------------- */

/* Finds the name that the image itself gives to an incompatible bit, and makes
 * it safe to print.  False if it has none. */
static bool
feature_name (const struct qcow2_ext *table, unsigned bit, char *out,
              size_t out_len)
{
  struct qcow2_wire_feature e;
  size_t at, i;

  for (at = 0; table->len - at >= sizeof e; at += sizeof e) {
    memcpy (&e, table->data + at, sizeof e);
    if (e.type != 0 || e.bit != bit || e.name[0] == '\0')
      continue;
    snprintf (out, out_len, "%.*s", (int) sizeof e.name, e.name);
    for (i = 0; out[i]; i++)
      if (out[i] < ' ' || out[i] > '~')
        out[i] = '?';
    return true;
  }
  return false;
}

static struct qcow2_ext
find_feature_table (const uint8_t *buf, size_t len, uint32_t header_length)
{
  struct qcow2_ext_walk w = qcow2_ext_first (buf, len, header_length);
  struct qcow2_ext e;

  while (qcow2_ext_next (&w, &e) == 1)
    if (e.type == QCOW2_EXT_FEATURE_NAMES)
      return e;
  return (struct qcow2_ext) { 0 };
}

static int
refuse_unknown (const uint8_t *buf, size_t len, const struct qcow2_header *h,
                struct fault *f)
{
  uint64_t unknown = h->geo.incompatible & ~KNOWN_INCOMPATIBLE;
  struct qcow2_ext table;
  char list[192] = "", name[64];
  size_t at = 0;
  unsigned bit;

  if (unknown == 0)
    return 0;
  table = find_feature_table (buf, len, h->header_length);
  for (bit = 0; bit < 64 && at < sizeof list; bit++) {
    if (!(unknown >> bit & 1))
      continue;
    if (!feature_name (&table, bit, name, sizeof name))
      snprintf (name, sizeof name, "bit %u", bit);
    at += snprintf (list + at, sizeof list - at, "%s%s", at ? ", " : "",
                    name);
  }
  return fault_unsupported (f, "uses features that are not supported: %s",
                            list);
}

static int
check_encryption (const struct qcow2_header *h, struct fault *f)
{
  switch (h->crypt_method) {
  case 0:
    return 0;
  case 1:
    return fault_unsupported (f, "AES encryption is not supported");
  case 2:
    return fault_unsupported (f, "LUKS encryption is not supported");
  default:
    return fault_unsupported (f, "encryption method %u is not supported",
                              (unsigned) h->crypt_method);
  }
}

static int
check_compression (const struct qcow2_geometry *g, struct fault *f)
{
  bool bit = g->incompatible & QCOW2_INCOMPAT_COMPRESSION;

  if (bit != (g->compression_type != 0))
    return fault_corrupt (f, 104, "compression type %u contradicts the "
                          "compression type feature bit",
                          g->compression_type);
  if (g->compression_type > 1)
    return fault_unsupported (f, "compression type %u is not supported",
                              g->compression_type);
  return 0;
}

static int
check_features (const uint8_t *buf, size_t len, const struct qcow2_header *h,
                struct fault *f)
{
  uint64_t bits = h->geo.incompatible;
  int r;

  r = refuse_unknown (buf, len, h, f);
  if (r < 0)
    return r;
  if ((bits & QCOW2_INCOMPAT_EXTENDED_L2) &&
      h->geo.cluster_size < QCOW2_MIN_EXTENDED_CLUSTER)
    return fault_corrupt (f, 20, "clusters of %llu bytes are too small for "
                          "extended L2 entries",
                          (unsigned long long) h->geo.cluster_size);
  r = check_encryption (h, f);
  if (r < 0)
    return r;
  return check_compression (&h->geo, f);
}

/* --- Ranges --------------------------------------------------------- */

static bool
aligned (const struct qcow2_geometry *g, uint64_t off)
{
  return off % g->cluster_size == 0 && off < QCOW2_MAX_HOST_OFF;
}

static int
check_l1 (const struct qcow2_header *h, struct fault *f)
{
  const struct qcow2_geometry *g = &h->geo;
  uint64_t needed = div_round_up (g->nr_clusters, g->l2_entries);

  if (h->l1_entries > QCOW2_MAX_L1_BYTES / sizeof (be64))
    return fault_corrupt (f, 36, "L1 table of %u entries is too large",
                          (unsigned) h->l1_entries);
  if (h->l1_entries < needed)
    return fault_corrupt (f, 36, "L1 table of %u entries is too small for "
                          "the disk", (unsigned) h->l1_entries);
  if (h->l1_entries > 0 && (h->l1_off == 0 || !aligned (g, h->l1_off)))
    return fault_corrupt (f, 40, "L1 table offset is invalid");
  return 0;
}

static int
check_reftable (const struct qcow2_header *h, struct fault *f)
{
  const struct qcow2_header_fields *t = &h->fields;

  if (t->reftable_off == 0 || !aligned (&h->geo, t->reftable_off))
    return fault_corrupt (f, 48, "refcount table offset is invalid");
  if (t->reftable_clusters == 0 ||
      t->reftable_clusters > QCOW2_MAX_REFTABLE_BYTES / h->geo.cluster_size)
    return fault_corrupt (f, 56, "refcount table size of %u clusters is "
                          "invalid", (unsigned) t->reftable_clusters);
  return 0;
}

static int
check_snapshots (const struct qcow2_header *h, struct fault *f)
{
  const struct qcow2_header_fields *t = &h->fields;

  if (t->nr_snapshots > QCOW2_MAX_SNAPSHOTS)
    return fault_corrupt (f, 60, "%u snapshots are too many",
                          (unsigned) t->nr_snapshots);
  if (t->nr_snapshots > 0 &&
      (t->snapshots_off == 0 || !aligned (&h->geo, t->snapshots_off)))
    return fault_corrupt (f, 64, "snapshot table offset is invalid");
  return 0;
}

static int
decode_tables (const struct qcow2_wire_header *w, struct qcow2_header *h,
               struct fault *f)
{
  int r;

  h->l1_entries = be32_load (w->l1_entries);
  h->l1_off = be64_load (w->l1_off);
  h->fields.reftable_off = be64_load (w->reftable_off);
  h->fields.reftable_clusters = be32_load (w->reftable_clusters);
  h->fields.nr_snapshots = be32_load (w->nr_snapshots);
  h->fields.snapshots_off = be64_load (w->snapshots_off);
  if (h->geo.virtual_size > INT64_MAX)
    return fault_corrupt (f, 24, "disk size is too large");
  if ((r = check_l1 (h, f)) < 0 || (r = check_reftable (h, f)) < 0)
    return r;
  return check_snapshots (h, f);
}

static int
decode_backing (const uint8_t *buf, size_t len,
                const struct qcow2_wire_header *w, struct qcow2_header *h,
                struct fault *f)
{
  uint64_t off = be64_load (w->backing_off);
  uint32_t name_len = be32_load (w->backing_len);

  if (off == 0 || name_len == 0)
    return 0;
  if (off < h->header_length || off > len)
    return fault_corrupt (f, 8, "backing file name is not in the first "
                          "cluster");
  if (name_len > QCOW2_MAX_BACKING_NAME || name_len > len - off)
    return fault_corrupt (f, 16, "backing file name of %u bytes is too long",
                          (unsigned) name_len);
  if (memchr (buf + off, '\0', name_len))
    return fault_corrupt (f, off, "backing file name contains a zero byte");
  memcpy (h->backing_name, buf + off, name_len);
  h->backing_off = off;
  h->backing_len = name_len;
  h->geo.has_backing = true;
  return 0;
}

/* --- Extensions that are understood --------------------------------- */

static int
take_backing_format (struct qcow2_header *h, const struct qcow2_ext *e,
                     uint64_t off, struct fault *f)
{
  if (e->len >= sizeof h->backing_format)
    return fault_corrupt (f, off, "backing format name of %u bytes is too "
                          "long", (unsigned) e->len);
  memcpy (h->backing_format, e->data, e->len);
  h->backing_format[e->len] = '\0';
  return 0;
}

static void
take_store (struct qcow2_header *h, const struct qcow2_ext *e)
{
  if (e->len != sizeof h->store_ext)
    return;
  memcpy (h->store_ext, e->data, sizeof h->store_ext);
  h->has_store_ext = true;
}

static int
take_data_file (struct qcow2_header *h, const struct qcow2_ext *e,
                uint64_t off, struct fault *f)
{
  if (e->len > QCOW2_MAX_BACKING_NAME || memchr (e->data, '\0', e->len))
    return fault_corrupt (f, off, "data file name is too long, or contains a "
                          "zero byte");
  memcpy (h->data_file_name, e->data, e->len);
  h->data_file_name[e->len] = '\0';
  return 0;
}

static void
take_bitmaps (struct qcow2_header *h, const struct qcow2_ext *e)
{
  h->bitmaps_ext_len = e->len;
  memcpy (h->bitmaps_ext, e->data, MIN_OF (e->len, sizeof h->bitmaps_ext));
}

static int
decode_extensions (const uint8_t *buf, size_t len, struct qcow2_header *h,
                   struct fault *f)
{
  struct qcow2_ext_walk w = qcow2_ext_first (buf, len, h->header_length);
  struct qcow2_ext e;
  int r;

  while ((r = qcow2_ext_next (&w, &e)) == 1) {
    if (e.type == QCOW2_EXT_BACKING_FORMAT)
      r = take_backing_format (h, &e, e.data - buf, f);
    else if (e.type == QCOW2_EXT_DATA_FILE)
      r = take_data_file (h, &e, e.data - buf, f);
    else if (e.type == QCOW2_EXT_STORE)
      take_store (h, &e);
    else if (e.type == QCOW2_EXT_BITMAPS)
      take_bitmaps (h, &e);
    if (r < 0)
      return r;
  }
  if (r < 0)
    return fault_corrupt (f, w.at, "a header extension is longer than the "
                          "room for extensions");
  return 0;
}

int
qcow2_header_decode (const uint8_t *buf, size_t len, struct qcow2_header *h,
                     struct fault *f)
{
  struct qcow2_wire_header w;
  int r;

  assert (len >= 1 << QCOW2_MIN_CLUSTER_BITS);
  memset (h, 0, sizeof *h);
  memcpy (&w, buf, sizeof w);
  h->crypt_method = be32_load (w.crypt_method);
  r = decode_shape (buf, &w, h, f);
  if (r < 0)
    return r;
  len = MIN_OF (len, h->geo.cluster_size);
  if (h->header_length > len)
    return fault_corrupt (f, 100, "header is truncated");
  if ((r = check_features (buf, len, h, f)) < 0 ||
      (r = decode_tables (&w, h, f)) < 0 ||
      (r = decode_backing (buf, len, &w, h, f)) < 0 ||
      (r = decode_extensions (buf, len, h, f)) < 0)
    return r;
  return 0;
}
