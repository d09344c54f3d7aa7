/* SPDX-License-Identifier: BSD-3-Clause */
/* Holds candidates and compares their bytes: clusters that may hold a slot's
 * data, according to a hint, the index or a claim.
 *
 * A candidate is held before it is compared, so that it cannot be freed, and
 * its bytes are read and compared without the lock.  A cluster is never
 * rewritten in place, so bytes that were equal still are when it is linked.
 * If a read fails, the candidate counts as different: the data is stored once
 * more, and the write succeeds.
 *
 * Candidates that lie apart are read side by side (io_read_many).  Compressed ones
 * are read so, too, and expanded; of a small operation by way of the expanded clusters
 * that are kept, because a guest may write the same small part again and again.
 */
#include "aligned.h"
#include "op.h"

#include <errno.h>

/* Bytes that are read and compared at a time: few enough to be in the core's
 * cache still when they are compared. */
#define COMPARE_BYTES ((size_t) 128 << 10)

struct wanted_hold {
  uint64_t entry, ref_limit;
};

static int
hold_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct wanted_hold *h = opaque;

  assert (lock_held (qcow2_lock (txn->img)));
  return qcow2_hold_entry_locked (txn, h->entry, h->ref_limit);
}

/* Makes the slot new.  MAY_HOLD: its candidate may hold the data all the same, and
 * loses its entry now. */
static void
leave_candidate (struct slot *s, bool may_hold)
{
  if (s->kind == SLOT_CANDIDATE && may_hold)
    s->replaced = s->value;
  s->kind = SLOT_NEW;
}

/* Leaves a candidate that a rewrite avoids.  A plain cluster that the slot's own entry
 * leads to is freed when that was the last one; else it loses its entry. */
static void
leave_avoided (struct slot *s)
{
  const bool is_own = s->value == s->again && !dedup_value_is_compressed (s->value);

  if (is_own)
    s->moved = s->value;
  leave_candidate (s, !is_own);
}

/* Leaves a candidate that gets no new links. */
static void
leave_bad (struct op *op, struct slot *s)
{
  dedup_unhold_slot_locked (op, s);
  dedup_journal_end_locked (op->w->s->journal);   /* unhold may have freed */
  leave_candidate (s, true);
}

/* Returns whether a scrub found one of the candidate's clusters bad. */
static bool
is_bad_locked (struct dedup_writer *w, uint64_t value)
{
  uint64_t first, count, i;
  bool bad = false;

  assert (lock_held (w->b->lock));
  dedup_value_clusters (w->b, value, &first, &count);
  for (i = 0; i < count; i++)
    bad = bad || dedup_bad_find_locked (&w->s->bad, first + i);
  return bad;
}

bool
dedup_any_between (const uint64_t *v, size_t nr, uint64_t first, uint64_t count)
{
  size_t lo = 0, hi = nr, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (v[mid] < first)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < nr && v[lo] - first < count;
}

/* Returns whether one of the candidate's clusters is being emptied. */
static bool
is_emptied_locked (struct dedup_writer *w, uint64_t value)
{
  uint64_t first, count;

  assert (lock_held (w->b->lock));
  if (w->nr_emptying == 0)
    return false;
  dedup_value_clusters (w->b, value, &first, &count);
  return dedup_any_between (w->emptying, w->nr_emptying, first, count);
}

/* Leaves a candidate with bytes that may still be written: what it was entered for is
 * there no longer, or will not be. */
static void
leave_unfinished (struct op *op, struct slot *s)
{
  dedup_unhold_slot_locked (op, s);
  dedup_journal_end_locked (op->w->s->journal);   /* unhold may have freed */
  leave_candidate (s, false);
}

/* A joiner's cluster that is not linked yet needs no hold: the claim keeps
 * it. */
int
dedup_hold_candidates (struct op *op, enum slot_kind kind)
{
  const struct dedup_base *b = op->w->b;
  size_t i;
  int r;

  if (dedup_count_slots (op, kind) == 0)
    return 0;
  LOCK_FOR_SCOPE (b->lock);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];
    struct wanted_hold h = { dedup_value_entry (b, s->value),
                             dedup_ref_limit (b) };

    if (s->kind != kind || s->held)
      continue;
    if (op->avoids && op->avoids (op->avoids_opaque, h.entry)) {
      leave_avoided (s);
      continue;
    }
    r = qcow2_txn_retry_locked (&op->txn, hold_locked, &h);
    if (r == -ENOMEM)
      return r;
    s->held = r == 0;
    if (s->held && (is_bad_locked (op->w, s->value) ||
                    is_emptied_locked (op->w, s->value)))
      leave_bad (op, s);
    else if (s->held && dedup_pack_unfinished_locked (&op->w->pack, s->value))
      leave_unfinished (op, s);   /* law 17 */
    else if (r < 0)                        /* free, full, or its table is unreadable */
      leave_candidate (s, r != -ENOENT);
  }
  return 0;
}

