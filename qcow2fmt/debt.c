/* SPDX-License-Identifier: BSD-3-Clause */
/* Gives a root an L2 table of its own, in an image with disks.
 *
 * L2 tables of such an image are lent: a clone begins as a copy of an L1 table,
 * and all that changes for a table T is its refcount v, which says how many
 * paths name it, and for how many of them the clusters that T names do not
 * count a reference yet (its debt d; image.h).  To write to T through a root is
 *
 *   in place           if v is 1, and T is no recent source (disks.c): no other
 *                      path, and no replay, needs T as it is
 *   to copy it, else   the root's L1 entry names the copy T', whose refcount is
 *                      1; and
 *        d > 0         the path was not counted, so it is now: everything that
 *                      T' names gets one reference, and v one path and one debt
 *                      less
 *        d = 0         the path's references move to T': v has one path less.
 *                      At 0, T is freed
 *
 * All of that is one group of the log.  Everything that can fail comes before
 * the first change: tables are loaded, all refcounts are checked, space is
 * reserved, and the log is asked for room for the records, of which there may be
 * one for each entry of the table.
 *
 * COPIED.  In L1 entries of disks it is never set, and in those of the active
 * disk never believed; but QEMU wants it in the active disk's, if and only if
 * the refcount is 1.  So new tables of the active disk have it, and when a
 * table is left with one path, the active disk's entry gets it, if it is the one
 * that is left (disks.c knows which tables are in question).
 *
 * It has no threads; the image's lock protects it.  Paying debts and dropping
 * the paths of deleted disks are left to debt-steps.c.
 */
#include <errno.h>

#include "checked.h"
#include "image.h"

/* Records of a copy beside those of what it names: TABLE, ENTRY, three
 * REFCOUNT, and REFBLOCK and REFCOUNT for two blocks. */
#define FEW_RECORDS 16

/* The path from a root to a guest cluster. */
struct path {
  unsigned root;
  uint64_t place;              /* of the L1 entry, bytes */
  uint64_t table_off;          /* bytes; 0: there is no table */
  uint64_t table_idx;          /* cluster of the table */
  uint64_t v;                  /* its refcount */
  bool anchored;
  struct qcow2_table_refs refs;     /* what it names, if it has a debt */
};

static void
set_l1_entry (struct qcow2_txn *txn, uint64_t place, uint64_t entry)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_ENTRY, .place = place, .count = 1, .entry = entry,
    .is_l1 = true,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);             /* its slice is pinned */
  (void) r;
}

void
qcow2_one_path_left_locked (struct qcow2_txn *txn, uint64_t host_idx)
{
  struct qcow2_image *img = txn->img;
  const unsigned bits = img->header.geo.cluster_bits;
  uint64_t i;

  assert (lock_held (&img->lock));
  if (!qcow2_may_lack_copied_locked (img, host_idx))
    return;
  for (i = 0; i < img->l1.nr; ++i)
    if ((img->l1.v[i] & QCOW2_OFFSET_MASK) >> bits == host_idx &&
        !(img->l1.v[i] & QCOW2_L2_COPIED)) {
      set_l1_entry (txn, qcow2_l1_place_locked (img, QCOW2_ROOT_ACTIVE, i),
                    img->l1.v[i] | QCOW2_L2_COPIED);
      return;
    }
}

/* Finds the table that L1 entry TI of P->root names, and its refcount. */
static int
find_table (struct qcow2_txn *txn, uint64_t ti, struct path *p)
{
  struct qcow2_image *img = txn->img;
  uint64_t entry;
  int r = qcow2_l1_entry_locked (txn, p->root, ti, &entry);

  if (r < 0)
    return r;
  p->place = qcow2_l1_place_locked (img, p->root, ti);
  p->table_off = entry & QCOW2_OFFSET_MASK;
  p->table_idx = p->table_off >> img->header.geo.cluster_bits;
  if (p->table_off == 0)
    return 0;
  return qcow2_get_refcount_locked (txn, p->table_idx, &p->v, &p->anchored);
}

/* Returns whether refcount and debt of the table can be right.  (guard-begin.c
 * has compared them with the L1 tables.) */
static bool
can_be_right (const struct path *p)
{
  return qcow2_debt_of (p->v) < qcow2_paths_of (p->v) &&
    (!p->anchored || p->v > 1);
}

/* --- A new table ------------------------------------------------------------ */

/* Makes the table of P->root in cluster C, which is reserved and prepared: a
 * copy of P's, or an empty one if P has none. */
