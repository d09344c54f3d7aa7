/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps requests off guest clusters that a job stores again: "compact" and "compress".
 *
 * Meanwhile the job counts as a client of their disk or snapshot, has entered its gate as a
 * request does, and holds the range lock.  So the disk is neither deleted nor reset under it,
 * and requests for these clusters wait for the operation.  Those of other disks that have the
 * same L2 table do not (docs/on-disk.md 14.4), nor do reads of a snapshot, which take no
 * range.  A snapshot that has no export name, as another has the same, has no requests:
 * nothing is held for it.
 *
 * Threads: one at a time for each struct.
 */
#include "root-lock.h"

#include <errno.h>

#define MAX_NAME 1024

/* Returns whether a root is one that only its moves change (docs/on-disk.md 14.4), so that
 * it is no matter whether it gets readers. */
static bool
is_read_only (struct srv_root_lock *x, unsigned root)
{
  struct qcow2_image *img = dedup_image (x->exports->pool);
  LOCK_FOR_SCOPE (qcow2_lock (img));

  return qcow2_movable_size_locked (img, root) > 0 &&
    !qcow2_root_writable_locked (img, root);
}

static void
put_disk (struct srv_root_lock *x)
{
  if (x->disk->root != QCOW2_ROOT_ACTIVE)
    srv_exports_put (x->exports, x->disk);
  x->disk = NULL;
}

/* Gets the disk of a root.  -ENOENT: it has none, or has got another name just now. */
static int
get_disk (struct srv_root_lock *x, unsigned root)
{
  struct srv_exports *e = x->exports;
  struct fault f = { 0 };
  char name[MAX_NAME];

  x->disk = e->active;
  if (root == QCOW2_ROOT_ACTIVE)
    return 0;
  srv_exports_name (e, root, name, sizeof name);
  x->disk = NULL;
  if (name[0] == '\0')
    return is_read_only (x, root) ? 0 : -ENOENT;
  if (srv_exports_get (e, name, &x->disk, &f) < 0)
    return -ENOENT;
  if (x->disk->root == root)
    return 0;
  srv_exports_put (e, x->disk);
  return -ENOENT;
}

int
srv_root_lock (void *opaque, unsigned root, uint64_t guest_idx, size_t nr)
{
  struct srv_root_lock *x = opaque;
  int r = get_disk (x, root);

  if (r < 0 || x->disk == NULL)
    return r;
  if (srv_gate_enter (&x->disk->gate) < 0) {
    put_disk (x);
    return -ENOENT;
  }
  r = srv_range_acquire (&x->disk->ranges, &x->range, guest_idx,
                         guest_idx + nr - 1, true);
  if (r < 0) {
    srv_gate_leave (&x->disk->gate);
    put_disk (x);
  }
  return r;
}

void
srv_root_unlock (void *opaque)
{
  struct srv_root_lock *x = opaque;

  if (x->disk == NULL)
    return;
  srv_range_release (&x->disk->ranges, &x->range);
  srv_gate_leave (&x->disk->gate);
  put_disk (x);
}
