/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a reserve of free clusters that have space on the host, for
 * overwriting data when the host is full.
 *
 * Data is never written over in place, so an overwrite needs a cluster before
 * it frees one.  When the host has no space left, new data is refused, but
 * data that replaces other data takes clusters of the reserve.  The clusters
 * that it frees return to the reserve, with the space that they have, once
 * law 6 allows.  So as many clusters can be overwritten as the reserve has,
 * and without end where no other reference keeps the replaced ones.
 *
 * The reserve has as many clusters as the largest operation takes, 2 MiB at
 * most, and no more than the disk has.  The commit job gets them, after the
 * scan for free clusters, when something was changed, and makes their refcount
 * blocks and anchor tables.  They are reserved in memory only: a crash, like a
 * close, leaves free clusters.
 *
 * Protected by the image lock, which is released while the host is asked for
 * space.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Runs of free clusters without space that one fill may meet. */
#define FILL_TRIES 256

static unsigned
target (const struct dedup_base *b)
{
  uint64_t nr = DEDUP_CHUNK_BYTES >> b->cluster_bits;

  nr = MIN_OF (nr, DEDUP_CHUNK_CLUSTERS);
  return (unsigned) MIN_OF (nr, qcow2_geometry (b->img)->nr_clusters);
}

bool
dedup_reserve_take_locked (struct dedup_overwrite_reserve *res,
                           uint64_t *host_idx)
{
  assert (lock_held (res->b->lock));
  if (res->nr == 0)
    return false;
  *host_idx = res->v[--res->nr];
  return true;
}

bool
dedup_reserve_put_locked (struct dedup_overwrite_reserve *res,
                          uint64_t host_idx)
{
  assert (lock_held (res->b->lock));
  if (res->nr >= target (res->b))
    return false;
  res->v[res->nr++] = host_idx;
  return true;
}

void
dedup_reserve_keep_locked (struct dedup_overwrite_reserve *res,
                           const struct qcow2_run *run)
{
  uint64_t k;

  assert (lock_held (res->b->lock));
  /* A session that never asked for a reserve does not need one. */
  if (!res->wanted || run->trimmed)
    return;
  for (k = 0; k < run->count && res->nr < target (res->b); k++)
    if (qcow2_reserve_one_locked (res->b->img, run->host_idx + k))
      res->v[res->nr++] = run->host_idx + k;
}

void
dedup_reserve_give_back_locked (struct dedup_overwrite_reserve *res)
{
  struct qcow2_run run = { .count = 1 };

  assert (lock_held (res->b->lock));
  while (res->nr > 0) {
    run.host_idx = res->v[--res->nr];
    qcow2_unreserve_locked (res->b->img, &run);
  }
}

bool
dedup_reserve_due_locked (struct dedup_overwrite_reserve *res)
{
  assert (lock_held (res->b->lock));
  return !res->wanted && res->s->gate.recovery_bit &&
    qcow2_scan_done_locked (res->b->img);
}

/* --- Filling ------------------------------------------------------------- */

struct new_run {
  struct dedup_upkeep *u;
  struct qcow2_run run;
};

/* Makes the tables that count the run, so that its use needs no more space.
 * -EBUSY: there is no room for their records. */
static int
prepare_run_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct new_run *n = opaque;
  int r;

  assert (lock_held (n->u->b->lock));
  if (!dedup_room_locked (n->u, 8, 0))     /* for some 60 tables */
    return -EBUSY;
  r = qcow2_prepare_host_locked (txn, n->run.host_idx, n->run.count);
  dedup_journal_end_locked (n->u->s->journal);
  return r;
}

/* Adds up to WANTED clusters, in one run, to the reserve.  Returns how many. */
static int
add_run_locked (struct dedup_upkeep *u, struct qcow2_txn *txn, uint64_t wanted)
{
  struct new_run n = { .u = u };
  uint64_t k;
  int r;

  assert (lock_held (u->b->lock));
  r = qcow2_reserve_locked (u->b->img, wanted, &n.run);
  if (r < 0)
    return r;
  r = qcow2_back_locked (u->b->img, &n.run);
  if (r == 0)
    r = qcow2_txn_retry_locked (txn, prepare_run_locked, &n);
  if (r < 0) {
    qcow2_unreserve_unbacked_locked (u->b->img, &n.run);
    return r;
  }
  for (k = n.run.count; k-- > 0; ) {
    struct qcow2_run one = { .host_idx = n.run.host_idx + k, .count = 1 };

    if (!dedup_reserve_put_locked (&u->reserve, one.host_idx))
      qcow2_unreserve_locked (u->b->img, &one);
  }
  return (int) n.run.count;
}

static void
fill_locked (struct dedup_upkeep *u, struct qcow2_txn *txn)
{
  uint64_t wanted = target (u->b);
  unsigned failed = 0;
  int r;

  assert (lock_held (u->b->lock));
  while (failed < FILL_TRIES && u->reserve.nr < target (u->b)) {
    r = add_run_locked (u, txn, MIN_OF (wanted, target (u->b) - u->reserve.nr));
    if (r < 0 && r != -ENOSPC)
      return;                   /* a later commit tries again */
    if (r == -ENOSPC) {         /* other free clusters may have space */
      qcow2_skip_locked (u->b->img, failed++);
      wanted = 1;
    }
    else
      wanted *= 2;
  }
}

void
dedup_reserve_fill (struct dedup_upkeep *u)
{
  struct qcow2_txn txn;
  bool fill;

  lock_acquire (u->b->lock);
  fill = u->reserve.nr < target (u->b) && u->s->gate.recovery_bit &&
    qcow2_scan_done_locked (u->b->img);
  u->reserve.wanted = u->reserve.wanted || fill;
  lock_release (u->b->lock);
  if (!fill || dedup_enter (&u->s->gate) < 0)
    return;
  qcow2_txn_begin (u->b->img, &txn);
  lock_acquire (u->b->lock);
  if (!u->reserve.filling) {
    u->reserve.filling = true;
    fill_locked (u, &txn);
    u->reserve.filling = false;
  }
  qcow2_txn_end_locked (&txn);
  lock_release (u->b->lock);
  dedup_leave (&u->s->gate);
}
