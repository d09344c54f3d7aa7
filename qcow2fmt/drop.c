/* SPDX-License-Identifier: BSD-3-Clause */
/* Drops the references of old L2 entries, and frees clusters with them.  The
 * refcount of a cluster and whether it is anchored decide:
 *
 *   anchored                refcount - 1; left with the anchor's own: freed,
 *                           unless held (hold.c frees it later)
 *   not anchored, and the   refcount - 1; freed at 0.  No reference passes to the
 *   entry is compressed     anchor, because no entry would need COPIED
 *   not anchored, 1         freed
 *   not anchored, above 1   the reference passes to the anchor: the refcount
 *                           stays, and nobody has to find out which of the
 *                           other owners would now need COPIED
 *   a table (guard.c)       refcount - 1, but the table's own reference stays,
 *                           and the anchor's.  An L2 table of the disk that is
 *                           not written in place is copied before: then the
 *                           cluster is one of the above
 *
 * A compressed entry has a reference to each host cluster that it touches.  Where an entry
 * is changed for several roots (in-place.c), as many references are dropped at once, by
 * the same rules; of no table.
 *
 * Freed clusters are put into quarantine with the log's present sequence number
 * (law 6).  A request prepares all its drops, then makes all its changes under
 * the same hold of the lock.  The tables that it prepared stay pinned, so
 * dropping needs no load, also where two of its drops hit the same cluster;
 * each drop looks at the refcount of its own moment.
 *
 * An unanchored refcount never grows (only held, anchored clusters are
 * linked), so "above 1" at a drop was true when it was prepared, and the
 * anchor table was made then.  In an image with disks it grows when a lent table
 * is copied, maybe for a later cluster of the same request; there the anchor
 * table is always made.
 *
 * Protected by the image's lock.  Comparing and holding clusters (hold.c) and
 * emptying the quarantine (alloc.c) are elsewhere.
 */
#include <errno.h>

#include "checked.h"
#include "image.h"

/* Returns whether there is a reference that could be dropped, beside the
 * anchor's. */
static bool
can_drop (uint64_t host_idx, uint64_t refcount, bool anchored)
{
  return host_idx != 0 && refcount > (anchored ? 1 : 0);
}

static int
look (struct qcow2_txn *txn, uint64_t host_idx, uint64_t *refcount,
      bool *anchored)
{
  int r = qcow2_get_refcount_locked (txn, host_idx, refcount, anchored);

  if (r == 0 && !can_drop (host_idx, *refcount, *anchored) &&
      !qcow2_guard_stays_locked (txn->img, host_idx))
    r = -EINVAL;
  return r;
}

/* Returns how many of NR clusters from HOST_IDX on are not guarded; 1 if the
 * first one is. */
static uint64_t
guarded_alike (struct qcow2_image *img, uint64_t host_idx, uint64_t nr)
{
  uint64_t next = qcow2_next_guarded_locked (img, host_idx);

  return next == host_idx ? 1 : MIN_OF (nr, next - host_idx);
}

static bool
misaligned (const struct qcow2_image *img, uint64_t entry)
{
  return !(entry & QCOW2_L2_COMPRESSED) &&
    (entry & QCOW2_OFFSET_MASK) % img->header.geo.cluster_size != 0;
}

/* Sets *COUNT to how many clusters from HOST_IDX on, at least 1 and at most NR,
 * have the first one's *REFCOUNT and *ANCHORED, and lie in the same slice of a
 * refcount block and the same part of the anchor.  0 or -errno. */
static int
look_run (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr,
          uint64_t *count, uint64_t *refcount, bool *anchored)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *geo = &img->header.geo;
  struct qcow2_slice *block;
  uint64_t n;
  int r = look (txn, host_idx, refcount, anchored);

  if (r == 0)
    r = qcow2_refblock_locked (txn, host_idx, &block);
  if (r < 0)
    return r;
  nr = MIN_OF (nr, qcow2_refcount_slice (geo) -
               host_idx % qcow2_refcount_slice (geo));
  nr = MIN_OF (nr, geo->l2_entries - host_idx % geo->l2_entries);
  nr = guarded_alike (img, host_idx, nr);
  for (n = 1; n < nr; n++)
    if (qcow2_refblock_get_locked (img, block, host_idx + n) != *refcount ||
        qcow2_anchor_test_locked (img, host_idx + n) != *anchored)
      break;
  *count = n;
  return 0;
}

/* Copies the disk's L2 tables in this cluster that are not written in place; not
 * in an image with disks, where they may be other roots', too. */
