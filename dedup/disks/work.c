/* SPDX-License-Identifier: BSD-3-Clause */
/* Does the work that changes of the set of roots leave: pays for lent tables, and
 * drops the tables of doomed roots.
 *
 * It walks the L1 table of one root after the other, first those of doomed roots: a
 * path that is dropped from a debt costs little, but all references of the table once
 * the debt is paid.  One table is one group of records under one hold of the image
 * lock, so a writer waits for one table at the most.  When the last table of a doomed
 * root is dropped, the root is removed.
 *
 * How much work there is, is counted before it is done (progress.c).
 *
 * A table that contradicts the refcounts is left as it is.  So its root stays, and
 * bit 48 stays set, until the image is repaired.
 *
 * Any thread, one at a time; the work's state is protected by the image lock.
 */
#include <errno.h>
#include <stdio.h>

#include "clock.h"
#include "disks-private.h"

#define SLICE_NS (UINT64_C (4) * 1000 * 1000)
/* Empty L1 entries that are passed under one hold of the lock. */
#define EMPTY_PER_HOLD 4096u
/* Lines on damaged tables in one session. */
#define MAX_LINES 10u

/* --- What is left ---------------------------------------------------------- */

bool
dedup_disks_left_locked (const struct dedup_disks *d)
{
  assert (lock_held (d->b->lock));
  return d->work.nr > 0 || d->work.stuck;
}

void
dedup_note_work_locked (struct dedup_disks *d, unsigned root,
                        enum root_work work)
{
  uint8_t *state = &d->work.state[root];

  assert (lock_held (d->b->lock));
  assert (root <= QCOW2_MAX_SLOTS);
  dedup_progress_note_locked (d, root, work != ROOT_DONE, d->work.nr == 0);
  d->work.nr += (work != ROOT_DONE) - (*state != ROOT_DONE);
  d->work.nr_doomed += (work == ROOT_DOOMED) - (*state == ROOT_DOOMED);
  *state = (uint8_t) work;
  if (d->work.root == root)
    d->work.l1_idx = 0;
  d->s->work_left = dedup_disks_left_locked (d);
}

bool
dedup_disks_due_locked (const struct dedup_disks *d)
{
  assert (lock_held (d->b->lock));
  return d->work.nr > 0;
}

void
dedup_disks_begin (struct dedup_disks *d, bool clean)
{
  const struct qcow2_snapshot *v;
  LOCK_FOR_SCOPE (d->b->lock);
  const size_t nr = qcow2_snapshots (d->b->img, &v);

  for (unsigned root = 1; root <= nr; root++)
    if (!v[root - 1].dead && v[root - 1].is_disk)
      dedup_note_work_locked (d, root, v[root - 1].disk_flags &
                              QCOW2_DISK_DOOMED ? ROOT_DOOMED
                              : clean ? ROOT_DONE : ROOT_OWES);
  d->s->work_left = dedup_disks_left_locked (d);
}

/* --- One table ------------------------------------------------------------- */

struct table {
  struct dedup_disks *d;
  struct qcow2_txn txn;
  unsigned root;               /* 0: none was chosen */
  uint64_t l1_idx;
  enum root_work work;
  bool finished;               /* it was the last one of a doomed root */
};

/* Finds the root that is worked on, or the next one; false if there is none. */
static bool
choose_root_locked (struct dedup_disks *d)
{
  const uint8_t first = d->work.nr_doomed > 0 ? ROOT_DOOMED : ROOT_OWES;
  unsigned root = d->work.root;

  if (d->work.nr == 0)
    return false;
  if (d->work.state[root] == first)
    return true;
  do
    root = root % QCOW2_MAX_SLOTS + 1;
  while (d->work.state[root] != first);
  d->work.root = root;
  d->work.l1_idx = 0;
  return true;
}

/* Looks at one L1 entry of the chosen root.  1: a table was paid or dropped;
 * 0: there was nothing to do. */
static int
try_table (struct table *t)
{
  const bool drop = t->work == ROOT_DOOMED;
  struct dedup_disks *d = t->d;
  uint64_t host_idx = 0, debt = 0;
  int r = qcow2_path_debt_locked (&t->txn, t->root, t->l1_idx, &host_idx, &debt);

  if (r == -EAGAIN || r == -ENOMEM)
    return r;
  if (r != 0 && drop)
    r = qcow2_drop_path_locked (&t->txn, t->root, t->l1_idx);
  else if (r < 0 || debt > 0)
    r = qcow2_pay_table_locked (&t->txn, t->root, t->l1_idx);
  else
    r = 0;
  if (r > 0)
    dedup_progress_add_locked (d, host_idx, debt, drop);
  if (r >= 0)
    d->work.l1_idx = t->l1_idx + 1;
  return r;
}

/* Ends the work on the chosen root, of which the last table was looked at.  A
 * doomed one has yet to be removed. */
static void
end_root_locked (struct table *t)
{
  t->finished = t->work == ROOT_DOOMED;
  if (!t->finished)
    dedup_note_work_locked (t->d, t->root, ROOT_DONE);
}

/* Does one pass under one hold of the lock.  1: there may be more; 0: all is done;
 * else what it lacks. */
