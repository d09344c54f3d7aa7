/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes refcount table and anchor L1 larger at open, if the file may outgrow
 * them.
 *
 * New tables are laid out and written where nothing refers to them; one group of
 * records switches to them.  Where the host has no space for that, the old tables
 * bound the file, and nothing is changed.
 *
 * One thread, at open.
 */
#include "disk.h"

#include <errno.h>

/* The plan that lets tables speak of BOUND clusters: 1; 0: none is needed, or
 * there is no space for it. */
static int
make_plan (struct dedup_disk *d, uint64_t bound, struct qcow2_plan **plan,
           struct fault *f)
{
  struct fault why = { 0 };
  int r = qcow2_plan_new (d->img, NULL, 0, bound, plan, &why);

  if (r == -ENOSPC)
    return 0;
  if (r < 0)
    return fault_set (f, why.kind, -r, why.off, "%s", why.msg);
  if ((*plan)->new_header)
    return 1;
  qcow2_plan_free (*plan);
  *plan = NULL;
  return 0;
}

/* With slack, so that it does not happen at every open. */
static int
choose_plan (struct dedup_disk *d, struct qcow2_plan **plan, struct fault *f)
{
  const uint64_t bound = qcow2_growth_bound (d->img);
  int r = make_plan (d, bound - bound / 8, plan, f);

  if (r <= 0)
    return r;
  qcow2_plan_free (*plan);
  *plan = NULL;
  return make_plan (d, bound, plan, f);
}

/* Change number I, and its record, under the lock, which is given up while a table
 * is loaded. */
static int
apply_change (struct dedup_disk *d, struct qcow2_txn *txn,
              const struct qcow2_change *c)
{
  int r;

  while ((r = qcow2_apply_locked (txn, c)) == -EAGAIN) {
    lock_release (d->lock);
    r = qcow2_txn_load (txn);
    lock_acquire (d->lock);
    if (r < 0)
      return r;
  }
  if (r == 0)
    dedup_append_change_locked (d, c);
  return r;
}

static int
wait_for_room (struct dedup_disk *d, size_t nr_changes)
{
  int r = 0;

  while (r == 0 && !dedup_room_locked (d, nr_changes, 0)) {
    lock_release (d->lock);
    r = dedup_make_room (d);
    lock_acquire (d->lock);
  }
  return r;
}

/* All changes of PLAN as one group.  *CHANGED: some were made, so a failure
 * leaves tables that contradict the journal. */
static int
apply_plan (struct dedup_disk *d, const struct qcow2_plan *plan, bool *changed)
{
  struct qcow2_txn txn;
  size_t i;
  int r;

  qcow2_txn_begin (d->img, &txn);
  lock_acquire (d->lock);
  r = wait_for_room (d, plan->nr_changes);
  *changed = r == 0;
  for (i = 0; r == 0 && i < plan->nr_changes; i++)
    r = apply_change (d, &txn, &plan->changes[i]);
  dedup_journal_end_locked (d->journal);
  qcow2_txn_end_locked (&txn);
  lock_release (d->lock);
  return r;
}

static int
write_plan (struct dedup_disk *d, struct qcow2_plan *plan)
{
  int r = qcow2_plan_write (d->img, plan);

  return r == 0 ? dedup_sync (d) : r;
}

/* The tables are written; switch to them. */
static int
switch_tables (struct dedup_disk *d, const struct qcow2_plan *plan)
{
  bool changed;
  int r = dedup_change_begin (d);

  if (r < 0)
    return r;
  r = apply_plan (d, plan, &changed);
  dedup_change_end (d);
  return r < 0 && (changed || r != -ENOSPC)
    ? dedup_fail (d, r == -ENOSPC ? -EIO : r,
                  "making its tables larger failed") : r;
}

int
dedup_grow_tables (struct dedup_disk *d, struct fault *f)
{
  struct qcow2_plan *plan = NULL;
  int r = choose_plan (d, &plan, f);

  if (r <= 0)
    return r;
  r = write_plan (d, plan);
  if (r == 0)
    r = switch_tables (d, plan);
  qcow2_plan_free (plan);
  if (r == -ENOSPC)             /* the old tables bound the file */
    return 0;
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot make its tables larger: %s",
                     strerror (-r));
  r = dedup_checkpoint (d);
  if (r == -ENOSPC)             /* the journal has it */
    r = 0;
  return r < 0 ? r : dedup_guard (d, true, f);
}
