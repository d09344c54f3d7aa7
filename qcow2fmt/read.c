/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading guest bytes: map, then read extent by extent.
 *
 * One pread per run of contiguous host clusters, straight into the caller's
 * buffer; only a compressed cluster that is read in part goes through one of
 * its own.  The lock is held by the map alone, never during a read: what was
 * mapped stays where it is because the caller keeps the range from being
 * rewritten, and a cluster is never rewritten in place.
 */
#include <errno.h>
#include <string.h>

#include "image.h"

#define EXTENTS_PER_MAP 64     /* 2.5 KiB of stack */

static int
read_compressed (struct qcow2_image *img, const struct qcow2_extent *e,
                 uint8_t *buf)
{
  const uint64_t size = img->header.geo.cluster_size;
  CLEANUP_FREE uint8_t *cluster = NULL;
  int r;

  if (e->len == size)
    return qcow2_compressed_read (img, e->entry, buf);
  cluster = malloc (size);              /* at most 2 MiB */
  if (cluster == NULL)
    return -ENOMEM;
  r = qcow2_compressed_read (img, e->entry, cluster);
  if (r == 0)
    memcpy (buf, cluster + e->guest_off % size, e->len);
  return r;
}

static int
read_extent (struct qcow2_image *img, const struct qcow2_extent *e,
             uint8_t *buf)
{
  switch (e->kind) {
  case QCOW2_DATA:
    if (qcow2_has_data_file (&img->header.geo) && img->data == NULL)
      return -EIO;             /* it was not to be opened */
    return io_pread (qcow2_data_io (img), buf, e->len, e->host_off);
  case QCOW2_COMPRESSED:
    return read_compressed (img, e, buf);
  case QCOW2_UNALLOCATED:
    if (img->backing)
      return qcow2_backing_read (img->backing, buf, e->guest_off, e->len);
    if (img->header.geo.has_backing)
      return -EIO;              /* QCOW2_FILES_IGNORE */
    /* fall through */
  case QCOW2_ZERO:
    break;
  }
  memset (buf, 0, e->len);
  return 0;
}

int
qcow2_read (struct qcow2_image *img, unsigned root, void *buf,
            uint64_t guest_off, size_t len)
{
  struct qcow2_extent ext[EXTENTS_PER_MAP];
  uint8_t *p = buf;
  int nr, i, r;

  while (len > 0) {
    nr = qcow2_map (img, root, guest_off, len, ext, EXTENTS_PER_MAP);
    if (nr < 0)
      return nr;
    for (i = 0; i < nr; i++) {
      r = read_extent (img, &ext[i], p);
      if (r < 0)
        return r;
      p += ext[i].len;
      guest_off += ext[i].len;
      len -= ext[i].len;
    }
  }
  return 0;
}
