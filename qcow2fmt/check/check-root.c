/* SPDX-License-Identifier: BSD-3-Clause */
/* Describes the roots of the image for the checker: where their L1 tables are, and
 * what messages call them.
 *
 * A root is the active disk, or a snapshot: a disk of a pool, a snapshot of a disk, one
 * that QEMU made, or the anchor.  The checker walks all of them in the same way.
 *
 * Constant while the image is checked; no lock.
 */
#include <stdio.h>

#include "check.h"

bool
check_has_disks (const struct check *c)
{
  const struct qcow2_snapshot_table *t = &c->img->snapshots;
  size_t i;

  for (i = 0; i < t->nr; i++)
    if (t->v[i].is_disk && !t->v[i].dead)
      return true;
  return false;
}

static void
describe_snapshot (const struct qcow2_snapshot *s, struct check_root *root)
{
  *root = (struct check_root) {
    .kind = s->is_anchor ? CHECK_ROOT_ANCHOR :
      s->is_disk ? CHECK_ROOT_DISK : CHECK_ROOT_SNAPSHOT,
    .l1_off = s->l1_off, .l1_entries = s->l1_entries,
    .doomed = s->is_disk && (s->disk_flags & QCOW2_DISK_DOOMED),
  };
  snprintf (root->name, sizeof root->name, "%s \"%.60s\"",
            s->is_disk ? "disk" : "snapshot", s->is_disk ? s->name : s->id);
}

bool
check_root_at (const struct check *c, size_t r, struct check_root *root)
{
  const struct qcow2_snapshot_table *t = &c->img->snapshots;

  if (r > 0) {
    if (!t->v[r - 1].dead)
      describe_snapshot (&t->v[r - 1], root);
    return !t->v[r - 1].dead;
  }
  *root = (struct check_root) {
    .kind = CHECK_ROOT_ACTIVE, .name = "the active disk",
    .l1_off = c->img->header.l1_off, .l1_entries = c->img->header.l1_entries,
  };
  return true;
}
