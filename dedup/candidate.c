/* SPDX-License-Identifier: BSD-3-Clause */
/* Candidates: clusters that may hold a slot's bytes, by a hint, the index or
 * a claim.  Before one is linked it is held, so that it cannot be freed, and
 * its bytes are compared without the lock.
 *
 * What is held stays what it was, for a cluster is never rewritten in place; so
 * bytes that were equal are equal when it is linked.  A read that fails makes
 * a candidate different: the block is stored once more, and nobody's write fails.
 */
#include "write.h"

#include <errno.h>

/* Read and compared at a time: what was read is still in the core's cache
 * when it is compared. */
#define COMPARE_BYTES ((size_t) 128 << 10)

/* A joiner's cluster that is not linked yet needs no hold: the claim keeps
 * it. */
int
dedup_hold_candidates (struct op *op, enum slot_kind kind)
{
  struct dedup_disk *d = op->d;
  size_t i = 0;
  int r = 0;

  if (dedup_count_slots (op, kind) == 0)
    return 0;
  lock_acquire (d->lock);
  while (i < op->nr) {
    struct slot *s = &op->slots[i];

    if (s->kind != kind || s->held) {
      i++;
      continue;
    }
    r = qcow2_hold_locked (&op->txn, s->host_idx, d->ref_limit);
    if (r == -EAGAIN) {
      lock_release (d->lock);
      r = qcow2_txn_load (&op->txn);
      lock_acquire (d->lock);
      if (r == 0)
        continue;
    }
    if (r == 0)
      s->held = true;
    else if (r == -ENOMEM)
      break;
    else
      s->kind = SLOT_NEW;        /* stale, full or unreadable: no candidate */
    r = 0;
    i++;
  }
  lock_release (d->lock);
  return r;
}

/* NR slots whose candidates lie one behind the other, at most COMPARE_BYTES
 * or one.  A read that fails leaves them "not the same". */
static void
compare_run (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp)
{
  struct dedup_disk *d = op->d;
  uint64_t size = d->cluster_size;
  size_t k;

  if (io_pread (d->io, tmp, nr * size,
                op->slots[idx[0]].host_idx * size) < 0)
    return;
  WORK_WITHOUT_LOCK (COMPARE);
  for (k = 0; k < nr; k++)
    op->slots[idx[k]].same =
      memcmp (tmp + k * size, slot_data (op, idx[k]), size) == 0;
}

static void
compare_slots (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp,
               size_t max)
{
  size_t start, n;

  for (start = 0; start < nr; start += n) {
    for (n = 1; start + n < nr && n < max; n++)
      if (op->slots[idx[start + n]].host_idx !=
          op->slots[idx[start]].host_idx + n)
        break;
    compare_run (op, idx + start, n, tmp);
  }
}

void
dedup_unhold_slot_locked (struct op *op, struct slot *s)
{
  if (s->held) {
    qcow2_unhold_locked (&op->txn, s->host_idx);
    s->held = false;
  }
}

/* Slots that have other bytes than their candidate become new. */
static size_t
leave_others_locked (struct op *op, const size_t *idx, size_t nr)
{
  size_t i, others = 0;

  for (i = 0; i < nr; i++) {
    struct slot *s = &op->slots[idx[i]];

    if (s->same)
      continue;
    dedup_unhold_slot_locked (op, s);
    s->kind = SLOT_NEW;
    others++;
  }
  dedup_journal_end_locked (op->d->journal);   /* unhold may have freed */
  return others;
}

int
dedup_compare_candidates (struct op *op, enum slot_kind kind, size_t *others)
{
  struct dedup_disk *d = op->d;
  CLEANUP_FREE uint8_t *tmp = NULL;
  size_t *idx = op->idx, i, nr = dedup_count_slots (op, kind);
  size_t max = MAX_OF (COMPARE_BYTES / d->cluster_size, 1);

  *others = 0;
  if (nr == 0)
    return 0;
  tmp = malloc (MIN_OF (nr, max) * d->cluster_size);
  if (tmp == NULL)
    return -ENOMEM;
  for (i = 0, nr = 0; i < op->nr; i++)
    if (op->slots[i].kind == kind) {
      op->slots[i].same = false;
      idx[nr++] = i;
    }
  compare_slots (op, idx, nr, tmp, max);
  for (i = 0; i < nr && op->slots[idx[i]].same; i++)
    ;
  if (i < nr) {
    LOCK_FOR_SCOPE (d->lock);
    *others = leave_others_locked (op, idx + i, nr - i);
  }
  return 0;
}
