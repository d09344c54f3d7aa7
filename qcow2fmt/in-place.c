/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes where the bytes of a guest cluster are, for all roots that have its L2 table
 * (docs/on-disk.md 14.4).
 *
 * A table with several paths is changed in place, which is what none of its roots sees:
 * the new place has the same bytes.  The clusters of the new place get a reference for
 * each path that is counted, and those of the old one lose as many, in one group with the
 * entry (law 14).
 *
 * What is not changed: a recent source (law 12), until a checkpoint; a table that
 * contradicts its refcount; one with more than QCOW2_MOST_COUNTED counted paths; and one
 * with several paths in an image without disks, whose records name guest clusters.
 *
 * It has no threads; the image's lock protects it.  That readers may be under way, which
 * no lock of a range keeps off, is for readers.c.
 */
#include <errno.h>

#include "checked.h"
#include "image.h"

/* --- The table --------------------------------------------------------------- */

struct table {
  uint64_t off;                /* bytes; 0: there is none */
  uint64_t host_idx;
  uint64_t v;                  /* its refcount */
  bool anchored;
};

static int
find_table (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx,
            struct table *t)
{
  uint64_t entry = 0;
  int r = qcow2_l1_entry_locked (txn, root, l1_idx, &entry);

  *t = (struct table) { .off = entry & QCOW2_OFFSET_MASK };
  t->host_idx = t->off >> txn->img->header.geo.cluster_bits;
  if (r < 0 || t->off == 0)
    return r;
  return qcow2_get_refcount_locked (txn, t->host_idx, &t->v, &t->anchored);
}

bool
qcow2_has_few_paths (uint64_t refcount)
{
  const uint64_t paths = qcow2_paths_of (refcount), debt = qcow2_debt_of (refcount);

  return debt < paths && paths - debt <= QCOW2_MOST_COUNTED;
}

/* Returns whether the entries of a table with refcount V may be changed for all its
 * roots. */
static bool
may_change (const struct qcow2_image *img, uint64_t v)
{
  return v == 1 || (qcow2_lends_tables (img) && qcow2_has_few_paths (v));
}

/* Tells when that may be done by way of a root: one that is written to and has the table
 * alone can copy a recent source. */
static enum qcow2_changeable
when_to_change (struct qcow2_image *img, unsigned root, const struct table *t)
{
  if (t->off == 0 || t->anchored || !may_change (img, t->v))
    return QCOW2_CHANGE_NEVER;
  if (t->v == 1 && qcow2_root_writable_locked (img, root))
    return QCOW2_CHANGE_NOW;
  if (!qcow2_lends_tables (img))
    return QCOW2_CHANGE_NEVER;
  return qcow2_is_source_locked (img, t->host_idx) ? QCOW2_CHANGE_LATER
    : QCOW2_CHANGE_NOW;
}

struct question {
  unsigned root;
  uint64_t l1_idx;
  uint64_t host_idx;           /* result */
  enum qcow2_changeable when;
};

static int
look_locked (struct qcow2_txn *txn, void *opaque)
{
  struct question *q = opaque;
  struct table t;
  int r = find_table (txn, q->root, q->l1_idx, &t);

  q->host_idx = t.host_idx;
  if (r == 0)
    q->when = when_to_change (txn->img, q->root, &t);
  return r;
}

enum qcow2_changeable
qcow2_table_changeable (struct qcow2_image *img, unsigned root, uint64_t guest_idx,
                        uint64_t *host_idx)
{
  struct question q = {
    .root = root, .l1_idx = guest_idx / img->header.geo.l2_entries,
  };

  if (qcow2_txn_run (img, look_locked, &q) < 0)
    return QCOW2_CHANGE_NEVER;
  *host_idx = q.host_idx;
  return q.when;
}

/* --- The entry ---------------------------------------------------------------- */

int
qcow2_prepare_in_place_locked (struct qcow2_txn *txn, unsigned root,
                               uint64_t guest_idx, uint64_t *place,
                               uint64_t *times)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  const uint64_t at = guest_idx % g->l2_entries * g->l2_entry_size;
  struct table t;
  int r;

  assert (lock_held (&img->lock));
  *place = 0;
  *times = 1;
  r = find_table (txn, root, guest_idx / g->l2_entries, &t);
  if (r < 0)
    return r;
  if (when_to_change (img, root, &t) != QCOW2_CHANGE_NOW)
    return -EXDEV;
  if (t.v == 1 && qcow2_root_writable_locked (img, root))
    return qcow2_prepare_entry_locked (txn, root, guest_idx);
  *place = t.off + at;
  if (!mutation (MUTATION_SHARED_COUNTED_ONCE))
    *times = qcow2_paths_of (t.v) - qcow2_debt_of (t.v);
  (void) qcow2_cache_get_locked (txn, t.off, at, &r);
  return r;
}
