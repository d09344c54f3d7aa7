/* SPDX-License-Identifier: BSD-3-Clause */
/* Trim and write-zeroes on whole guest clusters: the link step of the
 * pipeline with nothing to bring to disk.  A large range is done in pieces,
 * each an operation of its own; pieces where nothing is mapped cost a look.
 */
#include "direct.h"
#include "write.h"

#include <errno.h>

static int
unmap_piece (struct dedup_disk *d, struct op *op)
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
  return r;
}

int
dedup_unmap (struct dedup_disk *d, unsigned root, uint64_t guest_idx,
             uint64_t nr, enum dedup_unmap how)
{
  uint64_t done;
  int r;

  qcow2_bitmaps_note (d->img, guest_idx << d->cluster_bits,
                      nr << d->cluster_bits);
  if (d->direct)
    return dedup_direct_unmap (d, guest_idx, nr, how);
  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  for (done = 0; done < nr && r == 0; done += DEDUP_CHUNK_CLUSTERS) {
    struct op op = {
      .d = d, .root = root, .guest_idx = guest_idx + done,
      .nr = MIN_OF (nr - done, DEDUP_CHUNK_CLUSTERS),
      .zero_entry = how == DEDUP_ZERO ? QCOW2_L2_ZERO : dedup_zero_entry (d),
      .trimmed = true,
    };
    r = unmap_piece (d, &op);
  }
  dedup_change_end (d);
  return r;
}
