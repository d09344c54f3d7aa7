/* SPDX-License-Identifier: BSD-3-Clause */
/* Stores new clusters: reserves runs of free ones and writes each run with one
 * call.  Nothing refers to them yet (law 2).
 *
 * On a full host data that overwrites other data takes clusters of the
 * overwrite reserve, and other data takes free clusters that have space there.
 *
 * Any thread; writes without locks.
 */
#include "op.h"
#include "mutation.h"

#include <errno.h>

static void
unreserve (const struct dedup_base *b, const struct qcow2_run *run)
{
  LOCK_FOR_SCOPE (b->lock);
  qcow2_unreserve_unbacked_locked (b->img, run);
}

/* Reserves a run of up to WANTED clusters.  -EIO: its first clusters are free
 * by the refcounts, but hold tables.  That run stays reserved, so that others
 * are tried next. */
static int
reserve (struct op *op, size_t wanted, struct qcow2_run *run)
{
  struct dedup_writer *w = op->w;
  bool guarded;
  int r;

  lock_acquire (w->b->lock);
  r = dedup_prewrite_take_locked (&w->u->prewrite, wanted, run) ? 0
    : qcow2_reserve_locked (w->b->img, wanted, run);
  if (r == 0)
    dedup_prewrite_count_locked (&w->u->prewrite, run->count);
  guarded = r == 0 &&
    qcow2_guarded_locked (w->b->img, run->host_idx, run->count);
  lock_release (w->b->lock);
  if (!guarded)
    return r;
  dedup_contradiction (&w->s->gate);
  return -EIO;
}

/* Writes as many of the slots IDX as RUN has clusters to these. */
static int
write_run (struct op *op, const size_t *idx, const struct qcow2_run *run)
{
  struct dedup_writer *w = op->w;
  struct iovec few[8], *iov = few;
  CLEANUP_FREE struct iovec *many = NULL;
  size_t k;
  int cnt = 0;

  if (run->count > sizeof few / sizeof few[0]) {
    iov = many = malloc (run->count * sizeof *iov);
    if (many == NULL)
      return -ENOMEM;
  }
  for (k = 0; k < run->count; k++) {
    uint8_t *p = (uint8_t *) slot_data (op, idx[k]);

    if (cnt > 0 && (uint8_t *) iov[cnt - 1].iov_base +
        iov[cnt - 1].iov_len == p)
      iov[cnt - 1].iov_len += w->b->cluster_size;
    else
      iov[cnt++] = (struct iovec) { p, w->b->cluster_size };
  }
  if (mutation (MUTATION_LAW_2))
    return 0;
  return io_pwritev (w->b->io, iov, cnt, run->host_idx << w->b->cluster_bits);
}

/* Runs that are tried on a full host before a write fails: some free clusters
 * have space there, and others, which were given back, have none. */
#define SPACE_TRIES 256
/* Searches for space of one slot that replaces data. */
#define SPACE_SEARCHES 4

/* Reserves and writes one run for the first slots of IDX.  A run that became tainted
 * (io_tainted) after it was reserved stays reserved, and another one is tried. */
static int
try_run (struct op *op, const size_t *idx, size_t nr, struct qcow2_run *run)
{
  int r;

  do {
    r = reserve (op, nr, run);
    if (r < 0)
      return r;
    r = write_run (op, idx, run);
  } while (r == -ESTALE &&
           io_tainted (op->w->b->io, run->host_idx << op->w->b->cluster_bits,
                       run->count << op->w->b->cluster_bits));
  if (r < 0)
    unreserve (op->w->b, run);
  return r;
}

struct old_entry {
  unsigned root;
  uint64_t guest_idx;
  uint64_t entry;        /* result */
};

static int
get_entry_locked (struct qcow2_txn *txn, void *opaque)
{
  struct old_entry *e = opaque;

  assert (lock_held (qcow2_lock (txn->img)));
  return qcow2_get_entry_locked (txn, e->root, e->guest_idx, &e->entry);
}

/* Returns whether slot I replaces data; false if its table cannot be read. */
static bool
overwrites (struct op *op, size_t i)
{
  struct old_entry e = { .root = op->root, .guest_idx = op->guest_idx + i };

  return qcow2_txn_retry (&op->txn, get_entry_locked, &e) == 0 &&
    (e.entry & QCOW2_OFFSET_MASK) != 0;
}

