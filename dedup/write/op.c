/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocates and frees the memory of an operation, and counts its slots.
 *
 * Writes of one or two clusters need no allocation: their slots lie in struct
 * op.
 *
 * An operation belongs to one thread; no locks.
 */
#include "op.h"

#include <errno.h>

int
dedup_op_alloc (struct op *op)
{
  op->slots = op->few;
  op->idx = op->few_idx;
  if (op->nr <= DEDUP_FEW_SLOTS)
    return 0;
  op->slots = calloc (op->nr, sizeof *op->slots);
  op->idx = malloc (op->nr * sizeof *op->idx);
  return op->slots && op->idx ? 0 : -ENOMEM;
}

void
dedup_op_free (struct op *op)
{
  if (op->slots == op->few)
    return;
  free (op->slots);
  free (op->idx);
}

size_t
dedup_count_slots (const struct op *op, enum slot_kind kind)
{
  size_t i, nr = 0;

  for (i = 0; i < op->nr; i++)
    nr += op->slots[i].kind == kind;
  return nr;
}