/* Returns how many of the NR slots IDX, from the first on, have candidates that
 * follow each other in the file. */
static size_t
run_length (const struct op *op, const size_t *idx, size_t nr)
{
  size_t n = 1;

  while (n < nr && op->slots[idx[n]].value ==
         op->slots[idx[0]].value + n)
    n++;
  return n;
}

/* Fills V with the candidates of NR slots, as parts of one read to TMP, which
 * is NULL for advice.  Returns how many parts. */
static size_t
candidate_parts (const struct op *op, const size_t *idx, size_t nr,
                 uint8_t *tmp, struct io_part *v)
{
  const uint64_t size = op->w->b->cluster_size;
  size_t k, n, parts = 0;

  for (k = 0; k < nr; k += n) {
    n = run_length (op, idx + k, nr - k);
    v[parts++] = (struct io_part) {
      .buf = tmp ? tmp + k * size : NULL, .len = n * size,
      .host_off = op->slots[idx[k]].value * size,
    };
  }
  return parts;
}

/* Notes that the candidates of NR slots could not be read. */
static void
note_unreadable (struct op *op, const size_t *idx, size_t nr)
{
  size_t k;

  for (k = 0; k < nr; k++)
    if (op->slots[idx[k]].kind != SLOT_GUESS)
      dedup_leave_named (&op->slots[idx[k]]);
}

/* Compares the slots from IDX on with part P, which has their candidates.  If
 * it could not be read, they are not the same. */
static void
compare_part (struct op *op, const size_t *idx, const struct io_part *p)
{
  const uint64_t size = op->w->b->cluster_size;
  const uint8_t *bytes = p->buf;
  size_t k;

  if (p->result < 0) {
    note_unreadable (op, idx, p->len / size);
    return;
  }
  WORK_WITHOUT_LOCK (COMPARE);
  for (k = 0; k < p->len / size; k++) {
    struct slot *s = &op->slots[idx[k]];

    s->same = memcmp (bytes + k * size, slot_data (op, idx[k]), size) == 0;
    if (!s->same && s->kind != SLOT_GUESS)
      dedup_look_at_different (op, s, bytes + k * size);
  }
}

/* Compares NR slots with their candidates, MAX at a time.  V has room for NR
 * parts.  If it takes several reads, all are announced before the first. */
static void
compare_slots (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp,
               size_t max, struct io_part *v)
{
  struct dedup_writer *w = op->w;
  size_t start, n, k, parts;
  int r;

  if (nr > max)
    (void) io_will_need (w->b->io, v, candidate_parts (op, idx, nr, NULL, v),
                         true);
  for (start = 0; start < nr; start += n) {
    n = MIN_OF (nr - start, max);
    parts = candidate_parts (op, idx + start, n, tmp, v);
    r = io_read_many (w->b->io, v, parts);
    (void) r;                   /* each part has a result of its own */
    for (k = 0; k < parts; k++)
      compare_part (op, idx + start + ((uint8_t *) v[k].buf - tmp)
                    / w->b->cluster_size, &v[k]);
  }
}

/* Begins to read the compressed candidates of NR slots, so that none is waited for
 * before the next is asked for.  V has room for NR parts. */
static void
announce_compressed (const struct op *op, const size_t *idx, size_t nr,
                     struct io_part *v)
{
  const struct dedup_base *b = op->w->b;
  uint64_t len;
  size_t k;

  for (k = 0; k < nr; k++) {
    v[k] = (struct io_part) { .buf = NULL };
    qcow2_compressed_extent (b->img, op->slots[idx[k]].value, &v[k].host_off,
                             &len);
    v[k].len = len;
  }
  if (nr > 1)
    (void) io_will_need (b->io, v, nr, true);
}

/* Compares slot I with its compressed candidate, whose BYTES were read with RESULT.  One
 * that does not expand is not the same.  That says nothing of the host clusters: they may
 * hold other compressed data by now. */
static void
compare_expanded (struct op *op, size_t i, int result, const uint8_t *bytes)
{
  struct slot *s = &op->slots[i];

  s->same = result == 0 &&
    memcmp (bytes, slot_data (op, i), op->w->b->cluster_size) == 0;
  if (!s->same && s->kind == SLOT_JOIN)
    dedup_leave_named (s);
}

/* Compressed candidates that are expanded before they are compared. */
#define EXPAND_AT_ONCE 32

/* Compares NR slots, at most EXPAND_AT_ONCE, with their compressed candidates, which are
 * expanded to TMP.  What is the candidate of several slots is expanded once. */
