/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk without a store: clusters are written where they are, or to new ones,
 * and tables follow in QEMU's order (qcow2fmt/direct.c).  Nothing is hashed or
 * journalled, nothing shared.
 *
 * A write has three steps, as in write.c: look where each cluster goes (its
 * own place, if no snapshot has it too; else a new one); write the bytes; and
 * under one hold of the lock change the entries, once every table they need
 * is there.  The range lock above keeps the entries as they were looked at.
 *
 * Data in an external file has its place there by its guest offset, and no
 * refcounts.  What lies past the end of the disk is not written there: the
 * raw kind has the size of the disk.
 *
 * Flushes are one at a time, by the maintenance mutex.  After one that failed
 * nothing is called durable any more (law 10).
 */
#include "direct.h"
#include "aligned.h"

#include <errno.h>

struct place {
  uint64_t old;                /* L2 entry */
  uint64_t host_idx;           /* if placed; in a data file 0 is a place, too */
  bool placed;
  bool reserved;               /* new, and not linked yet */
};

struct direct_op {
  struct dedup_disk *d;
  uint64_t guest_idx;
  size_t nr;
  struct place *v;             /* nr of them */
  struct qcow2_txn txn;
};

static bool
in_data_file (const struct dedup_disk *d)
{
  return qcow2_geometry (d->img)->has_data_file;
}

static bool
data_file_is_raw (const struct dedup_disk *d)
{
  return qcow2_geometry (d->img)->data_file_raw;
}

static uint64_t
entry_of (const struct direct_op *op, const struct place *p)
{
  return p->host_idx << op->d->cluster_bits | QCOW2_L2_COPIED;
}

/* --- look ------------------------------------------------------------- */

/* Where does cluster I go?  Not placed: to a new cluster. */
static int
look_one (struct direct_op *op, size_t i)
{
  struct place *p = &op->v[i];
  uint64_t refcount;
  bool anchored;
  int r;

  r = qcow2_get_entry_locked (&op->txn, QCOW2_ROOT_ACTIVE, op->guest_idx + i,
                              &p->old);
  if (r < 0)
    return r;
  p->placed = false;
  if (in_data_file (op->d)) {
    p->host_idx = op->guest_idx + i;
    p->placed = true;
    return 0;
  }
  if (!(p->old & QCOW2_L2_COPIED) || (p->old & QCOW2_L2_COMPRESSED) ||
      (p->old & QCOW2_OFFSET_MASK) % op->d->cluster_size != 0)
    return 0;
  p->host_idx = (p->old & QCOW2_OFFSET_MASK) >> op->d->cluster_bits;
  if (p->host_idx == 0)
    return 0;
  r = qcow2_get_refcount_locked (&op->txn, p->host_idx, &refcount, &anchored);
  if (r == 0 && qcow2_guarded_locked (op->d->img, p->host_idx, 1))
    return -EIO;               /* an entry that names a table */
  p->placed = r == 0 && refcount == 1;   /* else COPIED is wrong */
  return r;
}

static int
look_all (struct direct_op *op)
{
  size_t i = 0;
  int r = 0;

  lock_acquire (op->d->lock);
  while (i < op->nr && r == 0) {
    r = look_one (op, i);
    if (r == 0)
      i++;
    else if (r == -EAGAIN) {
      lock_release (op->d->lock);
      r = qcow2_txn_load (&op->txn);
      lock_acquire (op->d->lock);
    }
  }
  lock_release (op->d->lock);
  return r;
}

/* --- new clusters ------------------------------------------------------ */

static int
reserve (struct direct_op *op, size_t wanted, struct qcow2_run *run)
{
  LOCK_FOR_SCOPE (op->d->lock);
  int r = qcow2_reserve_locked (op->d->img, wanted, run);

  if (r == 0 && qcow2_guarded_locked (op->d->img, run->host_idx, run->count))
    return -EIO;               /* never: the scan leaves tables out */
  return r;
}

static void
no_garbage (void *opaque, uint64_t host_idx)
{
}

/* Look everywhere for free clusters, and free what was dropped. */
static int
find_space (struct dedup_disk *d)
{
  int r;

  do
    r = qcow2_scan_step (d->img, no_garbage, NULL);
  while (r == 1);
  if (r == 0)
    r = dedup_direct_flush (d);
  if (r == 0)
    dedup_wait_for_freeing (d);
  return r;
}

