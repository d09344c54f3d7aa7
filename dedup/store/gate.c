/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate keeps bit 48 true: an operation that may append records runs
 * between dedup_enter and dedup_leave, and the bit is set and durable all the
 * while (law 1).  Clearing it needs the gate closed with nobody inside
 * (upkeep/clean.c).
 *
 * The first failure that leaves a doubt about what is on disk closes the gate
 * for good: all later changes get EROFS, and reads are served as before.
 *
 * Any thread, under the image lock, which is released while the header is
 * written.
 */
#include "gate.h"

#include <errno.h>

#include "mutation.h"

/* --- messages and failure ----------------------------------------------- */

void
dedup_wake (const struct dedup_base *b)
{
  if (b->wake)
    b->wake (b->wake_opaque);
}

void
dedup_ask_for_commit_locked (struct dedup_gate *g)
{
  assert (lock_held (g->b->lock));
  if (!g->commit_asked)
    dedup_wake (g->b);
  g->commit_asked = true;
}

int
dedup_fail (struct dedup_gate *g, int err, const char *what)
{
  bool first;

  assert (err < 0);
  lock_acquire (g->b->lock);
  first = g->failed == 0;
  if (first) {
    g->failed = -EROFS;
    g->failed_by = -err;
    g->failed_what = what;
  }
  lock_release (g->b->lock);
  if (first)
    log_line (g->b->log, LOG_ERROR, "%s: %s (%s): writes are refused from now "
              "on, reads are still served", g->b->path, what, strerror (-err));
  return err;
}

void
dedup_contradiction (struct dedup_gate *g)
{
  if (!__atomic_exchange_n (&g->contradicts, true, __ATOMIC_RELAXED))
    log_line (g->b->log, LOG_ERROR, "%s: a table entry names a cluster that is "
              "counted too low or not at all: close it, and run qemu-img check "
              "-r all", g->b->path);
}

int
dedup_gate_failed (struct dedup_gate *g)
{
  LOCK_FOR_SCOPE (g->b->lock);
  return g->failed;
}

/* --- entering and leaving ----------------------------------------------- */

/* Sets bit 48, without the lock; others wait at the closed gate meanwhile. */
static int
raise_recovery_bit (struct dedup_gate *g)
{
  int r;

  assert (lock_held (g->b->lock));
  g->closed = true;
  lock_release (g->b->lock);
  r = mutation (MUTATION_LAW_1_NO_BIT) ? 0
    : qcow2_set_recovery_bit (g->b->img, true);
  lock_acquire (g->b->lock);
  if (r == 0)
    g->recovery_bit = g->bit_raised = true;
  g->closed = false;
  pthread_cond_broadcast (&g->opened);
  return r;
}

int
dedup_enter (struct dedup_gate *g)
{
  bool raise;
  int r = 0;

  lock_acquire (g->b->lock);
  while (g->closed)
    lock_wait (g->b->lock, &g->opened);
  /* Where a recovery had no space for the tables, the bit is set already.  It
   * is set again, because that also marks bitmaps in use by this session. */
  raise = g->b->writable && g->failed == 0 &&
    !(g->recovery_bit && g->bit_raised);
  if (!g->b->writable)
    r = -EROFS;
  else if (raise)
    r = raise_recovery_bit (g);
  else
    r = g->failed;
  if (r == 0)
    g->changing++;
  lock_release (g->b->lock);
  /* -ENOSPC: the bit is not set, and the next operation tries again. */
  return r < 0 && r != -ENOSPC && raise ?
    dedup_fail (g, r, "setting bit 48 failed") : r;
}

void
dedup_leave_locked (struct dedup_gate *g)
{
  assert (lock_held (g->b->lock));
  assert (g->changing > 0);
  g->changing--;
}

void
dedup_leave (struct dedup_gate *g)
{
  LOCK_FOR_SCOPE (g->b->lock);

  dedup_leave_locked (g);
}

/* --- closing and opening ------------------------------------------------ */

bool
dedup_gate_close_locked (struct dedup_gate *g)
{
  assert (lock_held (g->b->lock));
  if (g->changing > 0 || g->closed)
    return false;
  g->closed = true;
  return true;
}

void
dedup_gate_open (struct dedup_gate *g, bool clean)
{
  LOCK_FOR_SCOPE (g->b->lock);
  if (clean)
    g->recovery_bit = false;
  g->closed = false;
  pthread_cond_broadcast (&g->opened);
}
