/* SPDX-License-Identifier: BSD-3-Clause */
/* Links the clusters of an operation: the only place where an operation
 * changes tables.
 *
 * First a pass prepares everything that the changes need: tables in memory and
 * private, room in journal, log store and cache, refcounts below the limit.
 * It may allocate tables, each a complete change of its own.  If a table has
 * to be loaded, or room to be made, the lock is released for that and the pass
 * starts again; what was loaded stays pinned.  Once a pass succeeds, the
 * changes are made and their records appended under the same hold of the lock:
 * one group, which a recovery applies whole or not at all.
 *
 * Under the image lock, but for dedup_link itself.
 */
#include "checked.h"
#include "op.h"

#include <errno.h>

uint64_t
dedup_zero_entry (const struct dedup_base *b)
{
  return b->has_backing ? QCOW2_L2_ZERO : 0;
}

/* Returns true if linking S gives its cluster the first reference. */
static bool
is_first_link (const struct slot *s)
{
  if (s->claim && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->value == s->value)
    return !s->claim->linked;
  return s->kind == SLOT_NEW;
}

static uint64_t
slot_entry (const struct op *op, const struct slot *s)
{
  return s->kind == SLOT_ZERO ? op->zero_entry
    : dedup_value_entry (op->w->b, s->value);
}

/* --- Prepare ------------------------------------------------------------- */

/* Makes the refcounts of a value's clusters ready to be changed.  They lie in at most
 * three clusters, which need not have one refcount block. */
static int
prepare_clusters (struct op *op, uint64_t value)
{
  uint64_t first, count, i;
  int r = 0;

  dedup_value_clusters (op->w->b, value, &first, &count);
  for (i = 0; i < count && r == 0; i++)
    r = qcow2_prepare_host_locked (&op->txn, first + i, 1);
  return r;
}

/* The L2 entry is prepared only if it changes: if it has COPIED, or if the
 * record is one that sets it.  Else an L2 table that a snapshot shares stays
 * shared. */
static int
prepare_take_over (struct op *op, size_t i)
{
  const struct slot *s = &op->slots[i];
  uint64_t refcount;
  bool anchored;
  int r;

  if (dedup_value_is_compressed (s->own))
    return prepare_clusters (op, s->own);
  r = qcow2_get_refcount_locked (&op->txn, s->own, &refcount, &anchored);
  if (r == 0 && (refcount == 1 || (s->old & QCOW2_L2_COPIED)))
    r = qcow2_prepare_entry_locked (&op->txn, op->root, op->guest_idx + i);
  return r < 0 ? r : qcow2_prepare_host_locked (&op->txn, s->own, 1);
}

/* Returns whether the entry of a slot, whose data was read from where it led to, leads
 * elsewhere by now: it was changed in place, through another root. */
static bool
has_changed (const struct op *op, const struct slot *s)
{
  const uint64_t from = s->again ? s->again : s->own;

  return from != 0 && dedup_value_of_entry (op->w->b, s->old) != from;
}

static int
prepare_slot (struct op *op, size_t i)
{
  struct slot *s = &op->slots[i];
  uint64_t guest_idx = op->guest_idx + i;
  int r;

  s->times = 1;
  s->skip = s->kind == SLOT_KEEP;
  if (s->skip)
    return 0;
  r = qcow2_get_entry_locked (&op->txn, op->root, guest_idx, &s->old);
  if (r < 0)
    return r;
  if (has_changed (op, s) || (s->kind == SLOT_FOLLOW && s->leader->left)) {
    slot_leave (s);
    return 0;
  }
  if (slot_takes_over (s))
    return prepare_take_over (op, i);
  s->skip = s->old == slot_entry (op, s) && !is_first_link (s);
  if (s->skip)
    return 0;
  r = qcow2_prepare_entry_locked (&op->txn, op->root, guest_idx);
  if (r == 0)
    r = qcow2_prepare_drop_locked (&op->txn, s->old, 1);
  if (r == 0)
    r = prepare_clusters (op, s->value);
  return r;
}

/* Returns how many slots from I on are zero clusters to be unmapped, whose
 * entries lie in one L2 table. */