/* A run for the places from I on that want one. */
static int
reserve_run (struct direct_op *op, size_t i)
{
  struct qcow2_run run;
  size_t n = 1, k;
  int r;

  while (i + n < op->nr && !op->v[i + n].placed)
    n++;
  r = reserve (op, n, &run);
  if (r == -ENOSPC && (r = find_space (op->d)) == 0)
    r = reserve (op, n, &run);
  if (r < 0)
    return r;
  for (k = 0; k < run.count; k++) {
    op->v[i + k].host_idx = run.host_idx + k;
    op->v[i + k].placed = op->v[i + k].reserved = true;
  }
  return 0;
}

static int
reserve_all (struct direct_op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    if (!op->v[i].placed)
      r = reserve_run (op, i);
  return r;
}

/* --- write --------------------------------------------------------------- */

/* Bytes of the disk in NR clusters from I on. */
static size_t
bytes_of (const struct direct_op *op, size_t i, size_t nr)
{
  uint64_t size = qcow2_geometry (op->d->img)->virtual_size;
  uint64_t off = (op->guest_idx + i) << op->d->cluster_bits;
  uint64_t len = (uint64_t) nr << op->d->cluster_bits;

  return in_data_file (op->d) ? MIN_OF (len, size - off) : len;
}

/* Was the data file not to be opened (QCOW2_FILES_IGNORE)? */
static bool
lacks_data_file (const struct direct_op *op)
{
  return in_data_file (op->d) &&
    qcow2_data_io (op->d->img) == qcow2_io (op->d->img);
}

static int
write_all (struct direct_op *op, const uint8_t *buf)
{
  struct dedup_disk *d = op->d;
  size_t i, n;
  int r = lacks_data_file (op) ? -EIO : 0;

  for (i = 0; i < op->nr && r == 0; i += n) {
    for (n = 1; i + n < op->nr; n++)
      if (op->v[i + n].host_idx != op->v[i].host_idx + n)
        break;
    r = io_pwrite (qcow2_data_io (d->img), buf + (i << d->cluster_bits),
                   bytes_of (op, i, n), op->v[i].host_idx << d->cluster_bits);
  }
  return r;
}

/* --- link ---------------------------------------------------------------- */

/* Does an entry that refers to other clusters go? */
static bool
drops_old (const struct direct_op *op, const struct place *p)
{
  return !in_data_file (op->d) &&
    ((p->old & QCOW2_L2_COMPRESSED) ||
     (p->old & QCOW2_OFFSET_MASK) >> op->d->cluster_bits != p->host_idx);
}

static int
prepare_one (struct direct_op *op, size_t i, uint64_t entry)
{
  struct place *p = &op->v[i];
  int r;

  if (entry == p->old)
    return 0;
  r = qcow2_prepare_entry_locked (&op->txn, QCOW2_ROOT_ACTIVE,
                                  op->guest_idx + i);
  if (r == 0 && p->reserved)
    r = qcow2_prepare_host_locked (&op->txn, p->host_idx, 1);
  if (r == 0 && drops_old (op, p))
    r = qcow2_prepare_drop_locked (&op->txn, p->old, 1);
  return r;
}

static void
change (struct direct_op *op, const struct qcow2_change *c)
{
  int r = qcow2_apply_locked (&op->txn, c);

  assert (r == 0);             /* prepared */
  (void) r;
}

static int
link_one (struct direct_op *op, size_t i, uint64_t entry, bool trimmed)
{
  struct place *p = &op->v[i];
  struct qcow2_change ref = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = p->host_idx, .count = 1,
    .refcount = 1,
  };
  struct qcow2_change link = {
    .type = QCOW2_CHANGE_L2, .root = QCOW2_ROOT_ACTIVE,
    .guest_idx = op->guest_idx + i, .count = 1, .entry = entry,
  };

  if (entry == p->old)
    return 0;
  if (p->reserved)
    change (op, &ref);
  p->reserved = false;
  change (op, &link);
  return drops_old (op, p) ? qcow2_drop_locked (&op->txn, p->old, 1, trimmed)
    : 0;
}

