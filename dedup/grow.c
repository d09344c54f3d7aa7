/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes refcount table and anchor L1 larger at open, if the file may outgrow
 * them.
 *
 * New tables are laid out and written where nothing refers to them; one group
 * of records switches to them.  Where the host has no space for that, nothing
 * is changed, and the old tables limit the size of the file.
 *
 * One thread, at open.
 */
#include "pool.h"

#include <errno.h>

/* Makes the plan for tables that count BOUND clusters.  1: it is *PLAN; 0:
 * none is needed, or there is no space for it. */
static int
make_plan (const struct dedup_base *b, uint64_t bound, struct qcow2_plan **plan,
           struct fault *f)
{
  struct fault why = { 0 };
  int r = qcow2_plan_new (b->img, NULL, 0, bound, plan, &why);

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

/* Makes a plan only if the tables are an eighth below the bound, so that it
 * does not happen at every open.  Returns as make_plan. */
static int
choose_plan (const struct dedup_base *b, struct qcow2_plan **plan,
             struct fault *f)
{
  const uint64_t bound = qcow2_growth_bound (b->img);
  int r = make_plan (b, bound - bound / 8, plan, f);

  if (r <= 0)
    return r;
  qcow2_plan_free (*plan);
  *plan = NULL;
  return make_plan (b, bound, plan, f);
}

/* A qcow2_step: applies the change OPAQUE. */
static int
apply_locked (struct qcow2_txn *txn, void *opaque)
{
  return qcow2_apply_locked (txn, opaque);
}

/* Applies all changes of PLAN and appends their records.  The lock is released
 * while a table is loaded, inside the group: only one thread is there at
 * open. */
static int
apply_changes_locked (struct dedup_store *s, struct qcow2_txn *txn,
                      const struct qcow2_plan *plan)
{
  size_t i;
  int r = 0;

  for (i = 0; r == 0 && i < plan->nr_changes; i++) {
    r = qcow2_txn_retry_locked (txn, apply_locked, &plan->changes[i]);
    if (r == 0)
      dedup_append_change_locked (s, &plan->changes[i]);
  }
  return r;
}

static int
wait_for_room (struct dedup_upkeep *u, size_t nr_changes)
{
  int r = 0;

  while (r == 0 && !dedup_room_locked (u, nr_changes, 0)) {
    lock_release (u->b->lock);
    r = dedup_make_room (u);
    lock_acquire (u->b->lock);
  }
  return r;
}

/* Applies all changes of PLAN as one group.  *CHANGED: some were made, so a
 * failure leaves tables that contradict the journal. */
static int
apply_plan (struct dedup_upkeep *u, const struct qcow2_plan *plan,
            bool *changed)
{
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (u->b->img, &txn);
  lock_acquire (u->b->lock);
  r = wait_for_room (u, plan->nr_changes);
  *changed = r == 0;
  if (r == 0)
    r = apply_changes_locked (u->s, &txn, plan);
  dedup_journal_end_locked (u->s->journal);
  qcow2_txn_end_locked (&txn);
  lock_release (u->b->lock);
  return r;
}

static int
write_plan (struct dedup_store *s, struct qcow2_plan *plan)
{
  int r = qcow2_plan_write (s->b->img, plan);

  return r == 0 ? dedup_sync (s) : r;
}

/* Switches to the new tables, which are written. */
static int
switch_tables (struct dedup_upkeep *u, const struct qcow2_plan *plan)
{
  bool changed;
  int r = dedup_enter (&u->s->gate);

  if (r < 0)
    return r;
  r = apply_plan (u, plan, &changed);
  dedup_leave (&u->s->gate);
  return r < 0 && (changed || r != -ENOSPC)
    ? dedup_fail (&u->s->gate, r == -ENOSPC ? -EIO : r,
                  "making its tables larger failed") : r;
}

int
dedup_grow_tables (struct dedup_upkeep *u, struct fault *f)
{
  struct qcow2_plan *plan = NULL;
  int r = choose_plan (u->b, &plan, f);

  if (r <= 0)
    return r;
  r = write_plan (u->s, plan);
  if (r == 0)
    r = switch_tables (u, plan);
  qcow2_plan_free (plan);
  if (r == -ENOSPC)             /* the old tables limit the file */
    return 0;
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot make its tables larger: %s",
                     strerror (-r));
  r = dedup_checkpoint (u->s);
  if (r == -ENOSPC)             /* the journal has it */
    r = 0;
  return r < 0 ? r : dedup_guard (u->s, true, f);
}