static int
attach (struct qcow2_txn *txn, const struct path *p, uint64_t c)
{
  const uint64_t off = c << txn->img->header.geo.cluster_bits;
  struct qcow2_change change = {
    .type = QCOW2_CHANGE_TABLE, .host_off = off, .source_off = p->table_off,
  };
  int r = p->table_off == 0 ? 0 :
    qcow2_note_source_locked (txn->img, p->table_idx);

  if (r == 0)
    r = qcow2_change_locked (txn, &change);
  if (r < 0)
    return r;
  qcow2_set_refcount_locked (txn, c, 1, false);
  set_l1_entry (txn, p->place, p->root == QCOW2_ROOT_ACTIVE ?
                off | QCOW2_L2_COPIED : off);
  return 0;
}

/* Makes a table for P->root, in cluster *C. */
static int
new_table (struct qcow2_txn *txn, const struct path *p, uint64_t *c)
{
  struct qcow2_run run;
  int r = qcow2_table_reserve_take_locked (txn, &run);

  if (r < 0)
    return r;
  r = qcow2_prepare_meta_locked (txn, run.host_idx);
  if (r == 0)
    r = attach (txn, p, run.host_idx);
  if (r < 0)
    qcow2_table_reserve_put_locked (txn->img, &run);
  *c = run.host_idx;
  return r;
}

/* --- A copy ----------------------------------------------------------------- */

/* Returns how many records a copy of P's table may take, if what it names is to
 * be counted: one for each reference, and one for each COPIED in both tables. */
static size_t
max_records (struct qcow2_txn *txn, const struct path *p)
{
  size_t nr = p->refs.nr + FEW_RECORDS;

  for (unsigned i = 0; i < txn->img->header.geo.l2_entries; ++i)
    if (qcow2_table_entry_locked (txn, p->table_off, i) & QCOW2_L2_COPIED)
      nr += 2;
  return nr;
}

/* Returns 0 if the log has room for these records, or its error. */
static int
need_room (struct qcow2_image *img, size_t nr)
{
  const struct qcow2_log *log = &img->log;

  return log->room_locked ? log->room_locked (log->opaque, nr) : 0;
}

/* Gets what P's table names, and checks that one more reference to each can be
 * counted. */
static int
get_refs (struct qcow2_txn *txn, struct path *p)
{
  int r = qcow2_table_refs_get_locked (txn, p->table_off, &p->refs);

  if (r == 0)
    r = qcow2_table_refs_check_locked (txn, &p->refs, 1);
  return r < 0 ? r : need_room (txn->img, max_records (txn, p));
}

/* Takes P's path from the refcount of the table that was copied. */
static void
leave_table (struct qcow2_txn *txn, const struct path *p)
{
  uint64_t v = p->v - (qcow2_debt_of (p->v) > 0 ? QCOW2_ONE_LENT : 1);

  qcow2_set_refcount_locked (txn, p->table_idx, v, p->anchored && v > 0);
  if (v == 0)
    qcow2_free_table_locked (txn->img, p->table_idx, 1);
  else if (v == 1)
    qcow2_one_path_left_locked (txn, p->table_idx);
}

static int
copy_table (struct qcow2_txn *txn, struct path *p)
{
  const bool owes = qcow2_debt_of (p->v) > 0;
  uint64_t c;
  int r = qcow2_cache_get_whole_locked (txn, p->table_off);

  if (r == 0 && owes)
    r = get_refs (txn, p);
  if (r == 0)
    r = new_table (txn, p, &c);
  if (r < 0)
    return r;
  if (owes) {
    if (!mutation (MUTATION_COPY_NOT_COUNTED))
      qcow2_table_refs_add_locked (txn, &p->refs, 1);
    qcow2_uncopy_locked (txn, p->table_off);
    qcow2_uncopy_locked (txn, c << txn->img->header.geo.cluster_bits);
  }
  leave_table (txn, p);
  return 0;
}

int
qcow2_own_table_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                        unsigned in_table)
{
  struct qcow2_image *img = txn->img;
  struct path p = { .root = root };
  uint64_t c;
  int r;

  assert (lock_held (&img->lock));
  r = find_table (txn, ti, &p);
  if (r < 0)
    return r;
  if (p.table_off == 0)
    return new_table (txn, &p, &c);
  if (!can_be_right (&p))
    return -EINVAL;
  if (qcow2_is_exclusive_locked (img, p.table_idx, p.v)) {
    (void) qcow2_cache_get_locked (txn, p.table_off, in_table *
                                   img->header.geo.l2_entry_size, &r);
    return r;
  }
  r = copy_table (txn, &p);
  qcow2_table_refs_free (&p.refs);
  return r;
}
