/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the work that changes of the set of roots leave, for the progress of it.
 *
 * The time that the work takes is in the tables: one whose debt is paid, and one
 * whose path is dropped with all its references, cost about the same.  A path that
 * is dropped from a debt costs little, and a table that owes nothing is only passed.
 * So the L1 entries of each root with work are looked at first, which needs
 * refcounts of tables but no table.
 *
 * What a table with a debt costs depends on all roots that name it: doomed ones come
 * first, and each takes one path from the debt.  If there are more of them than the
 * debt is, the others drop references; if there are fewer, the first root that owes
 * pays for the rest.  So for each such table is remembered what was counted of it
 * (lent.h), and where a root that is deleted later takes the last path from the debt,
 * the payment is counted no more.  A table of which nothing can be remembered is
 * estimated: a path of a doomed root is taken as one from the debt, and of a debt of N,
 * which N roots owe or more, each counts an Nth.  The total is an estimate also where
 * clients write to lent tables meanwhile, or a clone is made of a disk whose tables a
 * doomed root shares.
 *
 * The unit is a byte of the disk: a table counts as all that it maps.
 *
 * Any thread, one at a time; protected by the image lock, but for what is remembered,
 * which only the thread uses that works.
 */
#include <errno.h>
#include <stdlib.h>

#include "clock.h"
#include "disks-private.h"

#define SLICE_NS (UINT64_C (4) * 1000 * 1000)
/* L1 entries that are looked at under one hold of the lock, at the most. */
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

/* Returns what it costs to drop a path: from the debt, or with its references. */
static uint64_t
cost_of_drop (const struct dedup_disks *d, bool from_debt)
{
  return from_debt ? table_bytes (d) / DROP_OF_DEBT_DIVISOR : table_bytes (d);
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
dedup_progress_add_locked (struct dedup_disks *d, uint64_t host_idx, uint64_t debt,
                           bool dropped)
{
  struct dedup_lent_table *t = dedup_lent_find (d->progress.lent, host_idx);

  assert (lock_held (d->b->lock));
  add (&d->progress.done, dropped ? cost_of_drop (d, debt > 0) : table_bytes (d));
  if (t && dropped)
    t->drops -= t->drops > 0;
  else if (t)
    t->pays = false;
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

/* Counts a path of a doomed root. */
static void
count_drop (struct dedup_disks *d, uint64_t host_idx, uint64_t debt)
{
  struct dedup_lent_table *t =
    debt > 0 ? dedup_lent_get (d->progress.lent, host_idx) : NULL;

  add (&d->progress.total, cost_of_drop (d, t ? t->drops < debt : debt > 0));
  if (t == NULL)
    return;
  t->drops++;
  if (t->pays && t->drops >= debt) {    /* nothing is left to pay for */
    __atomic_sub_fetch (&d->progress.total, table_bytes (d), __ATOMIC_RELAXED);
    t->pays = false;
  }
}

/* Counts a path of a root that owes. */
static void
count_payment (struct dedup_disks *d, uint64_t host_idx, uint64_t debt)
{
  struct dedup_lent_table *t;

  if (debt == 0)
    return;
  t = dedup_lent_get (d->progress.lent, host_idx);
  if (t == NULL)
    add (&d->progress.total, table_bytes (d) / debt);
  else if (!t->pays && t->drops < debt) {
    add (&d->progress.total, table_bytes (d));
    t->pays = true;
  }
}

/* Counts the next L1 entry of the chosen root. */
static int
count_entry_locked (struct dedup_disks *d, struct qcow2_txn *txn)
{
  const unsigned root = d->progress.root;
  uint64_t host_idx, debt;
  int r = qcow2_path_debt_locked (txn, root, d->progress.l1_idx, &host_idx, &debt);

  if (r == -EAGAIN || r == -ENOMEM)
    return r;
  if (r > 0 && d->work.state[root] == ROOT_DOOMED)
    count_drop (d, host_idx, debt);
  else if (r > 0)
    count_payment (d, host_idx, debt);
  d->progress.l1_idx++;         /* also past a damaged one */
  return 0;
}

struct hold {
  struct dedup_disks *d;
  unsigned left;                /* entries that may be looked at yet */
};

/* Counts some entries under one hold of the lock, or several if tables are missing; a
 * step of qcow2_txn_retry. */
static int
count_some_locked (struct qcow2_txn *txn, void *opaque)
{
  struct hold *h = opaque;
  struct dedup_disks *d = h->d;
  const struct qcow2_snapshot *v;
  int r = 0;

  assert (lock_held (d->b->lock));
  for (; h->left > 0 && r == 0; h->left--) {
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
  struct hold h;
  int r = 0;

  while (!is_counted (d)) {
    if (now >= end)
      return true;
    dedup_lent_reserve (&d->progress.lent, ENTRIES_PER_HOLD);
    h = (struct hold) { .d = d, .left = ENTRIES_PER_HOLD };
    qcow2_txn_begin (d->b->img, &txn);
    r = qcow2_txn_retry (&txn, count_some_locked, &h);
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
dedup_progress_forget (struct dedup_disks *d)
{
  dedup_lent_free (d->progress.lent);
  d->progress.lent = NULL;
}

void
dedup_progress_destroy (struct dedup_disks *d)
{
  dedup_progress_forget (d);
  free (d->progress.uncounted);
}