static size_t
zero_run (const struct op *op, size_t i)
{
  uint64_t per = qcow2_geometry (op->w->b->img)->l2_entries;
  size_t n = 0, max = per - (op->guest_idx + i) % per;

  while (i + n < op->nr && n < max && op->slots[i + n].kind == SLOT_ZERO &&
         !op->slots[i + n].skip)
    n++;
  return n;
}

/* Returns how many of the N slots from I on refer to clusters that follow each
 * other; 1 if I's is compressed. */
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
        (s->old & QCOW2_OFFSET_MASK) + k * op->w->b->cluster_size)
      break;
  return k;
}

/* Prepares the entries of the zero slots from I up to the next other slot.
 * Returns how many slots. */
static ssize_t
prepare_zeroes (struct op *op, size_t i)
{
  size_t n, k, done;
  int r = 0;

  for (n = 0; i + n < op->nr && op->slots[i + n].kind == SLOT_ZERO; n++) {
    struct slot *s = &op->slots[i + n];

    s->times = 1;
    r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i + n,
                                &s->old);
    if (r < 0)
      return r;
    if (has_changed (op, s))   /* its data was found to be zero where it led to */
      slot_leave (s);
    else
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

/* Prepares a slot of a rewrite, for all roots that have its table. */
static int
prepare_rewrite (struct op *op, size_t i)
{
  struct slot *s = &op->slots[i];
  const uint64_t guest_idx = op->guest_idx + i;
  int r = -EXDEV;

  s->times = 1;
  s->skip = s->kind == SLOT_KEEP;
  if (s->skip)
    return 0;
  if (guest_idx < div_round_up (qcow2_movable_size_locked (op->w->b->img, op->root),
                                op->w->b->cluster_size) &&
      !(s->kind == SLOT_FOLLOW && s->leader->left))
    r = qcow2_get_entry_locked (&op->txn, op->root, guest_idx, &s->old);
  if (r == 0 && has_changed (op, s))
    r = -EXDEV;
  if (r == 0)
    r = qcow2_prepare_in_place_locked (&op->txn, op->root, guest_idx, &s->place,
                                       &s->times);
  if (r == 0)
    r = qcow2_prepare_drop_times_locked (&op->txn, s->old, s->times);
  if (r == 0 && s->kind != SLOT_ZERO)
    r = prepare_clusters (op, s->value);
  if (r != -EXDEV)
    return r;
  slot_leave (s);
  return 0;
}

static int
prepare_all_rewrites (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    r = prepare_rewrite (op, i);
  return r;
}

static int
prepare_all (struct op *op)
{
  size_t i;
  ssize_t n;

  if (op->avoids)
    return prepare_all_rewrites (op);

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

/* The clusters that compressed data touches at most. */
#define MAX_TOUCHED 3

/* Returns how many entries the index may get.  Each slot may replace a reference to
 * data of another program, which passes to the anchor and gets a mark then; and the
 * clusters of compressed data get marks when it is taken over. */
static size_t
nr_inserts (const struct op *op)
{
  size_t i, nr = op->nr;

  for (i = 0; i < op->nr; i++) {
    const struct slot *s = &op->slots[i];

    nr += s->aging || (s->hashed && is_first_link (s));
    nr += (s->replaced != 0) + s->marked + (s->moved != 0);
    if ((slot_takes_over (s) && dedup_value_is_compressed (s->own)) ||
        (is_first_link (s) && dedup_value_is_compressed (s->value)))
      nr += MAX_TOUCHED;
  }
  return nr;
}

/* Does one pass, under one hold of the lock.  Returns 0 if everything may be
 * changed now, or what it lacks: see make_ready. */
static int
try_prepare (struct op *op)
{
  struct dedup_writer *w = op->w;
  int r;

  if (w->s->gate.failed)
    return w->s->gate.failed;
  if (!dedup_room_locked (w->u, op->nr, nr_inserts (op)))
    return -EBUSY;
  /* New compressed data touches two clusters at most. */
  r = qcow2_holds_reserve_locked (w->b->img, op->nr * (dedup_may_pack (w->s) ? 2 : 1));
  if (r == 0)
    r = prepare_all (op);
  return r < 0 ? r : dedup_check_limits_locked (op);
}

/* Gets what a pass lacked, without the lock.  Returns 0 if another pass may
 * succeed.  Space is searched for once. */
static int
make_ready (struct op *op, int why, bool *searched)
{
  if (why == -EINVAL) {
    dedup_contradiction (&op->w->s->gate);
    return -EIO;
  }
  return dedup_get_ready (op->w->u, &op->txn, why, 0, searched);
}

/* --- Change -------------------------------------------------------------- */

/* Applies a change.  REPORT is false if a record that was appended already
 * implies it. */
static void
make_change (struct op *op, const struct qcow2_change *c, bool report)
{
  int r;

  if (report)
    dedup_change_locked (op->w->s, &op->txn, c);
  else {
    r = qcow2_apply_locked (&op->txn, c);
    assert (r == 0);            /* prepared */
  }
}

static void
set_entries (struct op *op, size_t i, uint32_t count, bool report)
{
  const struct slot *s = &op->slots[i];
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_L2, .root = (uint16_t) op->root,
    .guest_idx = op->guest_idx + i, .count = count,
    .entry = slot_entry (op, s),
  };

  if (s->place != 0)           /* several roots may have it */
    c = (struct qcow2_change) { .type = QCOW2_CHANGE_ENTRY, .place = s->place,
                                .count = count, .entry = c.entry };
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

/* Makes the claim hold its clusters, now linked, while joiners may come. */
static void
claim_linked (struct op *op, struct dedup_claim *c)
{
  c->linked = true;
  c->held = qcow2_hold_entry_locked (&op->txn, dedup_value_entry (op->w->b, c->value),
                                     UINT64_MAX) == 0;
  assert (c->held);             /* refcount 2, anchored, tables pinned */
}

/* Returns the one record of a new cluster, which covers data, link and index; of a
 * plain one also refcount and anchor. */
static struct dedup_record
new_data_record (struct op *op, size_t i)
{
  const struct slot *s = &op->slots[i];
  const bool packed = dedup_value_is_compressed (s->value);
  struct dedup_record rec = {
    .type = s->hashed ? DEDUP_REC_HASH : DEDUP_REC_WRITE,
    .root = (uint16_t) op->root, .hash = s->hash, .checksum = s->checksum,
    .host_idx = s->value, .guest_idx = op->guest_idx + i,
  };

  if (qcow2_has_disks (op->w->b->img)) {
    rec.type = s->hashed ? DEDUP_REC_HASHAT : DEDUP_REC_WRITEAT;
    rec.place = qcow2_entry_place_locked (&op->txn, op->root, rec.guest_idx);
  }
  if (packed)
    rec.type = qcow2_has_disks (op->w->b->img) ? DEDUP_REC_PACKEDAT
      : DEDUP_REC_PACKED;
  return rec;
}

/* Enters the slot's cluster for its hash.  A cluster whose entry this replaces has
 * none any more, which the index must know (dedup_unknown_data_locked).  Writers
 * of equal data meet at a claim; an operation without claims may replace the
 * entry of a writer that was faster. */
static void
note_replaced (struct op *op, const struct slot *s)
{
  struct dedup_store *st = op->w->s;
  uint64_t at;

  if (s->replaced != 0 && s->replaced != s->value)
    dedup_unknown_data_locked (st, s->replaced);
  if (s->marked)
    dedup_unknown_data_locked (st, s->value);
  if (s->claim == NULL && s->hashed &&
      dedup_index_lookup_locked (st->index, &s->hash, &at) == DEDUP_HIT &&
      at != s->value && at != s->replaced && at != s->moved)
    dedup_unknown_data_locked (st, at);
}

/* Counts the references of new compressed data to a host cluster.  The first one
 * anchors the cluster, and the run that it is of holds it from now on.  It gets a mark:
 * an older entry that names it is about what it held before. */
static void
count_packed (struct op *op, const struct slot *s, uint64_t host_idx)
{
  struct dedup_writer *w = op->w;
  uint64_t refcount;
  bool anchored;
  int r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount, &anchored);

  assert (r == 0);              /* pinned */
  (void) r;
  if (anchored) {
    set_refcount (op, host_idx, refcount + s->times, true);
    return;
  }
  assert (refcount == 0);       /* reserved by the run */
  dedup_bad_new_data_locked (&w->s->bad, host_idx);
  set_refcount (op, host_idx, 1 + s->times, true);
  dedup_unknown_data_locked (w->s, host_idx);
  dedup_pack_hold_locked (&op->txn, s->run ? s->run : s->claim->run, host_idx);
}

/* Makes the changes of a new cluster that its record stands for, or that are recorded
 * beside it, to refcounts. */
static void
count_first (struct op *op, const struct slot *s)
{
  uint64_t first, count, k;

  if (!dedup_value_is_compressed (s->value)) {
    dedup_bad_new_data_locked (&op->w->s->bad, s->value);
    set_refcount (op, s->value, 2, false);
    if (s->times > 1)          /* a writer's data, before he has linked it */
      set_refcount (op, s->value, 1 + s->times, true);
    return;
  }
  dedup_value_clusters (op->w->b, s->value, &first, &count);
  for (k = 0; k < count; k++)
    if (k == 0 || !mutation (MUTATION_PACKED_COUNTED_ONCE))
      count_packed (op, s, first + k);
}

/* Links a new cluster. */
static void
link_first (struct op *op, size_t i)
{
  struct dedup_writer *w = op->w;
  struct slot *s = &op->slots[i];
  const struct dedup_record rec = new_data_record (op, i);

  note_replaced (op, s);
  dedup_journal_append_locked (w->s->journal, &rec);
  count_first (op, s);
  set_entries (op, i, 1, false);
  if (!s->hashed)
    dedup_index_incomplete_locked (w->s->index);
  else
    dedup_index_insert_locked (w->s->index, &s->hash, s->value);
  if (s->claim && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->value == s->value)
    claim_linked (op, s->claim);
  s->linked = true;
  w->u->uncommitted_bytes += w->b->cluster_size;
}

/* Adds references to a host cluster that has some already. */
static void
add_references (struct op *op, uint64_t host_idx, uint64_t times)
{
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount, &anchored);
  assert (r == 0 && anchored);  /* pinned, and held by the claim or slot */
  set_refcount (op, host_idx, refcount + times, true);
}

