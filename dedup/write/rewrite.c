/* SPDX-License-Identifier: BSD-3-Clause */
/* Stores the data of guest clusters again, compressed and in another place, so that the
 * places where it is now can be freed.
 *
 * One operation reads the guest clusters whose entries the caller avoids, and does what a
 * write of the same bytes does, with two differences.  A candidate that the caller avoids
 * counts as a miss, so the data gets a new place, and the index that place; the next guest
 * cluster with equal data finds it there.  And data that does not shrink, or finds no
 * space, stays where it is.
 *
 * The bytes are read from where the guest's entry points.  The caller keeps requests off
 * the guest clusters, so the entries do not change meanwhile.  If a writer of equal data
 * links an avoided place at the same time, the guest cluster may keep it.
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
};

/* Returns the value that an entry leads to; 0: it has no whole cluster of data. */
static uint64_t
value_of (const struct dedup_base *b, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return entry;
  return entry & (QCOW2_L2_ZERO | QCOW2_L2_PARTIAL) ? 0
    : (entry & QCOW2_OFFSET_MASK) >> b->cluster_bits;
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
  if (!qcow2_root_writable_locked (op->w->b->img, op->root))
    return -EINVAL;
  for (; rw->nr_looked < op->nr; rw->nr_looked++) {
    r = qcow2_get_entry_locked (txn, op->root, op->guest_idx + rw->nr_looked, &entry);
    if (r < 0)
      break;
    value = value_of (op->w->b, entry);
    if (value == 0 ||
        !op->avoids (op->avoids_opaque, dedup_value_entry (op->w->b, value)))
      continue;
    op->slots[rw->nr_looked].again = true;
    rw->nr_avoided++;
  }
  return r;
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

static int
look_and_rewrite (struct rewrite *rw)
{
  int r = qcow2_txn_run (rw->op.w->b->img, look_on_locked, rw);

  if (r < 0 || rw->nr_avoided == 0)
    return r;
  if ((r = dedup_admit (rw->op.w->s)) < 0 ||
      (r = read_all (rw)) < 0 ||
      (mutation (MUTATION_REWRITE_TWO_GROUPS) && (r = drop_first (&rw->op)) < 0) ||
      (r = dedup_op_run (&rw->op)) < 0)
    return r;
  return count_moved (&rw->op);
}

int
dedup_pipeline_rewrite (struct dedup_writer *w, unsigned root, uint64_t guest_idx,
                        size_t nr, dedup_avoids *avoids, const void *opaque)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct rewrite rw = { .op = {
      .w = w, .root = root, .guest_idx = guest_idx, .nr = nr,
      .zero_entry = dedup_zero_entry (w->b), .trimmed = true,
      .avoids = avoids, .avoids_opaque = opaque } };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  if (!w->pack.on)
    return -ENOTSUP;
  buf = aligned_new (nr * w->b->cluster_size);
  rw.buf = buf;
  rw.op.buf = buf;
  r = dedup_op_alloc (&rw.op);
  if (r == 0)
    r = buf ? look_and_rewrite (&rw) : -ENOMEM;
  dedup_op_free (&rw.op);
  return r;
}
