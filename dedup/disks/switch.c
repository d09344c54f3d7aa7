/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a change of the set of roots: prepares a switch, writes what it needs,
 * and commits it as one group of records.
 *
 * The new snapshot table and new L1 tables are durable before the record that
 * names them exists, so a replay need not check them.
 *
 * The caller holds the mutex `changing`.  Writers go on all the time; only the
 * commit itself is one hold of the image lock.
 */
#include <errno.h>
#include <string.h>

#include "disks-private.h"
#include "mutation.h"

/* Makes records name places, if they do not yet. */
static int
begin_disks (struct dedup_disks *d)
{
  int r;

  dedup_maintenance_begin (d->u);
  r = dedup_gate_failed (&d->s->gate);
  if (r == 0)
    r = dedup_begin_disks (d->u);
  dedup_maintenance_end (d->u);
  return r;
}

/* --- The change ----------------------------------------------------------- */

struct change {
  struct dedup_disks *d;
  struct qcow2_switch *sw;
  struct qcow2_txn txn;
  const struct qcow2_root_edit *edits;
  void (*note_locked) (struct dedup_disks *d, unsigned added,
                       const struct qcow2_root_edit *edits);
  uint64_t nr_records;         /* room for so many is made in the journal */
  unsigned added;
};

/* Tries to make the change under one hold of the lock.  Returns 0 if it is made,
 * else an error that says what it lacks (dedup_get_ready). */
static int
try_commit (struct change *c)
{
  struct dedup_disks *d = c->d;
  int r;
  LOCK_FOR_SCOPE (d->b->lock);

  if (d->s->gate.failed)
    return d->s->gate.failed;
  if (!dedup_room_locked (d->u, DEDUP_CHUNK_CLUSTERS, 0))
    return -EBUSY;
  r = qcow2_switch_prepare_locked (&c->txn, c->sw);
  if (r == 0) {
    c->nr_records = qcow2_switch_records_locked (&c->txn, c->sw);
    if (!dedup_large_room_locked (d->u, c->nr_records))
      r = -ENOBUFS;
  }
  if (r == 0) {
    qcow2_switch_commit_locked (&c->txn, c->sw, &c->added);
    c->note_locked (d, c->added, c->edits);
  }
  dedup_journal_end_locked (d->s->journal);   /* prepare may have made tables */
  return r;
}

static int
commit (struct change *c)
{
  bool searched = false;
  int r;

  for (;;) {
    r = try_commit (c);
    if (r == 0)
      return 0;
    r = dedup_get_ready (c->d->u, &c->txn, r, c->nr_records, &searched);
    if (r < 0)
      return r;
  }
}

/* Makes the change, inside the gate. */
static int
change (struct change *c, const struct qcow2_root_edit *edits, size_t nr,
        struct fault *f)
{
  struct dedup_disks *d = c->d;
  int r = qcow2_switch_new (d->b->img, edits, nr, &c->sw, f);

  if (r == -ENOSPC) {
    r = dedup_find_space (d->u);
    *f = (struct fault) { 0 };
    if (r == 0)
      r = qcow2_switch_new (d->b->img, edits, nr, &c->sw, f);
  }
  if (r == 0)
    r = qcow2_switch_write (c->sw);
  if (r == 0 && !mutation (MUTATION_SWITCH_NO_SYNC))
    r = dedup_sync (d->s);
  if (r < 0)
    return r;
  qcow2_txn_begin (d->b->img, &c->txn);
  r = commit (c);
  qcow2_txn_end (&c->txn);
  return r;
}

static int
result (const struct dedup_disks *d, int r, struct fault *f)
{
  if (r == 0 || f->kind != FAULT_NONE)
    return r;
  if (r == -EMLINK)
    return fault_set (f, FAULT_USAGE, EMLINK, UINT64_MAX, "there are too many "
                      "disks and snapshots");
  if (r == -ENOTSUP)
    return fault_set (f, FAULT_UNSUPPORTED, ENOTSUP, UINT64_MAX, "clones and "
                      "snapshots need refcounts of 32 bits: close the image, "
                      "and run qemu-img amend -o refcount_bits=32 %s",
                      d->b->path);
  if (r == -EFBIG)
    return fault_set (f, FAULT_UNSUPPORTED, EFBIG, UINT64_MAX, "the disk's "
                      "tables lie in too many places to be lent at once");
  return fault_io (f, -r, UINT64_MAX, "changing the disks failed: %s",
                   strerror (-r));
}

int
dedup_switch (struct dedup_disks *d, const struct qcow2_root_edit *edits,
              size_t nr, unsigned *added,
              void (*note_locked) (struct dedup_disks *d, unsigned added,
                                   const struct qcow2_root_edit *edits),
              struct fault *f)
{
  struct change c = { .d = d, .edits = edits, .note_locked = note_locked };
  struct fault why = { 0 };
  int r = dedup_admit (d->s);

  if (r == 0)
    r = dedup_enter (&d->s->gate);
  if (r < 0)
    return result (d, r, f);
  r = begin_disks (d);
  if (r == 0)
    r = change (&c, edits, nr, &why);
  qcow2_switch_free (c.sw);
  dedup_leave (&d->s->gate);
  if (r == 0 && added)
    *added = c.added;
  if (r < 0 && why.kind != FAULT_NONE)
    *f = why;
  dedup_wake (d->b);
  return result (d, r, f);
}