/* Links data that has references already. */
static void
link_again (struct op *op, size_t i)
{
  struct slot *s = &op->slots[i];
  uint64_t first, count, k;

  dedup_value_clusters (op->w->b, s->value, &first, &count);
  for (k = 0; k < count; k++)
    if (k == 0 || !mutation (MUTATION_CROSSING_COUNTED_ONCE))
      add_references (op, first + k, s->times);
  set_entries (op, i, 1, true);
  s->linked = true;
  op->w->counts.linked++;
}

/* Anchors the clusters that the slot's own compressed data touches, unless they are
 * anchored, and enters the data.  An older entry that names one of the clusters is
 * about what it held before, so it gets a mark. */
static void
take_over_compressed (struct op *op, size_t i)
{
  struct dedup_store *st = op->w->s;
  struct slot *s = &op->slots[i];
  uint64_t first, count, refcount, k;
  bool anchored;
  int r;

  note_replaced (op, s);
  dedup_value_clusters (op->w->b, s->own, &first, &count);
  for (k = first; k < first + count; k++) {
    r = qcow2_get_refcount_locked (&op->txn, k, &refcount, &anchored);
    assert (r == 0);            /* pinned */
    if (anchored)
      continue;
    dedup_bad_new_data_locked (&st->bad, k);
    set_refcount (op, k, refcount + 1, true);
    dedup_unknown_data_locked (st, k);
  }
  dedup_entry_locked (st, &s->hash, s->own);
  s->linked = true;
}

