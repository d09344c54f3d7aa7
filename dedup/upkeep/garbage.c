/* SPDX-License-Identifier: BSD-3-Clause */
/* Scans the refcounts for free clusters, once a session, and frees garbage:
 * anchored data clusters to which no guest refers, because a program that does
 * not know the anchor dropped their last reference.
 *
 * The scan itself is qcow2_scan_step's.  It finds candidates by their refcounts,
 * which may be wrong; so none is freed before the job GIVE_BACK, or a writer
 * that lacks space, has verified that no L2 entry names it (qcow2_verify_step).
 * Each is looked at again under the image lock before it is freed.  Areas of the
 * store are anchored and without a guest's reference too, and are left alone.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Limits the clusters that one step frees. */
#define COLLECT_PER_STEP 2048

/* Limits the steps of verifying that a writer without space waits for: 32 MiB
 * of L2 tables, which map 16 GiB of disk in clusters of 4 KiB. */
#define VERIFY_STEPS 16

struct candidate {             /* a cluster that was garbage when verified */
  struct dedup_upkeep *u;
  uint64_t host_idx;
};

/* Puts the candidate into quarantine, as trimmed, if it is garbage still.
 * -EBUSY: there is no room for the record. */
static int
collect_cluster_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct candidate *g = opaque;
  struct dedup_upkeep *u = g->u;
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = g->host_idx, .count = 1,
  };
  struct qcow2_run run = { .host_idx = g->host_idx, .count = 1,
                           .trimmed = true };
  uint64_t refcount;
  bool anchored;
  int r;

  assert (lock_held (u->b->lock));
  if (!dedup_room_locked (u, 1, 0))
    return -EBUSY;
  r = qcow2_get_refcount_locked (txn, g->host_idx, &refcount, &anchored);
  if (r == 0)
    r = qcow2_prepare_host_locked (txn, g->host_idx, 1);
  if (r < 0 || !anchored || refcount != 1 ||
      qcow2_is_held_locked (u->b->img, g->host_idx))
    return r;
  dedup_change_locked (u->s, txn, &c);
  qcow2_quarantine_locked (u->b->img, &run,
                           dedup_journal_seq_locked (u->s->journal));
  dedup_journal_end_locked (u->s->journal);
  return 0;
}

/* Makes room for more records. */
static int
room_for_maintenance (struct dedup_upkeep *u)
{
  int r = dedup_journal_extend (u);

  if (r == 0)
    r = dedup_checkpoint (u->s);
  return r == 0 ? dedup_freeze (u) : r;
}

static int
collect_one (struct dedup_upkeep *u, uint64_t host_idx)
{
  struct candidate g = { u, host_idx };
  int r;

  if (dedup_area_contains (u->s, host_idx))
    return 0;
  r = dedup_enter (&u->s->gate);
  if (r < 0)
    return r;
  r = qcow2_txn_run (u->b->img, collect_cluster_locked, &g);
  dedup_leave (&u->s->gate);
  return r;
}

static bool
next_garbage (struct dedup_upkeep *u, uint64_t *host_idx)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return qcow2_garbage_locked (u->b->img, host_idx);
}

/* Notes that a cluster was freed, is in use, or cannot be freed. */
static void
done_with (struct dedup_upkeep *u, uint64_t host_idx)
{
  LOCK_FOR_SCOPE (u->b->lock);
  qcow2_garbage_clear_locked (u->b->img, host_idx);
}

/* Frees some garbage.  Returns 1 while there is more. */
static int
collect_some (struct dedup_upkeep *u)
{
  uint64_t host_idx;
  unsigned n;
  int r = 0;

  for (n = 0; n < COLLECT_PER_STEP && r == 0 && !dedup_stopping (u); n++) {
    if (!next_garbage (u, &host_idx))
      return 0;
    r = collect_one (u, host_idx);
    if (r == -EBUSY)
      r = room_for_maintenance (u);
    else
      done_with (u, host_idx);
  }
  return r < 0 ? r : 1;
}

bool
dedup_scan_due_locked (struct dedup_upkeep *u)
{
  uint64_t host_idx;

  return !qcow2_scan_done_locked (u->b->img) ||
    qcow2_garbage_locked (u->b->img, &host_idx);
}

static bool
is_scanned (struct dedup_upkeep *u)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return qcow2_scan_done_locked (u->b->img);
}

int
dedup_scan (struct dedup_upkeep *u)
{
  int r;

  if (is_scanned (u))
    return collect_some (u);
  r = qcow2_scan_step (u->b->img);
  return r < 0 ? r : 1;
}

static int
scan_on (struct dedup_upkeep *u)
{
  int r;

  while ((r = dedup_scan (u)) == 1 && !dedup_stopping (u))
    ;
  return MIN_OF (r, 0);
}

static bool
garbage_waits (struct dedup_upkeep *u)
{
  LOCK_FOR_SCOPE (u->b->lock);
  return qcow2_garbage_waits_locked (u->b->img);
}

int
dedup_find_garbage (struct dedup_upkeep *u)
{
  unsigned steps = 0;
  int r = scan_on (u);

  while (r == 0 && steps++ < VERIFY_STEPS && garbage_waits (u) &&
         !dedup_stopping (u)) {
    r = qcow2_verify_step (u->b->img);
    if (r == 0)
      r = scan_on (u);
    r = MIN_OF (r, 0);
  }
  return r;
}
