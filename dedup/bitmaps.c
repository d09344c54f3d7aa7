/* SPDX-License-Identifier: BSD-3-Clause */
/* Saving persistent bitmaps at close (qcow2fmt/dirty-bitmaps.c): with a store,
 * each cluster that one of them gets is a group of records, made like any
 * other change; without, it goes with the last flush.
 *
 * At close only, when no request is under way.
 */
#include "direct.h"

#include <errno.h>

/* One pass under one hold of the lock. */
static int
try_attach (struct dedup_disk *d, struct qcow2_txn *txn, uint64_t entry_off,
            uint64_t host_idx)
{
  int r;

  LOCK_FOR_SCOPE (d->lock);
  if (!d->direct && !dedup_room_locked (d, 1, 0))
    return -EBUSY;
  r = qcow2_bitmap_attach_locked (txn, entry_off, host_idx);
  if (!d->direct)
    dedup_journal_end_locked (d->journal);
  return r;
}

static int
attach_cb (void *opaque, uint64_t entry_off, uint64_t host_idx)
{
  struct dedup_disk *d = opaque;
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (d->img, &txn);
  for (;;) {
    r = try_attach (d, &txn, entry_off, host_idx);
    if (r == -EAGAIN)
      r = qcow2_txn_load (&txn);
    else if (r == -EBUSY)
      r = dedup_make_room (d);
    else
      break;
    if (r < 0)
      break;
  }
  qcow2_txn_end (&txn);
  return r;
}

int
dedup_save_bitmaps (struct dedup_disk *d)
{
  int r;

  if (d->direct)
    return qcow2_bitmaps_save (d->img, attach_cb, d);
  if (!qcow2_bitmaps_to_save (d->img))
    return 0;
  r = dedup_change_begin (d);
  if (r < 0)
    return r;
  r = qcow2_bitmaps_save (d->img, attach_cb, d);
  dedup_change_end (d);
  return r;
}
