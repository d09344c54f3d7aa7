/* SPDX-License-Identifier: BSD-3-Clause */
/* Builds the first cluster of a new image, and rebuilds that of an image which
 * gets a store.
 *
 * Promises to keep what this program does not understand: fields past the known
 * header, unknown extensions, other feature names, and the backing name.  A
 * header that header.c accepted is still accepted after a rebuild, and decodes
 * to the values that were put in.  The functions depend on the bytes only: no
 * I/O, no threads.
 *
 * Room is short with clusters of 512 bytes.  No program needs the feature names
 * to read the image, so they are shortened first: all names, then bit 48
 * alone, then none.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "header-format.h"
#include "image.h"

struct out {
  uint8_t *buf;
  size_t len, max;
  bool full;                   /* something did not fit; sticky */
};

static void
put (struct out *o, const void *data, size_t len)
{
  if (o->full || len > o->max - o->len) {
    o->full = true;
    return;
  }
  if (len > 0)
    memcpy (o->buf + o->len, data, len);
  o->len += len;
}

static void
put_ext_header (struct out *o, uint32_t type, uint32_t len)
{
  struct qcow2_wire_ext w = { be32_make (type), be32_make (len) };

  put (o, &w, sizeof w);
}

static void
put_ext (struct out *o, uint32_t type, const void *data, uint32_t len)
{
  static const uint8_t zero[8];

  put_ext_header (o, type, len);
  put (o, data, len);
  put (o, zero, -len & 7);
}

/* --- Feature names -------------------------------------------------- */

enum names { NAMES_ALL, NAMES_OURS, NAMES_NONE };

static const struct qcow2_wire_feature our_name = {
  0, 48, QCOW2_RECOVERY_NAME
};

/* Names features as QEMU's tools do, and bit 48 as this program does. */
static const struct qcow2_wire_feature standard_names[] = {
  { 0, 0, "dirty bit" },
  { 0, 1, "corrupt bit" },
  { 0, 2, "external data file" },
  { 0, 3, "compression type" },
  { 0, 4, "extended L2 entries" },
  { 0, 48, QCOW2_RECOVERY_NAME },
  { 1, 0, "lazy refcounts" },
  { 2, 0, "bitmaps" },
  { 2, 1, "raw external data" },
};

static bool
is_ours (const uint8_t *entry)
{
  return entry[0] == our_name.type && entry[1] == our_name.bit;
}

/* Appends the feature names of OLD (which may be empty), without an entry of
 * our bit, and then our entry. */
static void
put_extended_names (struct out *o, const struct qcow2_ext *old)
{
  const size_t size = sizeof our_name;
  size_t nr = old->len / size, kept = 0, i;

  for (i = 0; i < nr; i++)
    kept += !is_ours (old->data + i * size);
  put_ext_header (o, QCOW2_EXT_FEATURE_NAMES, (kept + 1) * size);
  for (i = 0; i < nr; i++)
    if (!is_ours (old->data + i * size))
      put (o, old->data + i * size, size);
  put (o, &our_name, size);
}

static void
put_names (struct out *o, const struct qcow2_ext *old, enum names names)
{
  if (names == NAMES_ALL)
    put_extended_names (o, old);
  else if (names == NAMES_OURS)
    put_ext (o, QCOW2_EXT_FEATURE_NAMES, &our_name, sizeof our_name);
}

/* --- A header for a store ------------------------------------------- */

/* Copies the extensions of OLD that are kept unchanged.  The feature names are
 * returned in *NAMES instead. */
static void
put_kept (struct out *o, const uint8_t *old, const struct qcow2_header *h,
          struct qcow2_ext *names)
{
  struct qcow2_ext_walk w;
  struct qcow2_ext e;

  *names = (struct qcow2_ext) { 0 };
  w = qcow2_ext_first (old, h->geo.cluster_size, h->header_length);
  while (qcow2_ext_next (&w, &e) == 1)
    if (e.type == QCOW2_EXT_FEATURE_NAMES)
      *names = e;
    else if (e.type != QCOW2_EXT_STORE)
      put_ext (o, e.type, e.data, e.len);
}

