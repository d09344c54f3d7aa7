/* SPDX-License-Identifier: BSD-3-Clause */
/* Pays the debts of lent L2 tables, and drops the paths of roots that are being
 * deleted, one table a step.
 *
 * The refcount of an L2 table says how many paths (L1 entries, of all roots)
 * name it, and its debt: how many of them are not counted in the refcounts of
 * what the table names (debt.c).  To pay is to count them all; then the debt is
 * 0, and the table is as any program expects it.  To drop a path is to set an
 * L1 entry to 0, and
 *
 *   if there is a debt     to take the path from the debt: what the table names
 *                          keeps its refcounts
 *   if there is none       to drop a reference to everything that the table
 *                          names, by the rules of drop.c; and to free the table
 *                          with the last path
 *
 * Both first look at everything (table-refs.c), so that a step is made as a
 * whole, in one group of the log, or not at all.  A damaged table, whose
 * entries and refcounts contradict each other, is left as it is, with a line in
 * the log: its debt stays, and so does the root that is being deleted.
 *
 * Data that no root refers to any more is put into quarantine by drop.c, and a
 * table by disks.c, where it stays until no replay copies it again.
 *
 * A step pins the table, and at most one slice of a refcount block for each
 * cluster that it names.  It has no threads; the image's lock protects it.
 * Which tables have debts, and when to pay, is left to the caller.
 */
#include <errno.h>
#include <inttypes.h>

#include "checked.h"
#include "image.h"

/* Limits how many damaged tables are logged in a session: one bad refcount may
 * make as many tables unpayable as there are. */
#define MAX_LINES 10

/* A path, and the table that it names. */
struct path {
  unsigned root;
  uint64_t l1_idx;
  uint64_t table_off;          /* bytes; 0: the L1 entry is 0 */
  uint64_t host_idx;           /* of the table */
  uint64_t v;                  /* its refcount */
  struct qcow2_table_refs refs;
};

static void
free_path (struct path *p)
{
  qcow2_table_refs_free (&p->refs);
}
#define CLEANUP_PATH __attribute__ ((__cleanup__ (free_path)))

/* Logs that a step was not made because the table is damaged. */
static void
tell_damage (struct qcow2_image *img, const struct path *p)
{
  if (img->bad_tables_told >= MAX_LINES)
    return;
  img->bad_tables_told++;
  log_line (img->log_sink, LOG_ERROR, "%s: the L2 table at offset 0x%" PRIx64
            " (root %u, L1 entry %" PRIu64 ") and the refcounts contradict "
            "each other, so it stays as it is%s",
            img->path ? img->path : "image", p->table_off, p->root, p->l1_idx,
            img->bad_tables_told < MAX_LINES ? ": run qcow2-dedup check" :
            ": no more of them are logged, run qcow2-dedup check");
}

/* Finds the table of a path, and its refcount.  Returns 1; 0 if there is no
 * table; -EIO if no table can be there. */
static int
find_table (struct qcow2_txn *txn, struct path *p)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t entry;
  bool anchored;
  int r = qcow2_l1_entry_locked (txn, p->root, p->l1_idx, &entry);

  if (r < 0)
    return r;
  p->table_off = entry & QCOW2_OFFSET_MASK;
  p->host_idx = p->table_off >> g->cluster_bits;
  if (p->table_off == 0)
    return 0;
  r = qcow2_get_refcount_locked (txn, p->host_idx, &p->v, &anchored);
  if (r < 0)
    return r;
  if (p->table_off % g->cluster_size != 0 || anchored ||
      qcow2_paths_of (p->v) <= qcow2_debt_of (p->v))
    return -EIO;
  return 1;
}

int
qcow2_path_debt_locked (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx,
                        uint64_t *host_idx, uint64_t *debt)
{
  struct path p = { .root = root, .l1_idx = l1_idx };
  int r;

  assert (lock_held (&txn->img->lock));
  r = find_table (txn, &p);
  *host_idx = p.host_idx;
  *debt = qcow2_debt_of (p.v);
  return r;
}

/* Gets what the table names, and checks that N more references to each may be
 * counted. */
static int
get_refs (struct qcow2_txn *txn, struct path *p, uint64_t n)
{
  int r = qcow2_table_refs_get_locked (txn, p->table_off, &p->refs);

  return r < 0 ? r : qcow2_table_refs_check_locked (txn, &p->refs, n);
}

/* --- Paying ----------------------------------------------------------------- */

static int
pay (struct qcow2_txn *txn, struct path *p)
{
  uint64_t debt;
  int r = find_table (txn, p);

  if (r <= 0)
    return r;
  debt = qcow2_debt_of (p->v);
  if (debt == 0)
    return 0;
  r = get_refs (txn, p, debt);
  if (r < 0)
    return r;
  if (!mutation (MUTATION_DEBT_FORGOTTEN))
    qcow2_table_refs_add_locked (txn, &p->refs, debt);
  if (mutation (MUTATION_PAID_TWICE))
    qcow2_table_refs_add_locked (txn, &p->refs, debt);
  qcow2_uncopy_locked (txn, p->table_off);
  qcow2_set_refcount_locked (txn, p->host_idx, qcow2_paths_of (p->v), false);
  return 1;
}

