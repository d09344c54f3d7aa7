/* SPDX-License-Identifier: BSD-3-Clause */
/* Verifies what the scan found by refcounts alone: that suspects, free clusters
 * which an earlier session left with data, and candidates for garbage are not
 * in use.
 *
 * After a crash it is not known what was freed, a close has no time to give
 * all free clusters back to the host, and other programs do not give back what
 * they free.  The scan finds these clusters by their refcounts of 0, and
 * garbage by refcounts of 1.  But refcounts may be wrong, in an image that
 * another program did not close, or on a host that lost or flipped bits.  A
 * repair (qemu-img check -r) needs the data, which would be lost within seconds
 * of being served.  So before any suspect is emptied, and any garbage freed:
 *
 *   1. the host is asked in which suspects it holds data.  Mostly it holds
 *      none, and the others are forgotten;
 *   2. if suspects or candidates are left, every L2 table is read once
 *      (named.c).  What an entry names is in use: it is neither free nor
 *      garbage for anybody, and one line in the log counts it.
 *
 * The remaining suspects become stale then, and the remaining candidates are
 * garbage, which the caller frees.  Until then a close does not cut off the file
 * before a suspect, and no candidate is freed.  What a session has not verified
 * when it ends is left to the next one.
 *
 * Suspects are left alone until they are used if the host does not tell where
 * it holds data (devices), in images with persistent bitmaps, whose clusters
 * no L2 table names, and with an external data file.  Garbage is verified there
 * as well: it is anchored, which bitmaps never are.  If a table cannot be read,
 * both are left alone.
 *
 * One thread at a time takes a step; the image's lock protects the bits, and
 * I/O happens without it.
 */
#include <errno.h>
#include <stdlib.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

/* These limit one step (questions to the host) and one hold of the lock (runs
 * that become stale). */
#define STEP_QUESTIONS 2048
#define RUNS_PER_HOLD 2048

enum phase { ASK_HOST, READ_TABLES, DONE };

struct qcow2_verify {
  enum phase phase;
  uint64_t next;               /* ASK_HOST: cluster */
  bool leave_suspects;         /* they stay suspects, whatever tables say */
  struct qcow2_walk walk;
};

void
qcow2_verify_free (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;

  if (a->verify)
    qcow2_walk_free (&a->verify->walk);
  free (a->verify);
  a->verify = NULL;
}

static uint64_t
next_suspect (struct qcow2_image *img, uint64_t from)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_bitset_next (img->alloc.suspect, from);
}

static void
forget (struct qcow2_image *img, uint64_t first, uint64_t end)
{
  LOCK_FOR_SCOPE (&img->lock);
  if (first < end)
    qcow2_bitset_clear (img->alloc.suspect, first, end - first);
}

static void
set_phase (struct qcow2_image *img, enum phase phase)
{
  LOCK_FOR_SCOPE (&img->lock);
  img->alloc.verify->phase = phase;
}

/* --- The host --------------------------------------------------------------- */

static bool
can_tell (const struct qcow2_image *img)
{
  return !qcow2_has_data_file (&img->header.geo) &&
    img->header.bitmaps_ext_len == 0 && img->bitmaps.nr == 0;
}

static void
done_asking (struct qcow2_image *img, bool leave_suspects)
{
  img->alloc.verify->leave_suspects = leave_suspects;
  set_phase (img, READ_TABLES);
}

/* Clears suspects for which the host holds no data. */
static void
ask_host (struct qcow2_image *img, struct qcow2_verify *v)
{
  unsigned bits = img->header.geo.cluster_bits;
  uint64_t idx, data, hole;
  int r;

  for (unsigned i = 0; i < STEP_QUESTIONS; ++i) {
    idx = next_suspect (img, v->next);
    r = idx == QCOW2_BITSET_NONE ? 0 : io_next_data (img->io, idx << bits, &data);
    if (idx == QCOW2_BITSET_NONE || r < 0) {
      done_asking (img, r < 0);
      return;
    }
    data = data == UINT64_MAX ? UINT64_MAX - QCOW2_BITSET_CHUNK : data >> bits;
    forget (img, idx, data);
    v->next = data;
    if (data != idx)
      continue;
    hole = io_next_hole (img->io, idx << bits);
    v->next = hole == UINT64_MAX ? idx + 1 : MAX_OF (hole >> bits, idx + 1);
  }
}

