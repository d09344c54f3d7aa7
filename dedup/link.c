/* SPDX-License-Identifier: BSD-3-Clause */
/* The link step: the only place where an operation changes tables.
 *
 * First everything that the changes need is prepared: tables in memory and
 * private, room in journal, log store and cache, refcounts below the limit.
 * Preparing may allocate tables (each a complete change of its own) and may
 * have to let go of the lock to load; then all of it starts again, with what
 * was loaded pinned.  Once a pass succeeds without letting go, the changes
 * are made and their records appended, all under that one hold of the lock:
 * one group, which a recovery applies whole or not at all.
 */
#include "write.h"

#include <errno.h>

uint64_t
dedup_zero_entry (const struct dedup_disk *d)
{
  return d->has_backing ? QCOW2_L2_ZERO : 0;
}

/* Does linking S give its cluster the first reference? */
static bool
is_first_link (const struct slot *s)
{
  if (s->claim && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->host_idx == s->host_idx)
    return !s->claim->linked;
  return s->kind == SLOT_NEW;
}

/* Does S's cluster enter the index where it is (docs/on-disk.md section 8)? */
static bool
takes_over (const struct slot *s)
{
  return s->at != 0 && s->kind == SLOT_NEW;
}

static uint64_t
slot_entry (const struct op *op, const struct slot *s)
{
  return s->kind == SLOT_ZERO ? op->zero_entry
    : s->host_idx << op->d->cluster_bits;
}

/* --- prepare -------------------------------------------------------------- */

/* The entry changes only if it has COPIED, or if the record is one that sets
 * it: else an L2 table that a snapshot shares stays shared. */
static int
prepare_take_over (struct op *op, size_t i)
{
  const struct slot *s = &op->slots[i];
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_refcount_locked (&op->txn, s->at, &refcount, &anchored);
  if (r == 0 && (refcount == 1 || (s->old & QCOW2_L2_COPIED)))
    r = qcow2_prepare_entry_locked (&op->txn, op->root, op->guest_idx + i);
  return r < 0 ? r : qcow2_prepare_host_locked (&op->txn, s->at, 1);
}

static int
prepare_slot (struct op *op, size_t i)
{
  struct slot *s = &op->slots[i];
  uint64_t guest_idx = op->guest_idx + i;
  int r;

  s->skip = s->kind == SLOT_KEEP;
  if (s->skip)
    return 0;
  r = qcow2_get_entry_locked (&op->txn, op->root, guest_idx, &s->old);
  if (r < 0)
    return r;
  if (takes_over (s))
    return prepare_take_over (op, i);
  s->skip = s->old == slot_entry (op, s) && !is_first_link (s);
  if (s->skip)
    return 0;
  r = qcow2_prepare_entry_locked (&op->txn, op->root, guest_idx);
  if (r == 0)
    r = qcow2_prepare_drop_locked (&op->txn, s->old, 1);
  if (r == 0)
    r = qcow2_prepare_host_locked (&op->txn, s->host_idx, 1);
  return r;
}

/* How many slots from I on are zero clusters to be unmapped, whose entries lie
 * in one L2 table? */
static size_t
zero_run (const struct op *op, size_t i)
{
  uint64_t per = qcow2_geometry (op->d->img)->l2_entries;
  size_t n = 0, max = per - (op->guest_idx + i) % per;

  while (i + n < op->nr && n < max && op->slots[i + n].kind == SLOT_ZERO &&
         !op->slots[i + n].skip)
    n++;
  return n;
}

/* How many of the N slots from I on gave up neighbouring clusters? */
static size_t
old_run (const struct op *op, size_t i, size_t n)
{
  const struct slot *s = &op->slots[i];
  size_t k;

  if ((s->old & QCOW2_L2_COMPRESSED) || !(s->old & QCOW2_OFFSET_MASK))
    return 1;
  for (k = 1; k < n; k++)
    if ((s[k].old & QCOW2_L2_COMPRESSED) ||
        (s[k].old & QCOW2_OFFSET_MASK) !=
        (s->old & QCOW2_OFFSET_MASK) + k * op->d->cluster_size)
      break;
  return k;
}

/* The entries of the zero slots from I on, as far as there are such.  The
 * number of slots done, or -errno. */
static ssize_t
prepare_zeroes (struct op *op, size_t i)
{
  size_t n, k, done;
  int r = 0;

  for (n = 0; i + n < op->nr && op->slots[i + n].kind == SLOT_ZERO; n++) {
    struct slot *s = &op->slots[i + n];

    r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i + n,
                                &s->old);
    if (r < 0)
      return r;
    s->skip = s->old == op->zero_entry;
  }
  for (done = 0; done < n; done += MAX_OF (k, 1)) {
    k = zero_run (op, i + done);
    if (k > 0)
      r = qcow2_prepare_entry_locked (&op->txn, op->root,
                                      op->guest_idx + i + done);
    if (k > 0)
      k = old_run (op, i + done, k);
    if (r == 0 && k > 0)
      r = qcow2_prepare_drop_locked (&op->txn, op->slots[i + done].old, k);
    if (r < 0)
      return r;
  }
  return n;
}

