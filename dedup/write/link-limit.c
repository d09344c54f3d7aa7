/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps host clusters below the limit for sharing while an operation links to them.
 *
 * A refcount has few bits in some images, and more references than it can count would
 * lose data.  So a slot whose candidate has no room for it gets a cluster of its own,
 * before anything is changed.  The references of all slots of the operation to one
 * cluster count together, and so do those of all paths to a table that is changed in
 * place.
 *
 * Under the image lock.
 */
#include "checked.h"
#include "op.h"

#include <errno.h>

/* Returns whether the data at VALUE touches a host cluster. */
static bool
touches (const struct op *op, uint64_t value, uint64_t host_idx)
{
  uint64_t first, count;

  dedup_value_clusters (op->w->b, value, &first, &count);
  return host_idx - first < count;
}

/* Returns how many references to a host cluster the slots before I will add. */
static uint64_t
links_before (const struct op *op, size_t i, uint64_t host_idx)
{
  uint64_t nr = 0;
  size_t k;

  for (k = 0; k < i; k++)
    if (op->slots[k].kind != SLOT_ZERO && !op->slots[k].skip &&
        touches (op, op->slots[k].value, host_idx))
      nr += op->slots[k].times;
  return nr;
}

/* Gives SLOT, whose candidate can take no more references, a new cluster, or
 * lets it follow an earlier slot that left the same candidate, up to the
 * limit. */
static void
leave_full_cluster (struct op *op, struct slot *slot)
{
  struct slot *s;

  for (s = op->slots; s < slot; s++)
    if (s->full == slot->value && s->kind == SLOT_NEW &&
        s->followers + 2 < dedup_ref_limit (op->w->b))
      break;
  dedup_unhold_slot_locked (op, slot);
  slot->full = slot->replaced = slot->value;
  slot->kind = s < slot ? SLOT_FOLLOW : SLOT_NEW;
  slot->leader = s;
  s->followers += s < slot;
}

/* Returns 0 if a host cluster may get the references of slot I, and those of the slots
 * before it; else -ERANGE. */
static int
check_limit (struct op *op, size_t i, uint64_t host_idx)
{
  const uint64_t limit = dedup_ref_limit (op->w->b);
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount, &anchored);
  if (r < 0)
    return r;
  refcount = MAX_OF (refcount, 1);
  return (!op->avoids && refcount + op->nr < limit) ||
    refcount + links_before (op, i, host_idx) + op->slots[i].times - 1 < limit
    ? 0 : -ERANGE;
}

/* Returns whether a slot adds references that the limit is for.  A first one never passes
 * it; those of several paths may. */
static bool
is_limited (const struct slot *s)
{
  if (s->kind == SLOT_ZERO || s->skip || slot_takes_over (s))
    return false;
  return s->times > 1 || !(s->stored || s->linked);
}

int
dedup_check_limits_locked (struct op *op)
{
  uint64_t first, count, k;
  bool over = false;
  size_t i;
  int r;

  assert (lock_held (op->w->b->lock));
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!is_limited (s))
      continue;
    dedup_value_clusters (op->w->b, s->value, &first, &count);
    for (k = 0, r = 0; k < count && r == 0; k++)
      r = check_limit (op, i, first + k);
    if (r < 0 && r != -ERANGE)
      return r;
    if (r == -ERANGE && s->stored)
      slot_leave (s);
    else if (r == -ERANGE)
      leave_full_cluster (op, s);
    over = over || r == -ERANGE;
  }
  return over ? -ERANGE : 0;
}