static void
patch_fields (uint8_t *buf, const struct qcow2_header_fields *fields,
              uint64_t backing_off, const struct qcow2_geometry *g)
{
  struct qcow2_wire_header w;

  memcpy (&w, buf, sizeof w);
  w.backing_off = be64_make (backing_off);
  w.size = be64_make (g->virtual_size);
  w.reftable_off = be64_make (fields->reftable_off);
  w.reftable_clusters = be32_make (fields->reftable_clusters);
  w.nr_snapshots = be32_make (fields->nr_snapshots);
  w.snapshots_off = be64_make (fields->snapshots_off);
  w.incompatible = be64_make (be64_load (w.incompatible) |
                              QCOW2_INCOMPAT_RECOVERY);
  /* A program that writes must clear the autoclear bits of features that it
   * does not keep up. */
  w.autoclear = be64_make (g->autoclear);
  memcpy (buf, &w, sizeof w);
}

/* Builds the first cluster in NEW, which is zeroed.  False if it does not
 * fit. */
static bool
build (uint8_t *new, const uint8_t *old, const struct qcow2_header *h,
       const struct qcow2_header_fields *fields, const uint8_t *ext,
       enum names names)
{
  struct out o = { .buf = new, .max = h->geo.cluster_size };
  struct qcow2_ext old_names;
  uint64_t backing_off;

  put (&o, old, h->header_length);
  put_kept (&o, old, h, &old_names);
  put_ext (&o, QCOW2_EXT_STORE, ext, QCOW2_STORE_EXTENSION_SIZE);
  put_names (&o, &old_names, names);
  put_ext_header (&o, QCOW2_EXT_END, 0);
  backing_off = h->geo.has_backing ? o.len : 0;
  put (&o, h->backing_name, h->geo.has_backing ? h->backing_len : 0);
  patch_fields (new, fields, backing_off, &h->geo);
  return !o.full;
}

int
qcow2_header_rebuild (uint8_t *buf, const struct qcow2_header *h,
                      const struct qcow2_header_fields *fields,
                      const uint8_t *ext, struct fault *f)
{
  CLEANUP_FREE uint8_t *new = aligned_new (h->geo.cluster_size); /* <= 2 MiB */
  enum names names;

  assert (h->geo.version >= 3);
  if (new == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  for (names = NAMES_ALL; names <= NAMES_NONE; names++) {
    memset (new, 0, h->geo.cluster_size);
    if (build (new, buf, h, fields, ext, names)) {
      memcpy (buf, new, h->geo.cluster_size);
      return 0;
    }
  }
  return fault_set (f, FAULT_UNSUPPORTED, ENOSPC, 0,
                    "the first cluster has no room for the header extension "
                    "of a store: use larger clusters or a shorter backing "
                    "file name");
}

/* --- A header for a new image --------------------------------------- */

void
qcow2_header_create (uint8_t *buf, const struct qcow2_header *h)
{
  const struct qcow2_geometry *g = &h->geo;
  struct out o = { .buf = buf, .max = g->cluster_size };
  struct qcow2_wire_header w = {
    .magic = be32_make (QCOW2_MAGIC),
    .version = be32_make (3),
    .cluster_bits = be32_make (g->cluster_bits),
    .size = be64_make (g->virtual_size),
    .l1_entries = be32_make (h->l1_entries),
    .l1_off = be64_make (h->l1_off),
    .reftable_off = be64_make (h->fields.reftable_off),
    .reftable_clusters = be32_make (h->fields.reftable_clusters),
    .refcount_order = be32_make (__builtin_ctz (g->refcount_bits)),
    .header_length = be32_make (sizeof w),
    .incompatible = be64_make (g->compression_type ? QCOW2_INCOMPAT_COMPRESSION : 0),
    .compression_type = (uint8_t) g->compression_type,
  };

  memset (buf, 0, g->cluster_size);
  put (&o, &w, sizeof w);
  if (g->cluster_size >= 4096)
    put_ext (&o, QCOW2_EXT_FEATURE_NAMES, standard_names,
             sizeof standard_names);
  else
    put_names (&o, NULL, NAMES_OURS);
  put_ext_header (&o, QCOW2_EXT_END, 0);
  assert (!o.full);   /* 176 bytes of 512, or 560 of 4096 */
}