static int
copy_tables (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  int r = 0;

  if (!qcow2_guard_stays_locked (img, host_idx) || qcow2_lends_tables (img))
    return 0;
  for (uint64_t i = 0; i < img->l1.nr && r == 0; ++i)
    if ((img->l1.v[i] & QCOW2_OFFSET_MASK) >> g->cluster_bits == host_idx &&
        !(img->l1.v[i] & QCOW2_L2_COPIED) &&
        i * g->l2_entries < g->nr_clusters)
      r = qcow2_prepare_entry_locked (txn, QCOW2_ROOT_ACTIVE,
                                      i * g->l2_entries);
  return r;
}

/* Checks that a reference to each of NR clusters can be dropped; else -EINVAL.
 * PREPARE copies the disk's tables among them first; TO_ANCHOR makes the tables
 * that passing a reference to the anchor needs. */
static int
look_all (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr, bool prepare,
          bool to_anchor)
{
  uint64_t n, refcount;
  bool anchored;
  int r = 0;

  for (; nr > 0; host_idx += n, nr -= n) {
    r = prepare ? copy_tables (txn, host_idx) : 0;
    if (r == 0)
      r = look_run (txn, host_idx, nr, &n, &refcount, &anchored);
    if (r == 0 && to_anchor && !anchored &&
        (refcount > 1 || qcow2_lends_tables (txn->img)))
      r = qcow2_prepare_host_locked (txn, host_idx, n);
    if (r < 0)
      break;
  }
  return r;
}

/* Checks that each of COUNT clusters, no tables, has TIMES references that can be dropped;
 * else -EINVAL. */
static int
look_times (struct qcow2_txn *txn, uint64_t host_idx, uint64_t count, uint64_t times)
{
  uint64_t refcount, i;
  bool anchored;
  int r = 0;

  for (i = 0; i < count && r == 0; ++i) {
    r = qcow2_get_refcount_locked (txn, host_idx + i, &refcount, &anchored);
    if (r == 0 && (refcount < times + anchored || host_idx + i == 0 ||
                   qcow2_guarded_locked (txn->img, host_idx + i, 1)))
      r = -EINVAL;
  }
  return r;
}

int
qcow2_prepare_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr)
{
  struct qcow2_image *img = txn->img;
  bool compressed = entry & QCOW2_L2_COMPRESSED;
  uint64_t idx, count;
  int r;

  assert (lock_held (&img->lock));
  if (misaligned (img, entry))
    return -EINVAL;
  qcow2_entry_clusters (img, entry, &idx, &count);
  if (count == 0)
    return 0;
  r = look_all (txn, idx, compressed ? count : nr, true,
                !compressed && !img->unlogged.on);
  return r == 0 && img->unlogged.on ? qcow2_unlogged_reserve_locked (img) : r;
}

static void
set_refcounts (struct qcow2_txn *txn, const struct qcow2_run *run,
               uint64_t refcount, bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = run->host_idx,
    .count = (uint32_t) run->count, .refcount = refcount,
    .anchored = anchored,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);             /* prepared */
  (void) r;
}

static void
free_run (struct qcow2_txn *txn, const struct qcow2_run *run)
{
  struct qcow2_image *img = txn->img;

  set_refcounts (txn, run, 0, false);
  if (qcow2_guard_left_locked (img, run->host_idx)) {   /* a run of one */
    qcow2_alloc_keep_locked (img, run->host_idx, run->count);
    return;
  }
  qcow2_quarantine_locked (img, run, img->log.seq_locked ?
                           img->log.seq_locked (img->log.opaque) : 0);
}

/* Drops a reference to a cluster whose table stays.  The refcount does not fall
 * below the table's own and the anchor's reference: a reference that was never
 * counted is not subtracted.  In an image with disks it stays as it is, because
 * it says more about the table (debt.c): at worst a cluster leaks. */
static void
drop_table (struct qcow2_txn *txn, uint64_t host_idx, uint64_t refcount,
            bool anchored)
{
  struct qcow2_run run = { host_idx, 1, false };

  if (refcount > (anchored ? 2 : 1) && !qcow2_lends_tables (txn->img))
    set_refcounts (txn, &run, refcount - 1, anchored);
}

/* Drops TIMES references of compressed data to a cluster. */
static void
drop_compressed (struct qcow2_txn *txn, uint64_t host_idx, uint64_t times,
                 bool trimmed)
{
  struct qcow2_run run = { host_idx, 1, trimmed };
  uint64_t refcount;
  bool anchored;
  int r = look (txn, host_idx, &refcount, &anchored);

  assert (r == 0);
  (void) r;
  if (qcow2_guard_stays_locked (txn->img, host_idx))
    drop_table (txn, host_idx, refcount, anchored);
  else if ((refcount == times + anchored ||
            mutation (MUTATION_SHARED_FREED)) &&
           !(anchored && qcow2_is_held_locked (txn->img, host_idx)))
    free_run (txn, &run);
  else
    set_refcounts (txn, &run, refcount - times, anchored);
}