static int
try_pass_locked (struct table *t)
{
  struct dedup_disks *d = t->d;
  const struct qcow2_snapshot *v;
  int r = 0;

  if (d->s->gate.failed)
    return d->s->gate.failed;
  if (!dedup_room_locked (d->u, DEDUP_CHUNK_CLUSTERS, 0))
    return -EBUSY;
  if (!dedup_large_room_locked (d->u, qcow2_step_records (d->b->img)))
    return -ENOBUFS;
  for (unsigned i = 0; i < EMPTY_PER_HOLD && r == 0; i++) {
    if (!choose_root_locked (d))
      return 0;
    qcow2_snapshots (d->b->img, &v);
    t->root = d->work.root;
    t->l1_idx = d->work.l1_idx;
    t->work = (enum root_work) d->work.state[t->root];
    if (t->l1_idx < v[t->root - 1].l1_entries) {
      r = try_table (t);
      continue;
    }
    end_root_locked (t);
    return 1;
  }
  return r < 0 ? r : 1;
}

/* Leaves the root whose table cannot be worked on as it is. */
static void
give_up_root (struct table *t, int why)
{
  char name[64] = "";
  const struct qcow2_snapshot *v;
  bool tell;

  lock_acquire (t->d->b->lock);
  qcow2_snapshots (t->d->b->img, &v);
  if (v[t->root - 1].name)
    snprintf (name, sizeof name, "%s", v[t->root - 1].name);
  t->d->work.stuck = true;     /* and so work is left */
  dedup_note_work_locked (t->d, t->root, ROOT_DONE);
  tell = t->d->work.told++ < MAX_LINES;
  lock_release (t->d->b->lock);
  if (tell)
    log_line (t->d->b->log, LOG_ERROR, "%s: the tables of \"%s\" contradict the "
              "refcounts (%s), so its clusters cannot be counted: close the "
              "image, and run qcow2-dedup check", t->d->b->path, name,
              strerror (-why));
}

/* Gets what a pass lacked.  Returns 0 if another one may succeed. */
static int
make_ready (struct table *t, int why, bool *searched)
{
  struct dedup_disks *d = t->d;

  if (why == -EINVAL || why == -EIO) {
    give_up_root (t, why);
    return 0;
  }
  return dedup_get_ready (d->u, &t->txn, why, qcow2_step_records (d->b->img),
                          searched);
}

/* Works on one table, or passes empty entries.  1: there may be more; 0: all is
 * done. */
static int
one_table (struct table *t)
{
  struct dedup_disks *d = t->d;
  bool searched = false;
  int r;

  qcow2_txn_begin (d->b->img, &t->txn);
  do {
    lock_acquire (d->b->lock);
    r = try_pass_locked (t);
    dedup_journal_end_locked (d->s->journal);
    lock_release (d->b->lock);
  } while (r < 0 && (r = make_ready (t, r, &searched)) == 0);
  qcow2_txn_end (&t->txn);
  return r;
}

/* --- Slices ---------------------------------------------------------------- */

static void
note_removed_locked (struct dedup_disks *d, unsigned added,
                     const struct qcow2_root_edit *edits)
{
  (void) added;
  dedup_note_work_locked (d, edits[0].root, ROOT_DONE);
}

/* Removes a doomed root whose tables are all dropped. */
static int
remove_root (struct dedup_disks *d, unsigned root)
{
  const struct qcow2_root_edit e = { .root = root, .remove = true };
  struct fault f = { 0 };
  int r;

  pthread_mutex_lock (&d->changing);
  r = dedup_switch (d, &e, 1, NULL, note_removed_locked, &f);
  pthread_mutex_unlock (&d->changing);
  return r;
}

/* Works on tables until the slice is over or a doomed root is finished (then T
 * says which). */
static int
work_inside (struct table *t)
{
  uint64_t now = clock_now_ns ();
  const uint64_t end = now + SLICE_NS;
  int r = dedup_enter (&t->d->s->gate);

  if (r < 0)
    return r;
  do {
    r = one_table (t);
    now = dedup_pace (t->d, now);
  } while (r == 1 && !t->finished && now < end);
  dedup_leave (&t->d->s->gate);
  return r;
}

static bool
is_due (struct dedup_disks *d)
{
  LOCK_FOR_SCOPE (d->b->lock);

  return dedup_disks_due_locked (d);
}

int
dedup_disks_step (struct dedup_disks *d)
{
  struct table t = { .d = d };
  int r;

  if (!is_due (d))
    return 0;
  dedup_pace_begin (d);
  if (dedup_progress_count (d))
    return 1;
  r = dedup_admit (d->s);
  if (r == 0)
    r = work_inside (&t);
  if (t.finished && r >= 0)
    r = remove_root (d, t.root);
  if (!is_due (d))
    dedup_progress_forget (d);
  return r < 0 ? r : 1;
}

/* --- Begin and end --------------------------------------------------------- */

int
dedup_disks_init (struct dedup_disks *d, const struct dedup_base *b,
                  struct dedup_store *s, struct dedup_upkeep *u)
{
  d->b = b;
  d->s = s;
  d->u = u;
  pthread_mutex_init (&d->changing, NULL);
  d->work.state = calloc (QCOW2_MAX_SLOTS + 1, 1);
  return d->work.state ? dedup_progress_init (d) : -ENOMEM;
}

void
dedup_disks_destroy (struct dedup_disks *d)
{
  free (d->work.state);
  dedup_progress_destroy (d);
  pthread_mutex_destroy (&d->changing);
}
