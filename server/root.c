/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks at a root of an image: the active disk, an internal snapshot, or a disk.
 *
 * Roots come and go while the image is served, so each look is under the image
 * lock and copies what it finds.  Any thread.
 */
#include "root.h"

#include <string.h>

#define POOL_REFCOUNT_BITS 32
#define EXTENTS 16

static void
look_at_snapshot (const struct qcow2_snapshot *s, struct srv_root *out)
{
  if (s->dead || s->named_anchor || (s->disk_flags & QCOW2_DISK_DOOMED))
    return;
  out->exists = true;
  out->is_disk = s->is_disk;
  out->is_snapshot = !s->is_disk || !(s->disk_flags & QCOW2_DISK_WRITABLE);
  out->created = s->is_disk ? s->created : s->date_sec;
  memcpy (out->uuid, s->uuid, sizeof out->uuid);
  memcpy (out->origin, s->origin, sizeof out->origin);
}

void
srv_root_look (struct qcow2_image *img, unsigned root, struct srv_root *out)
{
  const struct qcow2_snapshot *v;
  LOCK_FOR_SCOPE (qcow2_lock (img));

  memset (out, 0, sizeof *out);
  out->exists = root == QCOW2_ROOT_ACTIVE;
  if (root > QCOW2_ROOT_ACTIVE && root <= qcow2_snapshots (img, &v))
    look_at_snapshot (&v[root - 1], out);
  if (!out->exists)
    return;
  out->size = qcow2_root_size_locked (img, root);
  out->writable = qcow2_root_writable_locked (img, root);
  out->compress = qcow2_root_compress_locked (img, root);
}

bool
srv_root_active_is_empty (struct qcow2_image *img)
{
  const struct qcow2_geometry *g = qcow2_geometry (img);
  struct qcow2_extent ext[EXTENTS];
  uint64_t at = 0;
  int nr;

  if (g->refcount_bits != POOL_REFCOUNT_BITS || g->has_backing)
    return false;
  while (at < g->virtual_size) {
    nr = qcow2_map (img, QCOW2_ROOT_ACTIVE, at, g->virtual_size - at, ext,
                    EXTENTS);
    if (nr <= 0)
      return false;
    for (int i = 0; i < nr; i++)
      if (ext[i].kind != QCOW2_UNALLOCATED)
        return false;
    at = ext[nr - 1].guest_off + ext[nr - 1].len;
  }
  return true;
}
