/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocates and frees areas of the store: ranges of anchored clusters with
 * refcount 1 that no guest entry points to.
 *
 * An area is recorded in the journal when it is allocated, and used once a
 * durable configuration lists it.  One that no configuration lists, as a crash
 * leaves it, is garbage, which the sweep of the next session frees.
 *
 * Maintenance only: one caller at a time.
 */
#include "area.h"

#include <errno.h>

/* Returns how many records a change of COUNT clusters takes at most: two or
 * three for each refcount block and anchor table that must be made, and its
 * own. */
static size_t
area_records (const struct dedup_base *b, uint64_t count)
{
  const struct qcow2_geometry *g = qcow2_geometry (b->img);

  return (size_t) (4 * (count / g->refblock_entries + count / g->l2_entries)
                   + 32);
}

struct area_part {
  struct dedup_store *s;
  uint64_t host_idx, count;      /* clusters */
  bool used;                     /* becomes part of an area, else free */
};

/* Makes the part used or free, and appends one REFCOUNT record for all of
 * it. */
static void
change_part_locked (struct qcow2_txn *txn, const struct area_part *x)
{
  const struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = x->host_idx,
    .count = (uint32_t) x->count, .refcount = x->used, .anchored = x->used,
  };
  const struct qcow2_run run = {
    .host_idx = x->host_idx, .count = x->count, .trimmed = true,
  };
  struct dedup_store *s = x->s;

  assert (lock_held (s->b->lock));
  dedup_change_locked (s, txn, &c);
  qcow2_guard_put_locked (s->b->img, x->host_idx, x->count, x->used);
  if (!x->used)
    qcow2_quarantine_locked (s->b->img, &run,
                             dedup_journal_seq_locked (s->journal));
}

/* A qcow2_step: changes the struct area_part OPAQUE as one group of records.
 * -EBUSY: the journal has no room for the group; nothing was appended. */
static int
set_part_locked (struct qcow2_txn *txn, void *opaque)
{
  const struct area_part *x = opaque;
  struct dedup_store *s = x->s;
  int r;

  assert (lock_held (s->b->lock));
  if (!dedup_journal_room_locked (s->journal, area_records (s->b, x->count),
                                  0))
    return -EBUSY;
  r = qcow2_prepare_host_locked (txn, x->host_idx, x->count);
  if (r == 0)
    change_part_locked (txn, x);
  /* Ends it also after -EAGAIN: no group is open while a table is loaded. */
  dedup_journal_end_locked (s->journal);
  return r;
}

/* Changes COUNT clusters.  Makes room in the journal by one commit, if there is
 * none; -ENOSPC: that was not enough. */
static int
set_part (struct dedup_store *s, uint64_t host_idx, uint64_t count, bool used)
{
  struct area_part x = { s, host_idx, count, used };
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (s->b->img, &txn);
  r = qcow2_txn_retry (&txn, set_part_locked, &x);
  if (r == -EBUSY && (r = dedup_commit (s)) == 0)
    r = qcow2_txn_retry (&txn, set_part_locked, &x);
  qcow2_txn_end (&txn);
  return r == -EBUSY ? -ENOSPC : r;
}

/* Makes a range used or free, part by part, so that nobody waits for all of a
 * large one.  *DONE is how many clusters were changed, also on failure.  What a
 * crash leaves of a range is garbage, because no configuration lists it. */
static int
set_area_refcount (struct dedup_store *s, uint64_t host_idx, uint64_t count,
                   bool used, uint64_t *done)
{
  uint64_t n;
  int r = 0;

  for (*done = 0; *done < count; *done += n) {
    n = MIN_OF (count - *done, DEDUP_CLUSTERS_PER_HOLD);
    r = set_part (s, host_idx + *done, n, used);
    if (r < 0)
      break;
  }
  return r;
}

static int
reserve_area (const struct dedup_base *b, uint64_t count, uint64_t *host_idx)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_reserve_area_locked (b->img, count, host_idx);
}

/* Gives up an area of which DONE clusters have their refcount already.  Where
 * these can't be freed, they are left to the next session's sweep. */
static void
unreserve_area (struct dedup_store *s, uint64_t host_idx, uint64_t count,
                uint64_t done)
{
  struct qcow2_run run = { .host_idx = host_idx + done,
                           .count = count - done };
  uint64_t freed;

  if (set_area_refcount (s, host_idx, done, false, &freed) < 0)
    log_line (s->b->log, LOG_DEBUG, "%s: part of an area is left to the next "
              "sweep", s->b->path);
  LOCK_FOR_SCOPE (s->b->lock);
  qcow2_unreserve_locked (s->b->img, &run);
}

int
dedup_area_allocate_space (struct io_store *io, uint64_t off, uint64_t size)
{
  int r = io_allocate (io, off, size);

  return r == -EOPNOTSUPP || r == -ENOTSUP
    ? io_pwrite (io, "", 1, off + size - 1) : r;
}

int
dedup_area_alloc (struct dedup_store *s, uint64_t size, uint64_t *host_off)
{
  uint64_t count = size >> s->b->cluster_bits, host_idx, done = 0;
  int r;

  assert (size % s->b->cluster_size == 0 && count <= UINT32_MAX);
  r = dedup_enter (&s->gate);
  if (r < 0)
    return r;
  r = reserve_area (s->b, count, &host_idx);
  if (r == 0) {
    *host_off = host_idx << s->b->cluster_bits;
    r = dedup_area_allocate_space (s->b->io, *host_off, size);
    if (r == 0)
      r = set_area_refcount (s, host_idx, count, true, &done);
    if (r < 0)
      unreserve_area (s, host_idx, count, done);
  }
  dedup_leave (&s->gate);
  return r;
}

int
dedup_area_free (struct dedup_store *s, uint64_t host_off, uint64_t size)
{
  uint64_t done;
  int r;

  r = dedup_enter (&s->gate);
  if (r < 0)
    return r;
  r = set_area_refcount (s, host_off >> s->b->cluster_bits,
                         size >> s->b->cluster_bits, false, &done);
  dedup_leave (&s->gate);
  return r;
}

int
dedup_area_write_zeroes (struct io_store *io, uint64_t host_off, uint64_t size)
{
  return io_pwrite_zeroes (io, host_off, size);
}