/* Stores the first slot of IDX in a cluster of the overwrite reserve, if it
 * replaces data; else -ENOSPC. */
static int
try_reserve (struct op *op, const size_t *idx, struct qcow2_run *run)
{
  struct dedup_writer *w = op->w;
  bool found;
  int r;

  if (!overwrites (op, idx[0]))
    return -ENOSPC;
  *run = (struct qcow2_run) { .count = 1 };
  lock_acquire (w->b->lock);
  found = dedup_reserve_take_locked (&w->u->reserve, &run->host_idx);
  lock_release (w->b->lock);
  if (!found)
    return -ENOSPC;
  r = write_run (op, idx, run);
  op->slots[idx[0]].from_reserve = r == 0;
  if (r < 0)
    unreserve (op->w->b, run);
  return r;
}

static void
skip_unbacked (const struct dedup_base *b, unsigned failed)
{
  LOCK_FOR_SCOPE (b->lock);
  qcow2_skip_locked (b->img, failed);
}

/* Stores the first slot of IDX in a cluster of the reserve, or in a free one that
 * has space. */
static int
try_few (struct op *op, const size_t *idx, struct qcow2_run *run)
{
  int r = try_reserve (op, idx, run);
  unsigned tries;

  for (tries = 0; tries < SPACE_TRIES && r == -ENOSPC; tries++) {
    r = try_run (op, idx, 1, run);
    if (r == -ENOSPC)
      skip_unbacked (op->w->b, tries);
  }
  return r;
}

/* Returns how often clusters became free. */
static uint64_t
releases (const struct op *op)
{
  LOCK_FOR_SCOPE (op->w->b->lock);
  return op->w->u->releases;
}

/* Stores the first slot of IDX on a full host.  Space is looked for once an
 * operation; again where data is replaced and clusters became free meanwhile, which
 * other writers may have taken. */
static int
try_full_host (struct op *op, const size_t *idx, struct qcow2_run *run)
{
  unsigned searches = 0;
  uint64_t before;
  int r = op->short_of_space ? try_few (op, idx, run) : -ENOSPC;

  if (op->short_of_space && (r != -ENOSPC || !overwrites (op, idx[0])))
    return r;
  op->short_of_space = true;
  do {
    before = releases (op);
    r = dedup_find_space (op->w->u);
    if (r < 0)
      return r;
    r = try_few (op, idx, run);
  } while (r == -ENOSPC && ++searches < SPACE_SEARCHES &&
           releases (op) != before && overwrites (op, idx[0]));
  return r;
}

/* Stores the first slots of IDX; one, where the host is full.  Returns how
 * many. */
static ssize_t
store_run (struct op *op, const size_t *idx, size_t nr)
{
  struct qcow2_run run;
  size_t k;
  int r = -ENOSPC;

  if (!op->short_of_space)
    r = try_run (op, idx, nr, &run);
  if (r == -ENOSPC)
    r = try_full_host (op, idx, &run);
  if (r < 0)
    return r;
  for (k = 0; k < run.count; k++) {
    op->slots[idx[k]].value = run.host_idx + k;
    op->slots[idx[k]].stored = true;
  }
  return (ssize_t) run.count;
}

/* Leaves the data of a rewrite that was not stored compressed where it is. */
static void
keep_unpacked (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_NEW && !op->slots[i].stored)
      op->slots[i].kind = SLOT_KEEP;
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_FOLLOW && op->slots[i].leader->kind == SLOT_KEEP)
      op->slots[i].kind = SLOT_KEEP;
}

int
dedup_place_all (struct op *op)
{
  size_t *idx = op->idx, i, nr = 0, done;
  ssize_t n;
  int r = dedup_pack_all (op);

  if (r < 0)
    return r;
  if (op->avoids)
    keep_unpacked (op);
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_NEW && !op->slots[i].stored)
      idx[nr++] = i;
  for (done = 0; done < nr; done += n) {
    n = store_run (op, idx + done, nr - done);
    if (n < 0)
      return (int) n;
  }
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_FOLLOW)
      op->slots[i].value = op->slots[i].leader->value;
  return 0;
}
