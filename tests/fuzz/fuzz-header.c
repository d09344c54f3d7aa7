/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the first cluster alone: header fields, extensions, feature names,
 * backing file name and format.  A header that the decoder takes is in range;
 * building it again gives a header that the decoder takes again, the same.
 */
#include "fuzz.h"

#include "image.h"

static void
rebuild (const uint8_t *buf, size_t len, const struct qcow2_header *h)
{
  CLEANUP_FREE uint8_t *copy = calloc (1, len);
  static const uint8_t ext[QCOW2_STORE_EXTENSION_SIZE] = { 1, 2, 3 };
  struct fault f = { 0 };
  struct qcow2_header again;

  MUST (copy);
  memcpy (copy, buf, len);
  if (qcow2_header_rebuild (copy, h, &h->fields, ext, &f) < 0) {
    MUST (f.msg[0]);
    return;
  }
  MUST (qcow2_header_decode (copy, len, &again, &f) == 0);
  MUST (again.has_store_ext && memcmp (again.store_ext, ext, sizeof ext) == 0);
  MUST (again.geo.virtual_size == h->geo.virtual_size);
  MUST (again.geo.incompatible ==
        (h->geo.incompatible | QCOW2_INCOMPAT_RECOVERY));
  MUST (strcmp (again.backing_name, h->backing_name) == 0);
  MUST (strcmp (again.backing_format, h->backing_format) == 0);
  MUST (again.fields.reftable_off == h->fields.reftable_off);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct qcow2_header h;
  struct fault f = { 0 };
  uint64_t size;

  if (len < 512 || len > 1 << 16)
    return -1;
  if (qcow2_header_cluster_size (data, &size, &f) < 0)
    return 0;
  buf = calloc (1, size);               /* at most 2 MiB */
  MUST (buf);
  memcpy (buf, data, len < size ? len : size);
  if (qcow2_header_decode (buf, size, &h, &f) < 0) {
    MUST (f.msg[0] && !strchr (f.msg, '\n'));
    return 0;
  }
  MUST (h.geo.cluster_size == size);
  MUST (h.geo.nr_clusters <= (uint64_t) h.l1_entries * h.geo.l2_entries);
  MUST (!h.geo.has_backing || h.backing_name[0]);
  if (h.geo.version >= 3)
    rebuild (buf, size, &h);
  return 0;
}