/* Anchors the slot's own cluster, which is new to the index, and enters it. */
static void
take_over (struct op *op, size_t i)
{
  struct dedup_writer *w = op->w;
  struct slot *s = &op->slots[i];
  uint64_t refcount;
  bool anchored;
  int r;

  if (dedup_value_is_compressed (s->own)) {
    take_over_compressed (op, i);
    return;
  }
  r = qcow2_get_refcount_locked (&op->txn, s->own, &refcount, &anchored);
  assert (r == 0);              /* pinned */
  if (!anchored && refcount == 1) {
    link_first (op, i);
    return;
  }
  note_replaced (op, s);
  if (!anchored) {
    dedup_bad_new_data_locked (&w->s->bad, s->own);
    set_refcount (op, s->own, refcount + 1, true);
  }
  if (s->old & QCOW2_L2_COPIED)
    set_entries (op, i, 1, true);
  dedup_entry_locked (w->s, &s->hash, s->own);
  s->linked = true;
}

/* Enters the slot's cluster again, if the index named it rightly and is about
 * to forget it. */
static void
renew_entry (struct op *op, struct slot *s)
{
  if (!s->aging || s->kind != SLOT_CANDIDATE)
    return;
  dedup_entry_locked (op->w->s, &s->hash, s->value);
  op->w->counts.renewed++;
}

