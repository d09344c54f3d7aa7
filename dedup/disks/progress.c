/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the work that changes of the set of roots leave, for the progress of it.
 *
 * The time that the work takes is in the tables: one whose debt is paid, and one
 * whose path is dropped with all its references, cost about the same.  A path that
 * is dropped from a debt costs little, and a table that owes nothing is only passed.
 * So the L1 entries of each root with work are looked at first, which needs
 * refcounts of tables but no table.
 *
 * A table with a debt of N is named by N roots that owe, or more; whichever of them
 * comes first pays for all.  So each of them counts an Nth of it.  Where roots
 * change meanwhile the total is an estimate.
 *
 * The unit is a byte of the disk: a table counts as all that it maps.
 *
 * Any thread, one at a time; protected by the image lock.
 */
#include <errno.h>
#include <stdlib.h>

#include "clock.h"
#include "disks-private.h"

#define SLICE_NS (UINT64_C (4) * 1000 * 1000)
/* L1 entries that are looked at under one hold of the lock. */
#define ENTRIES_PER_HOLD 256u
/* A path that is dropped from a debt costs a table divided by this. */
#define DROP_OF_DEBT_DIVISOR 16

static uint64_t
table_bytes (const struct dedup_disks *d)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->b->img);

  return (uint64_t) g->l2_entries << g->cluster_bits;
}

static void
add (uint64_t *counter, uint64_t bytes)
{
  __atomic_add_fetch (counter, bytes, __ATOMIC_RELAXED);
}

void
dedup_disks_get_progress (struct dedup_disks *d, uint64_t *done,
                          uint64_t *total)
{
  *done = __atomic_load_n (&d->progress.done, __ATOMIC_RELAXED);
  *total = MAX_OF (__atomic_load_n (&d->progress.total, __ATOMIC_RELAXED),
                   *done);
}

void
dedup_progress_add_locked (struct dedup_disks *d, uint64_t debt, bool dropped)
{
  assert (lock_held (d->b->lock));
  add (&d->progress.done, dropped && debt > 0 ?
       table_bytes (d) / DROP_OF_DEBT_DIVISOR : table_bytes (d));
}

void
dedup_progress_note_locked (struct dedup_disks *d, unsigned root, bool is_work,
                            bool first)
{
  uint8_t *uncounted = &d->progress.uncounted[root];

  assert (lock_held (d->b->lock));
  if (is_work && first) {
    __atomic_store_n (&d->progress.done, 0, __ATOMIC_RELAXED);
    __atomic_store_n (&d->progress.total, 0, __ATOMIC_RELAXED);
  }
  d->progress.nr_uncounted += is_work;
  d->progress.nr_uncounted -= *uncounted;
  *uncounted = is_work;
  if (d->progress.root == root)
    d->progress.l1_idx = 0;
}

/* --- Counting -------------------------------------------------------------- */

/* Finds the root that is being counted, or the next one; false: none. */
static bool
choose_root_locked (struct dedup_disks *d)
{
  unsigned root = d->progress.root;

  if (d->progress.nr_uncounted == 0)
    return false;
  if (d->progress.uncounted[root])
    return true;
  do
    root = root % QCOW2_MAX_SLOTS + 1;
  while (!d->progress.uncounted[root]);
  d->progress.root = root;
  d->progress.l1_idx = 0;
  return true;
}

static uint64_t
cost_of (const struct dedup_disks *d, uint64_t debt, bool doomed)
{
  if (!doomed)
    return debt ? table_bytes (d) / debt : 0;
  return debt ? table_bytes (d) / DROP_OF_DEBT_DIVISOR : table_bytes (d);
}

/* Counts the next L1 entry of the chosen root. */
static int
count_entry_locked (struct dedup_disks *d, struct qcow2_txn *txn)
{
  const unsigned root = d->progress.root;
  uint64_t debt;
  int r = qcow2_path_debt_locked (txn, root, d->progress.l1_idx, &debt);

  if (r == -EAGAIN || r == -ENOMEM)
    return r;
  if (r > 0)
    add (&d->progress.total,
         cost_of (d, debt, d->work.state[root] == ROOT_DOOMED));
  d->progress.l1_idx++;         /* also past a damaged one */
  return 0;
}

/* Counts some entries under one hold of the lock; a step of qcow2_txn_retry. */
static int
count_some_locked (struct qcow2_txn *txn, void *opaque)
{
  struct dedup_disks *d = opaque;
  const struct qcow2_snapshot *v;
  int r = 0;

  assert (lock_held (d->b->lock));
  for (unsigned i = 0; i < ENTRIES_PER_HOLD && r == 0; i++) {
    if (!choose_root_locked (d))
      return 0;
    qcow2_snapshots (d->b->img, &v);
    if (d->progress.l1_idx < v[d->progress.root - 1].l1_entries)
      r = count_entry_locked (d, txn);
    else
      dedup_progress_note_locked (d, d->progress.root, false, false);
  }
  return r;
}

static bool
is_counted (struct dedup_disks *d)
{
  LOCK_FOR_SCOPE (d->b->lock);

  return d->progress.nr_uncounted == 0;
}

bool
dedup_progress_count (struct dedup_disks *d)
{
  uint64_t now = clock_now_ns ();
  const uint64_t end = now + SLICE_NS;
  struct qcow2_txn txn;
  int r = 0;

  while (!is_counted (d)) {
    if (now >= end)
      return true;
    qcow2_txn_begin (d->b->img, &txn);
    r = qcow2_txn_retry (&txn, count_some_locked, d);
    qcow2_txn_end (&txn);
    if (r < 0)                  /* the work itself meets that error, too */
      return false;
    now = dedup_pace (d, now);
  }
  return false;
}

/* --- Begin and end --------------------------------------------------------- */

int
dedup_progress_init (struct dedup_disks *d)
{
  d->progress.uncounted = calloc (QCOW2_MAX_SLOTS + 1, 1);
  return d->progress.uncounted ? 0 : -ENOMEM;
}

void
dedup_progress_destroy (struct dedup_disks *d)
{
  free (d->progress.uncounted);
}