/* All entries as they should be; ZERO_ENTRY non-NULL: all to that. */
static int
try_link (struct direct_op *op, const uint64_t *zero_entry)
{
  size_t i;
  int r = op->d->failed;

  for (i = 0; i < op->nr && r == 0; i++)
    r = prepare_one (op, i, zero_entry ? *zero_entry
                     : entry_of (op, &op->v[i]));
  for (i = 0; i < op->nr && r == 0; i++)
    r = link_one (op, i, zero_entry ? *zero_entry
                  : entry_of (op, &op->v[i]), zero_entry != NULL);
  return r;
}

static int
link_all (struct direct_op *op, const uint64_t *zero_entry)
{
  bool searched = false;
  int r;

  for (;;) {
    lock_acquire (op->d->lock);
    r = try_link (op, zero_entry);
    lock_release (op->d->lock);
    if (r == -EAGAIN)
      r = qcow2_txn_load (&op->txn);
    else if (r == -ENOSPC && !searched) {
      searched = true;
      r = find_space (op->d);
    }
    else
      break;
    if (r < 0)
      break;
  }
  if (r != -EINVAL)
    return r;
  dedup_contradiction (op->d);
  return -EIO;
}

/* --- operations ------------------------------------------------------------ */

static void
finish (struct direct_op *op)
{
  struct qcow2_run run = { .count = 1 };
  size_t i;

  lock_acquire (op->d->lock);
  for (i = 0; i < op->nr; i++)
    if (op->v[i].reserved) {
      run.host_idx = op->v[i].host_idx;
      qcow2_unreserve_unbacked_locked (op->d->img, &run);
    }
  qcow2_txn_end_locked (&op->txn);
  lock_release (op->d->lock);
  free (op->v);
}

static int
begin (struct direct_op *op)
{
  op->v = calloc (op->nr, sizeof *op->v);
  if (op->v == NULL)
    return -ENOMEM;
  qcow2_txn_begin (op->d->img, &op->txn);
  return look_all (op);
}

static bool
too_dirty (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_dirty_bytes_locked (d->img) > d->dirty_max;
}

/* Before the first change of a session: what the file says of programs that
 * don't keep up features it has. */
static int
enter (struct dedup_disk *d)
{
  int r = d->writable ? 0 : -EROFS;

  if (r == 0)
    r = dedup_failed (d);
  if (r < 0)
    return r;
  pthread_mutex_lock (&d->maintenance);
  if (!d->session_begun) {
    r = qcow2_begin_session (d->img);
    d->session_begun = r == 0;
  }
  pthread_mutex_unlock (&d->maintenance);
  if (r == -ENOSPC)             /* the next one tries again */
    return r;
  if (r < 0)
    return dedup_fail (d, r, "writing the header failed");
  return too_dirty (d) ? dedup_direct_flush (d) : 0;
}

int
dedup_direct_write (struct dedup_disk *d, const void *buf,
                    uint64_t guest_idx, size_t nr)
{
  struct direct_op op = { .d = d, .guest_idx = guest_idx, .nr = nr };
  int r = enter (d);

  if (r < 0)
    return r;
  r = begin (&op);
  if (r == 0)
    r = reserve_all (&op);
  if (r == 0)
    r = write_all (&op, buf);
  if (r == 0)
    r = link_all (&op, NULL);
  if (op.v)
    finish (&op);
  return r;
}

/* Zeroes in the place of the data. */
static int
write_zeroes (struct dedup_disk *d, uint64_t guest_idx, size_t nr)
{
  size_t at_once = MAX_OF (DEDUP_CHUNK_BYTES >> d->cluster_bits, 1), done, n;
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (at_once << d->cluster_bits);
  int r = zero ? 0 : -ENOMEM;

  for (done = 0; done < nr && r == 0; done += n) {
    n = MIN_OF (nr - done, at_once);
    r = dedup_direct_write (d, zero, guest_idx + done, n);
  }
  return r;
}

/* What is in the data file itself reads as zeroes, too. */
static int
clear_data_file (const struct direct_op *op)
{
  uint64_t off = op->guest_idx << op->d->cluster_bits;

  return lacks_data_file (op) ? -EIO
    : io_discard (qcow2_data_io (op->d->img), off, bytes_of (op, 0, op->nr));
}