/* Drops the references that slot I and the NR - 1 behind it had. */
static void
drop_old (struct op *op, size_t i, size_t nr)
{
  const struct slot *s = &op->slots[i];
  const bool trimmed = op->trimmed &&
    (s->kind == SLOT_ZERO || s->own != 0 || op->avoids);
  int r = nr == 1 ? qcow2_drop_times_locked (&op->txn, s->old, s->times, trimmed)
    : qcow2_drop_locked (&op->txn, s->old, nr, trimmed);

  if (r < 0)
    op->corrupt = true;
}

/* Notes that the index names another cluster for the data of the one that slot I
 * was moved from, which may stay: a writer has linked it, or holds it. */
static void
leave_moved (struct op *op, const struct slot *s)
{
  uint64_t refcount;
  bool anchored;
  int r;

  if (s->moved == 0)
    return;
  r = qcow2_get_refcount_locked (&op->txn, s->moved, &refcount, &anchored);
  if (r < 0 || anchored)
    dedup_unknown_data_locked (op->w->s, s->moved);
}

/* Unmaps the run of zero clusters from I on, as one record.  Returns how
 * many. */
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

/* Unmaps the guest cluster of a rewrite. */
static void
unmap_rewrite (struct op *op, size_t i)
{
  set_entries (op, i, 1, true);
  drop_old (op, i, 1);
}

static void
change_all (struct op *op)
{
  size_t i = 0;

  while (i < op->nr) {
    struct slot *s = &op->slots[i];

    if (s->skip) {
      s->linked = !s->left;
      renew_entry (op, s);
      i++;
      continue;
    }
    if (s->kind == SLOT_ZERO && op->avoids) {
      unmap_rewrite (op, i++);
      continue;
    }
    if (s->kind == SLOT_ZERO) {
      i += unmap_run (op, i);
      continue;
    }
    if (slot_takes_over (s))
      take_over (op, i);
    else {
      if (is_first_link (s)) {
        link_first (op, i);
        op->w->counts.stored++;
      }
      else {
        link_again (op, i);
        renew_entry (op, s);
      }
      drop_old (op, i, 1);
      leave_moved (op, s);
    }
    i++;
  }
}

/* Returns whether no data was stored in vain. */
static bool
all_stored_is_linked (const struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++)
    if (op->slots[i].stored && !op->slots[i].linked)
      return false;
  return true;
}

/* This loop does not fit qcow2_txn_retry: besides tables a pass may lack room
 * or space, which are made without the lock. */
int
dedup_link (struct op *op)
{
  struct dedup_writer *w = op->w;
  bool searched = false;
  int r;

  for (;;) {
    lock_acquire (w->b->lock);
    r = try_prepare (op);
    if (r == 0) {
      change_all (op);
      if (op->avoids)
        qcow2_note_moved_locked (w->b->img);
      if (all_stored_is_linked (op))
        dedup_pack_settled_locked (op);
    }
    dedup_journal_end_locked (w->s->journal);
    lock_release (w->b->lock);
    if (r == 0 || r == -ERANGE)
      break;
    r = make_ready (op, r, &searched);
    if (r < 0)
      return r;
  }
  if (op->corrupt)              /* a refcount was 0 before its drop */
    dedup_contradiction (&w->s->gate);
  return r;
}