static int
prepare_all (struct op *op)
{
  size_t i;
  ssize_t n;

  for (i = 0; i < op->nr; i += n) {
    n = 1;
    if (op->slots[i].kind == SLOT_ZERO)
      n = prepare_zeroes (op, i);
    else {
      int r = prepare_slot (op, i);

      if (r < 0)
        return r;
    }
    if (n < 0)
      return (int) n;
  }
  return 0;
}

/* How many slots before I will link the same cluster? */
static size_t
links_before (const struct op *op, size_t i)
{
  size_t k, nr = 0;

  for (k = 0; k < i; k++)
    if (op->slots[k].kind != SLOT_ZERO && !op->slots[k].skip &&
        op->slots[k].host_idx == op->slots[i].host_idx)
      nr++;
  return nr;
}

/* SLOT's cluster is full.  The first slots of an operation that find it so get
 * new clusters, which later ones with these bytes share up to the limit. */
static void
leave_full_cluster (struct op *op, struct slot *slot)
{
  struct slot *s;

  for (s = op->slots; s < slot; s++)
    if (s->full_idx == slot->host_idx && s->kind == SLOT_NEW &&
        s->followers + 2 < op->d->ref_limit)
      break;
  dedup_unhold_slot_locked (op, slot);
  slot->full_idx = slot->host_idx;
  slot->kind = s < slot ? SLOT_FOLLOW : SLOT_NEW;
  slot->leader = s;
  s->followers += s < slot;
}

/* Turn slots whose candidate would pass the limit into new ones. */
static int
check_limits (struct op *op)
{
  uint64_t limit = op->d->ref_limit, refcount;
  bool anchored, over = false;
  size_t i;
  int r;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->kind == SLOT_ZERO || s->skip || s->stored || s->linked ||
        takes_over (s))
      continue;
    r = qcow2_get_refcount_locked (&op->txn, s->host_idx, &refcount,
                                   &anchored);
    if (r < 0)
      return r;
    refcount = MAX_OF (refcount, 1);
    if (refcount + op->nr < limit || refcount + links_before (op, i) < limit)
      continue;
    leave_full_cluster (op, s);
    over = true;
  }
  return over ? -ERANGE : 0;
}

/* How many entries may the index get? */
static size_t
nr_inserts (const struct op *op)
{
  size_t i, nr = 0;

  for (i = 0; i < op->nr; i++)
    nr += op->slots[i].aging ||
      (op->slots[i].hashed && is_first_link (&op->slots[i]));
  return nr;
}

/* One pass under one hold of the lock: 0 when all may be changed now. */
static int
try_prepare (struct op *op)
{
  struct dedup_disk *d = op->d;
  int r;

  if (d->failed)
    return d->failed;
  if (!dedup_room_locked (d, op->nr, nr_inserts (op)))
    return -EBUSY;
  r = qcow2_holds_reserve_locked (d->img, op->nr);
  if (r == 0)
    r = prepare_all (op);
  return r < 0 ? r : check_limits (op);
}

/* Without the lock: do what the pass asked for. */
static int
make_ready (struct op *op, int why, bool *searched)
{
  switch (why) {
  case -EAGAIN:
    return qcow2_txn_load (&op->txn);
  case -EBUSY:
    return dedup_make_room (op->d);
  case -ENOSPC:
    if (*searched)
      return -ENOSPC;
    *searched = true;
    return dedup_find_space (op->d);
  case -EINVAL:
    dedup_contradiction (op->d);
    return -EIO;
  default:
    return why;
  }
}

/* --- change ------------------------------------------------------------------ */

/* REPORT false: the record is another one that says as much. */
static void
make_change (struct op *op, const struct qcow2_change *c, bool report)
{
  int r;

  if (report)
    dedup_change_locked (op->d, &op->txn, c);
  else {
    r = qcow2_apply_locked (&op->txn, c);
    assert (r == 0);            /* prepared */
  }
}

static void
set_entries (struct op *op, size_t i, uint32_t count, bool report)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_L2, .root = (uint16_t) op->root,
    .guest_idx = op->guest_idx + i, .count = count,
    .entry = slot_entry (op, &op->slots[i]),
  };

  make_change (op, &c, report);
}

static void
set_refcount (struct op *op, uint64_t host_idx, uint64_t refcount, bool report)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .count = 1,
    .refcount = refcount, .anchored = true,
  };

  make_change (op, &c, report);
}

