/* SPDX-License-Identifier: BSD-3-Clause */
/* Prepares an image for its first disk (docs/on-disk.md section 11).
 *
 * Records that name guest clusters of a root are right only as long as no L2
 * table is lent.  So, in this order: the configuration gets the version of images
 * with disks; all records name places from one moment on; and a checkpoint that
 * begins after that moment leaves no other record to be replayed.
 *
 * In between, a replay may meet records of both kinds.  It applies them in their
 * order, and no table was lent yet.
 *
 * Maintenance only, beside any number of writers.
 */
#include "upkeep-private.h"

#include <errno.h>

int
dedup_begin_disks (struct dedup_upkeep *u)
{
  struct dedup_store *s = u->s;
  int r;

  if (!s->config->has_disks) {
    s->config->has_disks = true;
    r = dedup_config_commit (s);
  }
  else
    r = dedup_config_settle (s);
  if (r < 0)
    return r;
  if (s->places_only)
    return 0;
  lock_acquire (s->b->lock);
  qcow2_begin_disks_locked (s->b->img);
  lock_release (s->b->lock);
  r = mutation (MUTATION_LAW_14_NO_CHECKPOINT) ? 0 : dedup_checkpoint (s);
  s->places_only = r == 0;
  return r;
}