/* Returns how many clusters of RUN, from the first on, are alike in being held
 * or not; *HELD: which. */
static uint64_t
same_holds (const struct qcow2_image *img, const struct qcow2_run *run,
            bool *held)
{
  uint64_t n = 1;

  *held = qcow2_is_held_locked (img, run->host_idx);
  if (img->holds.nr == 0)
    return run->count;
  while (n < run->count &&
         qcow2_is_held_locked (img, run->host_idx + n) == *held)
    n++;
  return n;
}

/* Drops TIMES references to each cluster of RUN, all of which have this refcount,
 * and are anchored and held alike. */
static void
drop_alike (struct qcow2_txn *txn, const struct qcow2_run *run, uint64_t times,
            uint64_t refcount, bool anchored, bool held)
{
  if (anchored && refcount == times + 1 && !held)
    free_run (txn, run);
  else if (anchored)
    set_refcounts (txn, run, refcount - times, true);
  else if (refcount == times)
    free_run (txn, run);
  else if (txn->img->anchor.l1.nr > 0)
    qcow2_pass_to_anchor_locked (txn, run, refcount - (times - 1));
  else
    set_refcounts (txn, run, refcount - times, false);
}

static void
drop_run (struct qcow2_txn *txn, uint64_t host_idx, uint64_t nr, uint64_t times,
          bool trimmed)
{
  struct qcow2_run run = { host_idx, 0, trimmed };
  uint64_t refcount;
  bool anchored, held;
  int r;

  for (; nr > 0; run.host_idx += run.count, nr -= run.count) {
    r = look_run (txn, run.host_idx, nr, &run.count, &refcount, &anchored);
    assert (r == 0);           /* looked at before */
    (void) r;
    if (qcow2_guard_stays_locked (txn->img, run.host_idx)) {
      drop_table (txn, run.host_idx, refcount, anchored);
      continue;
    }
    run.count = same_holds (txn->img, &run, &held);
    drop_alike (txn, &run, times, refcount, anchored, held);
  }
}

/* Drops NR references, or TIMES references to one entry. */
static int
drop (struct qcow2_txn *txn, uint64_t entry, uint64_t nr, uint64_t times,
      bool trimmed)
{
  struct qcow2_image *img = txn->img;
  bool compressed = entry & QCOW2_L2_COMPRESSED;
  uint64_t idx, count;
  int r;

  if (misaligned (img, entry))
    return -EINVAL;
  qcow2_entry_clusters (img, entry, &idx, &count);
  if (count == 0)
    return 0;
  if (!compressed)
    count = nr;
  /* Checked again: another drop of this request may have hit these clusters. */
  r = look_all (txn, idx, count, false, false);
  if (r == 0 && times > 1)
    r = look_times (txn, idx, count, times);
  assert (r != -EAGAIN);       /* prepared under this hold of the lock */
  if (r < 0)
    return r;
  if (img->unlogged.on)
    qcow2_unlogged_drop_locked (img, &(struct qcow2_run) {
        idx, count, trimmed });
  else if (!compressed)
    drop_run (txn, idx, count, times, trimmed);
  else
    for (uint64_t i = 0; i < count; ++i)
      drop_compressed (txn, idx + i, times, trimmed);
  return 0;
}

int
qcow2_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr,
                   bool trimmed)
{
  assert (lock_held (&txn->img->lock));
  return drop (txn, entry, nr, 1, trimmed);
}

int
qcow2_prepare_drop_times_locked (struct qcow2_txn *txn, uint64_t entry,
                                 uint64_t times)
{
  const bool compressed = entry & QCOW2_L2_COMPRESSED;
  uint64_t first, count, i;
  int r;

  assert (lock_held (&txn->img->lock));
  if (times == 1)
    return qcow2_prepare_drop_locked (txn, entry, 1);
  if (misaligned (txn->img, entry))
    return -EXDEV;
  qcow2_entry_clusters (txn->img, entry, &first, &count);
  r = look_times (txn, first, count, times);
  if (r == -EINVAL)
    return -EXDEV;
  for (i = 0; i < count && r == 0 && !compressed; ++i)
    r = qcow2_prepare_host_locked (txn, first + i, 1);
  return r;
}

int
qcow2_drop_times_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t times,
                         bool trimmed)
{
  assert (lock_held (&txn->img->lock));
  return drop (txn, entry, 1, times, trimmed);
}
