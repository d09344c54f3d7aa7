/* SPDX-License-Identifier: BSD-3-Clause */
/* Trim and write-zeroes on whole guest clusters: the link step of the
 * pipeline with nothing to bring to disk.  A large range is done in pieces,
 * each an operation of its own; pieces where nothing is mapped cost a look.
 * Where the clusters lie apart, each is some microseconds under the lock: then
 * the pieces are smaller, but for the first one of a call, since a request that
 * fits in one operation shall be one.
 */
#include "direct.h"
#include "write.h"

#include <errno.h>

#define SCATTERED_CLUSTERS 128u
#define SCATTERED_RUNS 32      /* so many places in a piece: scattered */

/* How many clusters do not follow the one before them? */
static size_t
count_runs (const struct op *op)
{
  const uint64_t size = op->d->cluster_size;
  size_t i, nr = 0;
  uint64_t old, next = 0;

  for (i = 0; i < op->nr; i++) {
    old = op->slots[i].old & QCOW2_OFFSET_MASK;
    nr += old != 0 && old != next;
    next = old == 0 ? 0 : old + size;
  }
  return nr;
}

/* *RUNS: in how many places its clusters were. */
static int
unmap_piece (struct dedup_disk *d, struct op *op, size_t *runs)
{
  CLEANUP_FREE struct slot *slots = calloc (op->nr, sizeof *slots);
  size_t i;
  int r;

  if (slots == NULL)
    return -ENOMEM;
  for (i = 0; i < op->nr; i++)
    slots[i].kind = SLOT_ZERO;
  op->slots = slots;
  qcow2_txn_begin (d->img, &op->txn);
  r = dedup_link (op);
  qcow2_txn_end (&op->txn);
  *runs = count_runs (op);
  return r;
}

int
dedup_unmap (struct dedup_disk *d, unsigned root, uint64_t guest_idx,
             uint64_t nr, enum dedup_unmap how)
{
  uint64_t done, n;
  size_t runs = 0;
  int r;

  qcow2_bitmaps_note (d->img, guest_idx << d->cluster_bits,
                      nr << d->cluster_bits);
  if (d->direct)
    return dedup_direct_unmap (d, guest_idx, nr, how);
  r = dedup_admit (d);
  if (r == 0)
    r = dedup_change_begin (d);
  if (r < 0)
    return r;
  for (done = 0; done < nr && r == 0; done += n) {
    n = runs > SCATTERED_RUNS ? SCATTERED_CLUSTERS : DEDUP_CHUNK_CLUSTERS;
    n = MIN_OF (nr - done, n);
    struct op op = {
      .d = d, .root = root, .guest_idx = guest_idx + done, .nr = n,
      .zero_entry = how == DEDUP_ZERO ? QCOW2_L2_ZERO : dedup_zero_entry (d),
      .trimmed = true,
    };
    r = unmap_piece (d, &op, &runs);
  }
  dedup_change_end (d);
  return r;
}