static int
unmap_piece (struct direct_op *op, uint64_t entry)
{
  struct dedup_disk *d = op->d;
  size_t i;
  int r = 0;

  if (in_data_file (d))
    r = clear_data_file (op);
  if (r == -EOPNOTSUPP && !data_file_is_raw (d))
    r = 0;
  if (r == -EOPNOTSUPP)
    return write_zeroes (d, op->guest_idx, op->nr);
  if (r < 0 || data_file_is_raw (d))
    return r;
  r = begin (op);
  for (i = 0; i < op->nr && op->v; i++)
    op->v[i].host_idx = 0;     /* nothing is kept where it is */
  if (r == 0)
    r = link_all (op, &entry);
  if (op->v)
    finish (op);
  return r;
}

int
dedup_direct_unmap (struct dedup_disk *d, uint64_t guest_idx, uint64_t nr,
                    enum dedup_unmap how)
{
  bool marked = how == DEDUP_ZERO || d->has_backing;
  uint64_t done;
  int r = enter (d);

  for (done = 0; done < nr && r == 0; done += DEDUP_CHUNK_CLUSTERS) {
    struct direct_op op = {
      .d = d, .guest_idx = guest_idx + done,
      .nr = MIN_OF (nr - done, DEDUP_CHUNK_CLUSTERS),
    };
    /* Version 2 knows no zero clusters. */
    if (d->has_backing && qcow2_geometry (d->img)->version < 3)
      r = write_zeroes (d, op.guest_idx, op.nr);
    else
      r = unmap_piece (&op, marked && qcow2_geometry (d->img)->version >= 3
                       ? QCOW2_L2_ZERO : 0);
  }
  return r;
}

/* --- flush and jobs --------------------------------------------------------- */

int
dedup_direct_flush (struct dedup_disk *d)
{
  int r;

  if (!d->writable)
    return 0;
  pthread_mutex_lock (&d->maintenance);
  r = dedup_failed (d) ? -EIO : qcow2_direct_flush (d->img);
  pthread_mutex_unlock (&d->maintenance);
  if (r < 0 && r != -ENOSPC && r != -ENOMEM)
    return dedup_fail (d, r, "making writes durable failed");
  return r;
}

static bool
pending (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_direct_pending_locked (d->img);
}

/* Once for the changes, once for the refcounts that they freed, which can
 * take no further. */
int
dedup_direct_finish (struct dedup_disk *d)
{
  int r = dedup_save_bitmaps (d), i;

  for (i = 0; i < 2 && r == 0; i++)
    if (i == 0 || pending (d))
      r = dedup_direct_flush (d);
  return r == 0 ? qcow2_bitmaps_end (d->img) : r;
}

unsigned
dedup_direct_due (struct dedup_disk *d, unsigned *urgent)
{
  unsigned due = 0, now = 0;

  LOCK_FOR_SCOPE (d->lock);
  if (d->failed || !d->writable)
    return 0;
  if (qcow2_direct_pending_locked (d->img))
    due |= DEDUP_JOB_COMMIT;
  if (qcow2_dirty_bytes_locked (d->img) > d->dirty_high)
    now |= DEDUP_JOB_COMMIT;
  if (!qcow2_scan_done_locked (d->img))
    now |= DEDUP_JOB_SCAN;
  if (dedup_give_back_due_locked (d))
    due |= DEDUP_JOB_GIVE_BACK;
  if (dedup_give_back_busy_locked (d))
    now |= DEDUP_JOB_GIVE_BACK;
  if (urgent)
    *urgent = now;
  return due | now;
}

int
dedup_direct_run (struct dedup_disk *d, enum dedup_job job)
{
  int r = dedup_failed (d);

  if (r < 0)
    return r;
  if (job == DEDUP_JOB_SCAN) {
    r = qcow2_scan_step (d->img, no_garbage, NULL);
    return MIN_OF (r, 0);
  }
  if (job == DEDUP_JOB_GIVE_BACK)
    return dedup_give_back (d);
  return job == DEDUP_JOB_COMMIT ? dedup_direct_flush (d) : -EINVAL;
}
