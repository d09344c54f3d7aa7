/* SPDX-License-Identifier: BSD-3-Clause */
/* Walks the roots of an image that has disks: it counts the paths to each L2
 * table (the L1 entries that name it), and decodes each table once, however
 * many disks share it.
 *
 * The refcount of an L2 table in such an image is d << 16 | n: n paths lead to
 * it, and d of them, its debt, are not counted in the refcounts of the clusters
 * that its entries name.  So n must be the number of paths, d must be below n,
 * and each entry stands for n - d references.  Without bit 48 there is no debt,
 * and no disk is being deleted.  Only refcounts of 32 bits can have a debt.
 *
 * The first pass reads the L1 tables and counts paths; the second one reads
 * them again and decodes each table where it is named first.  So a thousand
 * clones of a disk cost a thousand times its L1 table and once its L2 tables,
 * and nothing is kept but the counters and marks of check-count.c.  An L1 table
 * in clusters that were counted already is not walked (check.c reports it), so
 * those that are walked are no longer than the file in all.
 *
 * The active disk comes first, because only there a missing COPIED flag is
 * wrong.  The anchor's tables were decoded before (check.c), for one reference
 * an entry.  When refcounts are rebuilt, the stored ones mean nothing, and the
 * new ones have no debts.  One thread, no lock; data is not read.
 */
#include <errno.h>
#include <inttypes.h>

#include "checked.h"
#include "check.h"

/* The parts of the refcount of a table, if it is 32 bits wide. */
#define DEBT_SHIFT 16
#define PATHS_MASK UINT64_C (0xffff)

/* --- First pass: paths ---------------------------------------------------- */

static void
count_path (struct check *c, void *opaque, uint64_t i, uint64_t entry)
{
  (void) check_l1_entry (c, opaque, i, entry);
}

/* Counts the L1 table of ROOT.  Returns whether it is inside the file, in
 * clusters that nothing counted before. */
static bool
count_l1 (struct check *c, const struct check_root *root)
{
  const struct check_site site = { .what = "L1 table", .root = root->name };
  const uint64_t len = root->l1_entries * sizeof (be64);
  uint64_t i, end;

  if (!check_count_table (c, &site, root->l1_off, len, CHECK_OWNED))
    return false;
  i = root->l1_off / c->geo->cluster_size;
  end = i + div_round_up (len, c->geo->cluster_size);
  while (i < end && check_count_get (c, i) == 1)
    i++;
  return i == end;
}

static void
count_paths (struct check *c, size_t r, const struct check_root *root)
{
  if (root->doomed && !c->rebuilding &&
      !(c->geo->incompatible & QCOW2_INCOMPAT_RECOVERY))
    check_corrupt (c, "%s is being deleted, but bit 48 is not set",
                   root->name);
  c->walked[r] = count_l1 (c, root);
  if (c->walked[r])
    check_each_entry (c, "L1 table", root->l1_off, root->l1_entries,
                      count_path, (void *) root);
}

/* --- The refcounts of tables ---------------------------------------------- */

struct found {                 /* of the table at host_off */
  const struct check_root *root;    /* the first that names it, and where */
  uint64_t guest_off;
  uint64_t host_off;
  uint64_t references;
  uint64_t paths;              /* of them; another one is the anchor's, if the
                                * cluster was data and is still anchored */
};

static void
judge_paths (struct check *c, const struct found *t, uint64_t n)
{
  if (n < t->references)
    check_corrupt (c, "L2 table of %s, guest offset 0x%" PRIx64 ": the "
                   "refcount of the cluster at 0x%" PRIx64 " stands for %"
                   PRIu64 " L1 entries, but %" PRIu64 " name it", t->root->name,
                   t->guest_off, t->host_off, n, t->references);
  else if (n > t->references)
    check_leak (c, "leaked L2 table of %s, guest offset 0x%" PRIx64 ": the "
                "refcount of the cluster at 0x%" PRIx64 " stands for %" PRIu64
                " L1 entries, %" PRIu64 " name it", t->root->name,
                t->guest_off, t->host_off, n, t->references);
}

static void
judge_debt (struct check *c, const struct found *t, uint64_t d)
{
  const char *wrong = NULL;

  if (d >= t->paths)
    wrong = "is not below the number of L1 entries that name it";
  else if (d > 0 && !(c->geo->incompatible & QCOW2_INCOMPAT_RECOVERY))
    wrong = "needs bit 48, which is not set";
  if (wrong)
    check_corrupt (c, "L2 table of %s, guest offset 0x%" PRIx64 ": the debt of "
                   "the table at 0x%" PRIx64 ", %" PRIu64 ", %s",
                   t->root->name, t->guest_off, t->host_off, d, wrong);
}

/* Judges the refcount of a table.  Returns how many of its paths are counted in
 * the refcounts of its entries: all of them, if its debt cannot be. */
static uint64_t
counted_paths (struct check *c, const struct found *t)
{
  uint64_t v, n, d = 0;

  if (c->rebuilding ||
      !check_refcount_stored (c, t->host_off / c->geo->cluster_size, &v))
    return t->paths;
  n = v;
  if (c->geo->refcount_bits == 32) {
    n = v & PATHS_MASK;
    d = v >> DEBT_SHIFT;
  }
  judge_paths (c, t, n);
  judge_debt (c, t, d);
  return t->paths - (d < t->paths ? d : 0);
}

/* --- Second pass: tables -------------------------------------------------- */

static void
decode_table (struct check *c, const struct check_root *root, uint64_t l1_idx,
              uint64_t host_off)
{
  const uint8_t mark = c->marks[host_off / c->geo->cluster_size];
  struct found t = {
    .root = root, .host_off = host_off,
    .guest_off = l1_idx * c->geo->l2_entries * c->geo->cluster_size,
    .references = check_count_get (c, host_off / c->geo->cluster_size),
  };
  uint64_t counted;

  t.paths = t.references - (mark & CHECK_ANCHORED ? 1 : 0);
  counted = counted_paths (c, &t);
  /* The anchor's own path was counted when the anchor was walked. */
  if (counted > 0 && (mark & CHECK_ANCHOR_L2))
    counted--;
  if (counted > 0)
    check_walk_l2 (c, root, l1_idx, host_off, (uint32_t) counted);
}

static void
decode_path (struct check *c, void *opaque, uint64_t i, uint64_t entry)
{
  const struct check_root *root = opaque;
  const uint64_t host_off = entry & QCOW2_OFFSET_MASK;
  const uint64_t host_idx = host_off / c->geo->cluster_size;

  check_step (c);
  /* Of these the first pass has reported what is wrong. */
  if (host_off % c->geo->cluster_size != 0 || host_idx >= c->nr ||
      !(c->marks[host_idx] & CHECK_L2))
    return;
  check_l1_copied (c, root, i, entry);
  if (c->marks[host_idx] & CHECK_DECODED)
    return;
  c->marks[host_idx] |= CHECK_DECODED;
  decode_table (c, root, i, host_off);
}

void
check_walk_paths (struct check *c)
{
  struct check_root root;
  size_t r, nr = c->img->snapshots.nr + 1;

  for (r = 0; r < nr; r++)
    if (check_root_at (c, r, &root) && root.kind != CHECK_ROOT_ANCHOR)
      count_paths (c, r, &root);
  for (r = 0; r < nr; r++)
    if (c->walked[r] && check_root_at (c, r, &root))
      check_each_entry (c, "L1 table", root.l1_off, root.l1_entries,
                        decode_path, &root);
}
