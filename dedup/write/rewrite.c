/* SPDX-License-Identifier: BSD-3-Clause */
/* Stores the data of guest clusters again, compressed and in another place, so that the
 * places where it is now can be freed.  The caller says which places these are; or they
 * are all plain clusters (dedup_pipeline_compress).
 *
 * One operation reads the guest clusters whose entries the caller avoids, and does what a
 * write of the same bytes does, with two differences.  A candidate that the caller avoids
 * counts as a miss, so the data gets a new place, and the index that place; the next guest
 * cluster with equal data finds it there.  And data that does not shrink, or finds no
 * space, stays where it is.
 *
 * The bytes are read from where the guest's entry points.  The caller keeps requests off
 * the guest clusters, so the bytes do not change meanwhile.  If a writer of equal data
 * links an avoided place at the same time, the guest cluster may keep it.
 *
 * The root may share the L2 table with others: the link step changes the entry for all of
 * them, with a reference for each path that is counted (qcow2_prepare_in_place_locked).
 * Another rewrite may do the same by way of another root, so the link step leaves a guest
 * cluster alone whose entry has changed since it was looked at.  The root need not be
 * writable: nobody sees that bytes are elsewhere.
 *
 * Any thread, without locks.
 */
#include "aligned.h"
#include "checked.h"
#include "op.h"

#include <errno.h>

struct rewrite {
  struct op op;
  uint8_t *buf;                 /* a cluster for each slot */
  size_t nr_looked;             /* slots that were decided on */
  size_t nr_avoided;
  /* Of dedup_pipeline_compress: */
  struct dedup_compressed *res; /* else NULL */
  bool keep_shared;
};

/* Returns whether an entry leads to a plain cluster: dedup_avoids. */
static bool
is_plain (const void *opaque, uint64_t entry)
{
  (void) opaque;
  return !(entry & QCOW2_L2_COMPRESSED);
}

/* Decides whether the plain cluster of a slot is to be compressed.  1: it is; 0: it
 * stays, as others need it too, or a scrub has found it bad. */
static int
may_compress_locked (struct qcow2_txn *txn, struct rewrite *rw, struct slot *s,
                     uint64_t host_idx)
{
  struct dedup_writer *w = rw->op.w;
  uint64_t refcount;
  int r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &s->anchored);

  assert (lock_held (w->b->lock));
  if (r < 0)
    return r;
  if (rw->keep_shared && refcount > (s->anchored ? 2 : 1)) {
    rw->res->shared++;
    return 0;
  }
  if (!dedup_bad_find_locked (&w->s->bad, host_idx))
    return 1;
  rw->res->doubtful++;
  return 0;
}

/* Decides which slots are stored again; a qcow2_step. */
static int
look_on_locked (struct qcow2_txn *txn, void *opaque)
{
  struct rewrite *rw = opaque;
  struct op *op = &rw->op;
  uint64_t entry, value;
  int r = 0;

  assert (lock_held (op->w->b->lock));
  if (qcow2_movable_size_locked (op->w->b->img, op->root) == 0)
    return -EINVAL;
  for (; rw->nr_looked < op->nr; rw->nr_looked++) {
    r = qcow2_get_entry_locked (txn, op->root, op->guest_idx + rw->nr_looked, &entry);
    if (r < 0)
      break;
    value = dedup_value_of_entry (op->w->b, entry);
    if (value == 0 ||
        !op->avoids (op->avoids_opaque, dedup_value_entry (op->w->b, value)))
      continue;
    if (rw->res) {
      r = may_compress_locked (txn, rw, &op->slots[rw->nr_looked], value);
      if (r < 0)
        break;
      if (r == 0)
        continue;
    }
    op->slots[rw->nr_looked].again = value;
    rw->nr_avoided++;
  }
  return MIN_OF (r, 0);
}

static uint64_t
size_of_root (const struct op *op)
{
  LOCK_FOR_SCOPE (op->w->b->lock);

  return qcow2_root_size_locked (op->w->b->img, op->root);
}

/* Reads the data of the slots that are stored again.  The last cluster of a disk may
 * reach past its end, where it is zero. */
static int
read_all (struct rewrite *rw)
{
  const struct dedup_base *b = rw->op.w->b;
  const uint64_t size = size_of_root (&rw->op);
  size_t i;
  int r = 0;

  for (i = 0; i < rw->op.nr && r == 0; i++) {
    const uint64_t at = (rw->op.guest_idx + i) << b->cluster_bits;
    uint8_t *to = rw->buf + i * b->cluster_size;
    const size_t len = at < size ? MIN_OF (size - at, b->cluster_size) : 0;

    if (!rw->op.slots[i].again)
      continue;
    memset (to + len, 0, b->cluster_size - len);
    r = qcow2_read (b->img, rw->op.root, to, at, len);
  }
  return r;
}

/* Drops what is stored again before that; only for a test that breaks the rule that the
 * link and the drop are one group. */
static int
drop_first (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    if (op->slots[i].again)
      r = dedup_pipeline_unmap (op->w, op->root, op->guest_idx + i, 1, DEDUP_TRIM);
  return r;
}