/* --- The tables ------------------------------------------------------------- */

/* Makes some suspects stale, as many runs as one hold of the lock should take.
 * Returns false if there are no more. */
static bool
some_become_stale (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  LOCK_FOR_SCOPE (&img->lock);
  uint64_t idx, n;

  for (unsigned i = 0; i < RUNS_PER_HOLD; ++i) {
    idx = qcow2_bitset_next (a->suspect, 0);
    if (idx == QCOW2_BITSET_NONE)
      return false;
    n = qcow2_bitset_run (a->suspect, idx, QCOW2_BITSET_CHUNK);
    qcow2_bitset_clear (a->suspect, idx, n);
    qcow2_stale_put (a, idx, n);
  }
  return true;
}

/* Ends the work after a whole walk: no table names what is left. */
static int
verified (struct qcow2_image *img, struct qcow2_verify *v)
{
  if (v->walk.nr_in_use > 0)
    log_line (img->log_sink, LOG_ERROR, "%s: %llu clusters are in use though "
              "their refcounts say that they are not, and are left alone: run "
              "qemu-img check", img->path ? img->path : "image",
              (unsigned long long) v->walk.nr_in_use);
  while (!v->leave_suspects && some_become_stale (img))
    ;
  set_phase (img, DONE);
  return 0;
}

/* Ends the work because the tables cannot be read: suspects stay suspects, and
 * there is no garbage. */
static int
give_up (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  qcow2_bitset_clear (img->alloc.garbage, 0, img->alloc.frontier);
  img->alloc.verify->phase = DONE;
  return 0;
}

/* Returns whether there is anything for which the tables have to be read. */
static bool
any_left (struct qcow2_image *img, const struct qcow2_verify *v)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_bitset_count (img->alloc.garbage) > 0 ||
    (!v->leave_suspects && qcow2_bitset_count (img->alloc.suspect) > 0);
}

static int
read_tables (struct qcow2_image *img, struct qcow2_verify *v)
{
  int r = any_left (img, v) ? qcow2_walk_step (img, &v->walk) : 0;

  if (r < 0 && r != -ENOMEM)
    return give_up (img);
  return r == 0 ? verified (img, v) : r;
}

/* --- Steps ------------------------------------------------------------------ */

bool
qcow2_verify_due_locked (struct qcow2_image *img)
{
  const struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  return img->writable && qcow2_scan_done_locked (img) &&
    a->scan_end != UINT64_MAX && (!a->verify || a->verify->phase != DONE);
}

int
qcow2_verify_step (struct qcow2_image *img)
{
  struct qcow2_alloc *a = &img->alloc;
  bool due;

  lock_acquire (&img->lock);
  due = qcow2_verify_due_locked (img);
  if (due && !a->verify)
    a->verify = calloc (1, sizeof *a->verify);
  lock_release (&img->lock);
  if (!due)
    return 0;
  if (!a->verify)
    return -ENOMEM;
  if (a->verify->phase == ASK_HOST && !can_tell (img))
    done_asking (img, true);
  if (a->verify->phase == ASK_HOST)
    ask_host (img, a->verify);
  return a->verify->phase == ASK_HOST ? 1 : read_tables (img, a->verify);
}

/* --- Garbage ---------------------------------------------------------------- */

bool
qcow2_garbage_waits_locked (struct qcow2_image *img)
{
  return qcow2_verify_due_locked (img) &&
    qcow2_bitset_count (img->alloc.garbage) > 0;
}

bool
qcow2_garbage_locked (struct qcow2_image *img, uint64_t *host_idx)
{
  const struct qcow2_alloc *a = &img->alloc;

  assert (lock_held (&img->lock));
  *host_idx = QCOW2_BITSET_NONE;
  if (a->verify && a->verify->phase == DONE)
    *host_idx = qcow2_bitset_next (a->garbage, 0);
  return *host_idx != QCOW2_BITSET_NONE;
}

void
qcow2_garbage_clear_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  qcow2_bitset_clear (img->alloc.garbage, host_idx, 1);
}
