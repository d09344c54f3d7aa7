/* SPDX-License-Identifier: BSD-3-Clause */
/* Candidates: clusters that may hold a slot's bytes, by a hint, the index or
 * a claim.  Before one is linked it is held, so that it cannot be freed, and
 * its bytes are compared without the lock.
 *
 * Candidates that lie apart are read side by side (io_read_many).  What is held
 * stays what it was, for a cluster is never rewritten in place; so
 * bytes that were equal are equal when it is linked.  A read that fails makes
 * a candidate different: the block is stored once more, and nobody's write fails.
 */
#include "aligned.h"
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

/* How many of the NR slots at IDX have candidates that lie one behind the
 * other. */
static size_t
run_length (const struct op *op, const size_t *idx, size_t nr)
{
  size_t n = 1;

  while (n < nr && op->slots[idx[n]].host_idx ==
         op->slots[idx[0]].host_idx + n)
    n++;
  return n;
}

/* The candidates of NR slots as parts of one read to TMP, which may be NULL for
 * advice; how many. */
static size_t
candidate_parts (const struct op *op, const size_t *idx, size_t nr,
                 uint8_t *tmp, struct io_part *v)
{
  const uint64_t size = op->d->cluster_size;
  size_t k, n, parts = 0;

  for (k = 0; k < nr; k += n) {
    n = run_length (op, idx + k, nr - k);
    v[parts++] = (struct io_part) {
      .buf = tmp ? tmp + k * size : NULL, .len = n * size,
      .host_off = op->slots[idx[k]].host_idx * size,
    };
  }
  return parts;
}

/* Slots whose candidates were read as part P, to TMP: those of a part that
 * could not be read stay "not the same". */
static void
compare_part (struct op *op, const size_t *idx, const struct io_part *p)
{
  const uint64_t size = op->d->cluster_size;
  const uint8_t *bytes = p->buf;
  size_t k;

  if (p->result < 0)
    return;
  WORK_WITHOUT_LOCK (COMPARE);
  for (k = 0; k < p->len / size; k++)
    op->slots[idx[k]].same =
      memcmp (bytes + k * size, slot_data (op, idx[k]), size) == 0;
}

/* Compare NR slots with their candidates, MAX at a time.  V has room for a part
 * each.  All are announced before the first is waited for. */
static void
compare_slots (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp,
               size_t max, struct io_part *v)
{
  struct dedup_disk *d = op->d;
  size_t start, n, k, parts;
  int r;

  if (nr > max)
    (void) io_will_need (d->io, v, candidate_parts (op, idx, nr, NULL, v),
                         true);
  for (start = 0; start < nr; start += n) {
    n = MIN_OF (nr - start, max);
    parts = candidate_parts (op, idx + start, n, tmp, v);
    r = io_read_many (d->io, v, parts);
    (void) r;                   /* each part has a result of its own */
    for (k = 0; k < parts; k++)
      compare_part (op, idx + start + ((uint8_t *) v[k].buf - tmp)
                    / d->cluster_size, &v[k]);
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
  CLEANUP_FREE struct io_part *parts = NULL;
  size_t *idx = op->idx, i, nr = dedup_count_slots (op, kind);
  size_t max = MAX_OF (COMPARE_BYTES / d->cluster_size, 1);

  *others = 0;
  if (nr == 0)
    return 0;
  tmp = aligned_new (MIN_OF (nr, max) * d->cluster_size);
  parts = malloc (nr * sizeof *parts);
  if (tmp == NULL || parts == NULL)
    return -ENOMEM;
  for (i = 0, nr = 0; i < op->nr; i++)
    if (op->slots[i].kind == kind) {
      op->slots[i].same = false;
      idx[nr++] = i;
    }
  compare_slots (op, idx, nr, tmp, max, parts);
  for (i = 0; i < nr && op->slots[idx[i]].same; i++)
    ;
  if (i < nr) {
    LOCK_FOR_SCOPE (d->lock);
    *others = leave_others_locked (op, idx + i, nr - i);
  }
  return 0;
}
