/* SPDX-License-Identifier: BSD-3-Clause */
/* An open disk: what all operations share.
 *
 * The gate keeps bit 48 true: an operation that may append records runs between
 * dedup_change_begin and dedup_change_end, and the bit is set and durable all
 * the while (law 1).  Clearing it needs the gate closed with nobody inside
 * (checkpoint.c).
 */
#include "direct.h"

#include <errno.h>
#include <inttypes.h>

/* --- messages and failure --------------------------------------------------- */

void
dedup_wake (struct dedup_disk *d)
{
  if (d->wake)
    d->wake (d->wake_opaque);
}

/* Once a commit: who wakes the loop for each operation gets it onto the lock. */
void
dedup_ask_for_commit_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  if (!d->commit_asked)
    dedup_wake (d);
  d->commit_asked = true;
}

int
dedup_fail (struct dedup_disk *d, int err, const char *what)
{
  bool first;

  assert (err < 0);
  lock_acquire (d->lock);
  first = d->failed == 0;
  if (first)
    d->failed = -EROFS;
  lock_release (d->lock);
  if (first)
    log_line (d->log, LOG_ERROR, "%s: %s (%s): no more writes are taken, "
              "reads go on", d->path, what, strerror (-err));
  return err;
}

void
dedup_contradiction (struct dedup_disk *d)
{
  if (!__atomic_exchange_n (&d->contradicts, true, __ATOMIC_RELAXED))
    log_line (d->log, LOG_ERROR, "%s: a table entry names a cluster that is "
              "counted too low or not at all: close it, and run qemu-img check "
              "-r all", d->path);
}

int
dedup_failed (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return d->failed;
}

bool
dedup_writable (const struct dedup_disk *d)
{
  return d->writable;
}

struct qcow2_image *
dedup_image (struct dedup_disk *d)
{
  return d->img;
}

/* --- the format room's log ----------------------------------------------------- */

void
dedup_append_change_locked (struct dedup_disk *d, const struct qcow2_change *c)
{
  struct dedup_record rec;

  dedup_record_of_change (c, &rec);
  dedup_journal_append_locked (d->journal, &rec);
}

static void
append_locked (void *opaque, const struct qcow2_change *c)
{
  dedup_append_change_locked (opaque, c);
}

static uint64_t
journal_seq_locked (void *opaque)
{
  struct dedup_disk *d = opaque;

  return dedup_journal_seq_locked (d->journal);
}

void
dedup_attach_log (struct dedup_disk *d)
{
  struct qcow2_log log = { append_locked, journal_seq_locked, d };

  qcow2_set_log (d->img, &log);
}

void
dedup_change_locked (struct dedup_disk *d, struct qcow2_txn *txn,
                     const struct qcow2_change *c)
{
  int r;

  dedup_append_change_locked (d, c);
  r = qcow2_apply_locked (txn, c);
  assert (r == 0);              /* the caller prepared it */
}

/* --- the gate ---------------------------------------------------------------------- */

/* Set bit 48; others wait at the closed gate. */
static int
raise_recovery_bit (struct dedup_disk *d)
{
  int r;

  assert (lock_held (d->lock));
  d->gate_closed = true;
  lock_release (d->lock);
  r = mutation (MUTATION_LAW_1_NO_BIT) ? 0
    : qcow2_set_recovery_bit (d->img, true);
  lock_acquire (d->lock);
  if (r == 0)
    d->recovery_bit = d->bit_raised = true;
  d->gate_closed = false;
  pthread_cond_broadcast (&d->gate);
  return r;
}

int
dedup_change_begin (struct dedup_disk *d)
{
  bool raise;
  int r = 0;

  lock_acquire (d->lock);
  while (d->gate_closed)
    lock_wait (d->lock, &d->gate);
  /* Where a recovery had no space for the tables it is set, but not by this
   * session, which marks bitmaps with it. */
  raise = d->writable && d->failed == 0 &&
    !(d->recovery_bit && d->bit_raised);
  if (!d->writable)
    r = -EROFS;
  else if (raise)
    r = raise_recovery_bit (d);
  else
    r = d->failed;
  if (r == 0)
    d->changing++;
  lock_release (d->lock);
  /* Without space it is not set: the next one tries again. */
  return r < 0 && r != -ENOSPC && raise ?
    dedup_fail (d, r, "setting bit 48 failed") : r;
}

void
dedup_change_end_locked (struct dedup_disk *d)
{
  assert (lock_held (d->lock));
  assert (d->changing > 0);
  d->changing--;
}

void
dedup_change_end (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);

  dedup_change_end_locked (d);
}

/* --- requests that only pass through --------------------------------------------------- */

int
dedup_read (struct dedup_disk *d, unsigned root, void *buf,
            uint64_t guest_off, size_t len)
{
  return qcow2_read (d->img, root, buf, guest_off, len);
}

bool
dedup_will_need (struct dedup_disk *d, unsigned root, uint64_t guest_off,
                 uint64_t len, bool around)
{
  return qcow2_will_need (d->img, root, guest_off, len, around);
}

int
dedup_commit (struct dedup_disk *d)
{
  int r = dedup_journal_commit (d->journal);

  if (r < 0 && r != -ENOSPC)
    return dedup_fail (d, r, "making writes durable failed");
  __atomic_store_n (&d->no_space, r < 0, __ATOMIC_RELAXED);
  return r;
}

int
dedup_admit (struct dedup_disk *d)
{
  return __atomic_load_n (&d->no_space, __ATOMIC_RELAXED) ? dedup_commit (d)
    : 0;
}

int
dedup_flush (struct dedup_disk *d)
{
  uint64_t bytes;
  int r;

  if (d->direct)
    return dedup_direct_flush (d);
  if (!d->journal || !d->writable)
    return 0;
  lock_acquire (d->lock);
  bytes = d->uncommitted_bytes;
  d->uncommitted_bytes = 0;
  d->commit_asked = false;
  if (dedup_journal_pending_locked (d->journal) > 0)
    dedup_ahead_flushed_locked (d);
  if (dedup_ahead_due_locked (d))
    dedup_ask_for_commit_locked (d);
  lock_release (d->lock);
  r = dedup_commit (d);
  if (r < 0) {
    LOCK_FOR_SCOPE (d->lock);
    d->uncommitted_bytes += bytes;
    return r;
  }
  return dedup_failed (d) ? -EIO : 0;   /* law 10 */
}
