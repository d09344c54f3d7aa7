/* SPDX-License-Identifier: BSD-3-Clause */
/* Trims and zeroes whole guest clusters: the link step of the pipeline, with
 * nothing to store.
 *
 * A large range is done in pieces, each an operation of its own; one where
 * nothing is mapped only costs a look at the tables.  Where the clusters lie
 * apart, each takes some microseconds under the lock, so the pieces after such
 * a one are smaller.  The first piece of a call never is: a request that fits
 * in one operation must be one.
 *
 * Any thread, without locks.
 */
#include "op.h"

#include <errno.h>

/* A piece whose clusters were in more runs than this is scattered; the next one
 * has fewer clusters. */
#define SCATTERED_RUNS 32
#define SCATTERED_CLUSTERS 128u

/* Returns in how many runs the clusters were that OP unmapped. */
static size_t
count_runs (const struct op *op)
{
  const uint64_t size = op->w->b->cluster_size;
  size_t i, nr = 0;
  uint64_t old, next = 0;

  for (i = 0; i < op->nr; i++) {
    old = op->slots[i].old & QCOW2_OFFSET_MASK;
    nr += old != 0 && old != next;
    next = old == 0 ? 0 : old + size;
  }
  return nr;
}

/* Unmaps one piece; *RUNS is in how many runs its clusters were. */
static int
unmap_piece (struct op *op, size_t *runs)
{
  CLEANUP_FREE struct slot *slots = calloc (op->nr, sizeof *slots);
  size_t i;
  int r;

  if (slots == NULL)
    return -ENOMEM;
  for (i = 0; i < op->nr; i++)
    slots[i].kind = SLOT_ZERO;
  op->slots = slots;
  qcow2_txn_begin (op->w->b->img, &op->txn);
  r = dedup_link (op);
  qcow2_txn_end (&op->txn);
  *runs = count_runs (op);
  return r;
}

int
dedup_pipeline_unmap (struct dedup_writer *w, unsigned root,
                      uint64_t guest_idx, uint64_t nr, enum dedup_unmap how)
{
  uint64_t done, n;
  size_t runs = 0;
  int r;

  r = dedup_admit (w->s);
  if (r == 0)
    r = dedup_enter (&w->s->gate);
  if (r < 0)
    return r;
  for (done = 0; done < nr && r == 0; done += n) {
    n = runs > SCATTERED_RUNS ? SCATTERED_CLUSTERS : DEDUP_CHUNK_CLUSTERS;
    n = MIN_OF (nr - done, n);
    struct op op = {
      .w = w, .root = root, .guest_idx = guest_idx + done, .nr = n,
      .zero_entry = how == DEDUP_ZERO ? QCOW2_L2_ZERO : dedup_zero_entry (w->b),
      .trimmed = true,
    };
    r = unmap_piece (&op, &runs);
  }
  dedup_leave (&w->s->gate);
  return r;
}