int
qcow2_pay_table_locked (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx)
{
  CLEANUP_PATH struct path p = { .root = root, .l1_idx = l1_idx };
  int r;

  assert (lock_held (&txn->img->lock));
  r = pay (txn, &p);
  if (r == -EIO)
    tell_damage (txn->img, &p);
  return r;
}

/* --- Dropping a path ------------------------------------------------------- */

/* Makes the anchor tables of those clusters that are not anchored and have
 * other references: the table's reference passes to the anchor. */
static int
prepare_anchor (struct qcow2_txn *txn, const struct qcow2_table_refs *refs)
{
  struct qcow2_ref_run run;
  size_t i = 0;
  int r = 0;

  while (r == 0 && qcow2_table_refs_next (refs, &i, &run))
    for (uint64_t k = 0; k < run.count && r == 0; ++k)
      if (!qcow2_anchor_test_locked (txn->img, run.host_idx + k) &&
          qcow2_refblock_get_locked (txn->img, run.refs[k * run.times].block,
                                     run.host_idx + k) > 1)
        r = qcow2_prepare_host_locked (txn, run.host_idx + k, 1);
  return r;
}

/* Drops the references of compressed entries, which were checked. */
static void
drop_compressed (struct qcow2_txn *txn, const struct path *p)
{
  uint64_t entry;
  int r = 0;

  for (unsigned i = 0; i < txn->img->header.geo.l2_entries; ++i) {
    entry = qcow2_table_entry_locked (txn, p->table_off, i);
    if (entry & QCOW2_L2_COMPRESSED)
      r = qcow2_drop_locked (txn, entry, 1, true);
    assert (r == 0);
  }
  (void) r;
}

/* Drops the references in P->refs, which were checked: none of a compressed
 * entry. */
static void
drop_whole (struct qcow2_txn *txn, const struct path *p)
{
  const unsigned bits = txn->img->header.geo.cluster_bits;
  struct qcow2_ref_run run;
  size_t i = 0;
  int r = 0;

  while (qcow2_table_refs_next (&p->refs, &i, &run))
    for (; run.times > 0; --run.times) {
      r = qcow2_drop_locked (txn, run.host_idx << bits, run.count, true);
      assert (r == 0);
    }
  (void) r;
}

/* Sets the L1 entry to 0.  It is the first change of a step, and the only one
 * that may fail. */
static int
clear_l1_entry (struct qcow2_txn *txn, const struct path *p)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_ENTRY, .count = 1, .is_l1 = true,
    .place = qcow2_l1_place_locked (txn->img, p->root, p->l1_idx),
  };
  int r = qcow2_change_locked (txn, &c);

  return r == -EINVAL ? -EIO : r;      /* the L1 table can't be there */
}

/* Drops a path that is counted in the refcounts of what the table names. */
static int
drop_counted (struct qcow2_txn *txn, struct path *p)
{
  int r = get_refs (txn, p, 0);

  qcow2_table_refs_drop_compressed (&p->refs);
  if (r == 0)
    r = prepare_anchor (txn, &p->refs);
  if (r == 0)
    r = clear_l1_entry (txn, p);
  if (r < 0)
    return r;
  if (p->refs.nr_compressed > 0)
    drop_compressed (txn, p);
  drop_whole (txn, p);
  return 0;
}

static int
drop_path (struct qcow2_txn *txn, struct path *p)
{
  bool lent;
  int r = find_table (txn, p);

  if (r <= 0)
    return r;
  lent = qcow2_debt_of (p->v) > 0;
  r = lent && !mutation (MUTATION_DROP_UNCOUNTED) ? clear_l1_entry (txn, p)
    : drop_counted (txn, p);
  if (r < 0)
    return r;
  p->v -= lent ? QCOW2_ONE_LENT : 1;
  qcow2_set_refcount_locked (txn, p->host_idx, p->v, false);
  if (p->v == 0)
    qcow2_free_table_locked (txn->img, p->host_idx, 1);
  else if (p->v == 1)
    qcow2_one_path_left_locked (txn, p->host_idx);
  return 1;
}

int
qcow2_drop_path_locked (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx)
{
  CLEANUP_PATH struct path p = { .root = root, .l1_idx = l1_idx };
  int r;

  assert (lock_held (&txn->img->lock));
  r = drop_path (txn, &p);
  if (r == -EIO)
    tell_damage (txn->img, &p);
  return r;
}

uint64_t
qcow2_step_records (const struct qcow2_image *img)
{
  /* An entry that is not compressed has one reference.  To pay takes REFCOUNT
   * and, for COPIED, ENTRY.  To drop takes REFCOUNT and, if the reference
   * passes to the anchor, ANCHORTABLE and REFCOUNT for its table, and twice
   * REFBLOCK and REFCOUNT.  A compressed entry has at most three references,
   * which take REFCOUNT each.  The rest is for the table and the L1 entries. */
  return img->header.geo.l2_entries * UINT64_C (8) + 8;
}