static bool
index_is_complete (struct dedup_writer *w)
{
  LOCK_FOR_SCOPE (w->b->lock);
  return dedup_index_complete_locked (w->s->index);
}

/* Finds out whether the bytes of slot I are what the index knows for their cluster, or
 * it cannot know them.  Keeps their hash for the pipeline, which has no use for that of
 * zeroes. */
static int
is_known (struct rewrite *rw, size_t i)
{
  struct dedup_writer *w = rw->op.w;
  struct slot *s = &rw->op.slots[i];
  const struct dedup_hash mark = dedup_unknown_mark (s->again);
  int r = dedup_hash_slot (&rw->op, i);

  if (r < 0)
    return r;
  s->hashed = !all_zero (slot_data (&rw->op, i), w->b->cluster_size);
  return dedup_named_for (w, &s->hash) == s->again ||
    dedup_named_for (w, &mark) == s->again;
}

/* Leaves the slots alone whose bytes have rotted as far as the index can tell: else they
 * would get an entry, and look good to every later scrub. */
static int
leave_doubtful (struct rewrite *rw)
{
  struct op *op = &rw->op;
  size_t i;
  int r;

  if (!op->w->dedup || !index_is_complete (op->w))
    return 0;
  for (i = 0; i < op->nr; i++) {
    if (!op->slots[i].again || !op->slots[i].anchored)
      continue;
    r = is_known (rw, i);
    if (r < 0)
      return r;
    if (r > 0)
      continue;
    op->slots[i].again = 0;
    op->slots[i].hashed = false;
    rw->res->doubtful++;
  }
  return 0;
}

/* Returns how many slots lead to another place now. */
static int
count_moved (const struct op *op)
{
  size_t i;
  int nr = 0;

  for (i = 0; i < op->nr; i++)
    nr += op->slots[i].again && op->slots[i].kind != SLOT_KEEP && !op->slots[i].skip;
  return nr;
}

/* Returns the figure that a slot counts in whose data was to be compressed. */
static size_t *
figure_of (const struct slot *s, struct dedup_compressed *res)
{
  if (s->left)
    return &res->raced;
  if (s->kind != SLOT_KEEP)
    return s->kind == SLOT_ZERO || dedup_value_is_compressed (s->value) ? &res->moved
      : &res->raced;
  return s->plain || (s->leader && s->leader->plain) ? &res->too_large
    : &res->no_space;
}

static void
count_compressed (const struct rewrite *rw)
{
  size_t i;

  for (i = 0; i < rw->op.nr; i++)
    if (rw->op.slots[i].again)
      ++*figure_of (&rw->op.slots[i], rw->res);
}

static int
look_and_rewrite (struct rewrite *rw)
{
  int r = qcow2_txn_run (rw->op.w->b->img, look_on_locked, rw);

  if (r < 0 || rw->nr_avoided == 0)
    return r;
  if ((r = dedup_admit (rw->op.w->s)) < 0 ||
      (r = read_all (rw)) < 0 ||
      (mutation (MUTATION_REWRITE_TWO_GROUPS) && (r = drop_first (&rw->op)) < 0) ||
      (rw->res && (r = leave_doubtful (rw)) < 0) ||
      (r = dedup_op_run (&rw->op)) < 0)
    return r;
  if (rw->res)
    count_compressed (rw);
  return count_moved (&rw->op);
}

/* Runs a rewrite whose op has what the caller chooses. */
static int
run (struct rewrite *rw)
{
  struct op *op = &rw->op;
  CLEANUP_FREE uint8_t *buf = NULL;
  int r;

  assert (op->nr > 0 && op->nr <= DEDUP_CHUNK_CLUSTERS);
  if (!dedup_packs_any (&op->w->pack))
    return -ENOTSUP;
  buf = aligned_new (op->nr * op->w->b->cluster_size);
  rw->buf = buf;
  op->buf = buf;
  op->zero_entry = dedup_zero_entry (op->w->b);
  op->trimmed = true;
  r = dedup_op_alloc (op);
  if (r == 0)
    r = buf ? look_and_rewrite (rw) : -ENOMEM;
  dedup_op_free (op);
  return r;
}

int
dedup_pipeline_rewrite (struct dedup_writer *w, unsigned root, uint64_t guest_idx,
                        size_t nr, dedup_avoids *avoids, const void *opaque)
{
  struct rewrite rw = { .op = {
      .w = w, .root = root, .guest_idx = guest_idx, .nr = nr,
      .avoids = avoids, .avoids_opaque = opaque } };

  return run (&rw);
}

int
dedup_pipeline_compress (struct dedup_writer *w, unsigned root, uint64_t guest_idx,
                         size_t nr, bool keep_shared, struct dedup_compressed *res)
{
  struct rewrite rw = {
    .op = { .w = w, .root = root, .guest_idx = guest_idx, .nr = nr,
            .avoids = is_plain },
    .res = res, .keep_shared = keep_shared,
  };

  *res = (struct dedup_compressed) { 0 };
  return MIN_OF (run (&rw), 0);
}