static void
compare_some_compressed (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp)
{
  const struct dedup_base *b = op->w->b;
  struct qcow2_compressed_part v[EXPAND_AT_ONCE];
  size_t part_of[EXPAND_AT_ONCE], n = 0, k, p;
  int r;

  for (k = 0; k < nr; k++) {
    const uint64_t value = op->slots[idx[k]].value;

    for (p = 0; p < n && v[p].entry != value; p++)
      ;
    part_of[k] = p;
    if (p == n)
      v[n++] = (struct qcow2_compressed_part) {
        .entry = value, .out = tmp + p * b->cluster_size,
      };
  }
  r = qcow2_compressed_read_many (b->img, v, n);
  (void) r;                     /* each part has a result of its own */
  WORK_WITHOUT_LOCK (COMPARE);
  for (k = 0; k < nr; k++)
    compare_expanded (op, idx[k], v[part_of[k]].result, v[part_of[k]].out);
}

/* Compares slots of a small operation with their compressed candidates, which are kept
 * expanded. */
static void
compare_kept (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp)
{
  const struct dedup_base *b = op->w->b;
  size_t k;
  int r;

  for (k = 0; k < nr; k++) {
    r = qcow2_expanded_read (b->img, op->slots[idx[k]].value, tmp, 0,
                             b->cluster_size);
    compare_expanded (op, idx[k], r, tmp);
  }
}

/* Compares NR slots with their compressed candidates, at most MAX at a time, for which
 * TMP has room. */
static void
compare_compressed (struct op *op, const size_t *idx, size_t nr, uint8_t *tmp,
                    size_t max, struct io_part *v)
{
  size_t k, n;

  announce_compressed (op, idx, nr, v);
  if (op->nr <= DEDUP_FEW_SLOTS) {
    compare_kept (op, idx, nr, tmp);
    return;
  }
  for (k = 0; k < nr; k += n) {
    n = MIN_OF (nr - k, MIN_OF (max, EXPAND_AT_ONCE));
    compare_some_compressed (op, idx + k, n, tmp);
  }
}

void
dedup_unhold_slot_locked (struct op *op, struct slot *s)
{
  assert (lock_held (op->w->b->lock));
  if (s->held) {
    qcow2_unhold_entry_locked (&op->txn,
                               dedup_value_entry (op->w->b, s->value));
    s->held = false;
  }
}

/* Makes slots with other bytes than their candidate new; returns how many. */
static size_t
drop_different_locked (struct op *op, const size_t *idx, size_t nr)
{
  size_t i, others = 0;

  assert (lock_held (op->w->b->lock));
  for (i = 0; i < nr; i++) {
    struct slot *s = &op->slots[idx[i]];

    if (s->same)
      continue;
    dedup_unhold_slot_locked (op, s);
    s->kind = SLOT_NEW;
    others++;
  }
  dedup_journal_end_locked (op->w->s->journal);   /* unhold may have freed */
  return others;
}

/* Sets IDX to the slots of KIND with candidates that are compressed, or are not.
 * Returns how many. */
static size_t
find_slots (struct op *op, enum slot_kind kind, bool compressed, size_t *idx)
{
  size_t i, nr = 0;

  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == kind &&
        dedup_value_is_compressed (op->slots[i].value) == compressed) {
      op->slots[i].same = false;
      idx[nr++] = i;
    }
  return nr;
}

int
dedup_compare_candidates (struct op *op, enum slot_kind kind,
                          bool compressed_only, size_t *others)
{
  struct dedup_writer *w = op->w;
  CLEANUP_FREE uint8_t *tmp = NULL;
  CLEANUP_FREE struct io_part *parts = NULL;
  size_t *idx = op->idx, i, plain = 0, nr;
  size_t max = MAX_OF (COMPARE_BYTES / w->b->cluster_size, 1);

  *others = 0;
  if (!compressed_only)
    plain = find_slots (op, kind, false, idx);
  nr = plain + find_slots (op, kind, true, idx + plain);
  if (nr == 0)
    return 0;
  tmp = aligned_new (MIN_OF (nr, max) * w->b->cluster_size);
  parts = malloc (nr * sizeof *parts);
  if (tmp == NULL || parts == NULL)
    return -ENOMEM;
  compare_slots (op, idx, plain, tmp, max, parts);
  compare_compressed (op, idx + plain, nr - plain, tmp, max, parts);
  for (i = 0; i < nr && op->slots[idx[i]].same; i++)
    ;
  if (i < nr) {
    LOCK_FOR_SCOPE (w->b->lock);
    *others = drop_different_locked (op, idx + i, nr - i);
  }
  return 0;
}