/* The claim's cluster is linked now: keep it while joiners may come. */
static void
claim_linked (struct op *op, struct dedup_claim *c)
{
  c->linked = true;
  c->held = qcow2_hold_locked (&op->txn, c->host_idx, UINT64_MAX) == 0;
  assert (c->held);             /* refcount 2, anchored, tables pinned */
}

/* A new cluster's record says all: data, link, refcount, anchor, index. */
static void
link_first (struct op *op, size_t i)
{
  struct dedup_disk *d = op->d;
  struct slot *s = &op->slots[i];
  struct dedup_record rec = {
    .type = s->hashed ? DEDUP_REC_HASH : DEDUP_REC_WRITE,
    .root = (uint16_t) op->root, .hash = s->hash, .checksum = s->checksum,
    .host_idx = s->host_idx, .guest_idx = op->guest_idx + i,
  };

  dedup_journal_append_locked (d->journal, &rec);
  set_refcount (op, s->host_idx, 2, false);
  set_entries (op, i, 1, false);
  if (s->hashed)
    dedup_index_insert_locked (d->index, &s->hash, s->host_idx);
  if (s->claim && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->host_idx == s->host_idx)
    claim_linked (op, s->claim);
  s->linked = true;
  d->uncommitted_bytes += d->cluster_size;
}

static void
link_again (struct op *op, size_t i)
{
  struct slot *s = &op->slots[i];
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_refcount_locked (&op->txn, s->host_idx, &refcount, &anchored);
  assert (r == 0 && anchored);  /* pinned, and held by the claim or slot */
  set_refcount (op, s->host_idx, refcount + 1, true);
  set_entries (op, i, 1, true);
  s->linked = true;
  op->d->stats.linked++;
}

/* The slot's cluster is new to the index, and stays where it is. */
static void
take_over (struct op *op, size_t i)
{
  struct dedup_disk *d = op->d;
  struct slot *s = &op->slots[i];
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_refcount_locked (&op->txn, s->at, &refcount, &anchored);
  assert (r == 0);              /* pinned */
  if (!anchored && refcount == 1) {
    link_first (op, i);
    return;
  }
  if (!anchored)
    set_refcount (op, s->at, refcount + 1, true);
  if (s->old & QCOW2_L2_COPIED)
    set_entries (op, i, 1, true);
  dedup_entry_locked (d, &s->hash, s->at);
  s->linked = true;
}

/* The index named the slot's cluster, rightly, and is about to forget it. */
static void
enter_anew (struct op *op, struct slot *s)
{
  if (!s->aging || s->kind != SLOT_CANDIDATE)
    return;
  dedup_entry_locked (op->d, &s->hash, s->host_idx);
  op->d->stats.renewed++;
}

/* What slot I and the NR - 1 behind it referred to. */
static void
drop_old (struct op *op, size_t i, size_t nr)
{
  const struct slot *s = &op->slots[i];

  if (qcow2_drop_locked (&op->txn, s->old, nr, op->trimmed &&
                         (s->kind == SLOT_ZERO || s->at != 0)) < 0)
    op->corrupt = true;
}

/* A run of zero clusters is one record. */
static size_t
unmap_run (struct op *op, size_t i)
{
  size_t n = zero_run (op, i), done, k;

  set_entries (op, i, (uint32_t) n, true);
  for (done = 0; done < n; done += k) {
    k = old_run (op, i + done, n - done);
    drop_old (op, i + done, k);
  }
  return n;
}

static void
change_all (struct op *op)
{
  size_t i = 0;

  while (i < op->nr) {
    struct slot *s = &op->slots[i];

    if (s->skip) {
      s->linked = true;
      enter_anew (op, s);
      i++;
      continue;
    }
    if (s->kind == SLOT_ZERO) {
      i += unmap_run (op, i);
      continue;
    }
    if (takes_over (s))
      take_over (op, i);
    else {
      if (is_first_link (s)) {
        link_first (op, i);
        op->d->stats.stored++;
      }
      else {
        link_again (op, i);
        enter_anew (op, s);
      }
      drop_old (op, i, 1);
    }
    i++;
  }
}

int
dedup_link (struct op *op)
{
  struct dedup_disk *d = op->d;
  bool searched = false;
  int r;

  for (;;) {
    lock_acquire (d->lock);
    r = try_prepare (op);
    if (r == 0)
      change_all (op);
    dedup_journal_end_locked (d->journal);
    lock_release (d->lock);
    if (r == 0 || r == -ERANGE)
      break;
    r = make_ready (op, r, &searched);
    if (r < 0)
      return r;
  }
  if (op->corrupt)              /* what was dropped had no reference left */
    dedup_contradiction (d);
  return r;
}
