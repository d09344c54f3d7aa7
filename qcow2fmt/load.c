/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs transactions: loads what a step misses and repeats it until it misses
 * nothing, and ends the transaction.
 *
 * txn.c only notes that a step met a table which is not in memory.  This file
 * stands above all that can be missing (slices of tables, parts of the anchor,
 * clusters with space for new tables) and has each of them loaded, without the
 * lock.  What was loaded stays pinned, so each repetition gets further and the
 * loop ends.
 */
#include <errno.h>

#include "image.h"

/* Loads what the transaction noted as missing.  Releases the lock during I/O,
 * and returns with it held. */
static int
load_locked (struct qcow2_txn *txn)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  int kind = txn->missing_kind;

  txn->missing_kind = QCOW2_MISSING_NONE;
  switch (kind) {
  case QCOW2_MISSING_SLICE:
    return qcow2_cache_load_locked (txn, txn->missing_off,
                                    qcow2_slice_size (g));
  case QCOW2_MISSING_TABLE:
    return qcow2_cache_load_locked (txn, txn->missing_off, g->cluster_size);
  case QCOW2_MISSING_ANCHOR:
    return qcow2_anchor_load_locked (txn, txn->missing_off);
  case QCOW2_MISSING_SPACE:
    return qcow2_table_reserve_fill_locked (txn->img);
  default:
    return 0;
  }
}

int
qcow2_txn_load (struct qcow2_txn *txn)
{
  LOCK_FOR_SCOPE (&txn->img->lock);

  return load_locked (txn);
}

void
qcow2_txn_end_locked (struct qcow2_txn *txn)
{
  assert (lock_held (&txn->img->lock));
  qcow2_txn_unpin_locked (txn);
  qcow2_cache_trim_locked (txn->img);
}

void
qcow2_txn_end (struct qcow2_txn *txn)
{
  LOCK_FOR_SCOPE (&txn->img->lock);

  qcow2_txn_end_locked (txn);
}

/* --- Steps --------------------------------------------------------------- */

int
qcow2_txn_retry_locked (struct qcow2_txn *txn, qcow2_step *step_locked,
                        void *opaque)
{
  int r;

  assert (lock_held (&txn->img->lock));
  do
    r = step_locked (txn, opaque);
  while (r == -EAGAIN && (r = load_locked (txn)) == 0);
  return r;
}

int
qcow2_txn_retry (struct qcow2_txn *txn, qcow2_step *step_locked, void *opaque)
{
  LOCK_FOR_SCOPE (&txn->img->lock);

  return qcow2_txn_retry_locked (txn, step_locked, opaque);
}

int
qcow2_txn_run (struct qcow2_image *img, qcow2_step *step_locked, void *opaque)
{
  struct qcow2_txn txn;
  int r;
  LOCK_FOR_SCOPE (&img->lock);

  qcow2_txn_begin (img, &txn);
  r = qcow2_txn_retry_locked (&txn, step_locked, opaque);
  qcow2_txn_end_locked (&txn);
  return r;
}

/* --- All of the anchor ---------------------------------------------------- */

int
qcow2_anchor_load_all (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_txn txn;
  uint64_t part;
  int r = 0;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  for (part = 0; part < img->anchor.l1.nr && r == 0; ++part) {
    r = qcow2_anchor_need_locked (&txn, part);
    if (r == -EAGAIN)
      r = qcow2_anchor_load_locked (&txn, part);
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  if (r == -ENOMEM)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  return r < 0 ? fault_corrupt (f, UINT64_MAX, "a table of the anchor snapshot "
                                "is damaged or unreadable: run qemu-img "
                                "check, or serve it with "
                                "readonly=on") : 0;
}
