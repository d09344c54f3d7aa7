/* SPDX-License-Identifier: BSD-3-Clause */
/* Guards metadata: knows which clusters hold header, tables or the store, so
 * that no data is ever written there, whatever refcounts and L2 entries say.
 *
 * In a sound image the refcounts are enough.  In one that is damaged, or was
 * crafted, a table may have refcount 0, be named by an L2 entry (so that
 * overwriting the guest's cluster would free the table), be named twice, or lie
 * past the end of the file, where guest data would later be taken for a table.
 * So when an image is opened for writing (after a replay, which may first make
 * its tables consistent), guard-begin.c enters every table into sets of bits:
 *
 *   tables that this program writes in place: header, L1, refcount table,
 *   anchor L1, L1 tables of disks, L2 tables with COPIED, refcount blocks,
 *   anchor tables.  If two
 *   of them overlap, or one is misaligned or lies past the end, the image is
 *   not opened for writing;
 *
 *   tables that it only reads, or copies before it changes them: snapshot
 *   table, L1 and L2 tables of snapshots, L2 tables of disks, L2 tables without
 *   COPIED.  They may share clusters with each other, but not with those above;
 *
 *   clusters that persistent bitmaps use, wherever they lie.
 *
 * The store adds its areas, and tables made later are added when they are
 * made.  The guard is asked by drop.c before an entry's cluster is freed, by
 * scan.c and alloc.c before a cluster counts as free, by hold.c before it is
 * linked, by take-in.c before it is indexed, by dirty-bitmaps.c before bits
 * are written, and by the write pipeline before each write of data.  Each
 * question tests one bit or a few.
 *
 * A table that guest data names as well (qemu-img check -r all makes that an
 * image without errors, by counting both) stays in use as it is: a write moves
 * the data to another cluster, and the table keeps its reference.
 *
 * L2 tables of snapshots past MAX_SNAPSHOT_L1_BYTES of L1 tables are left out;
 * there the refcounts must be enough.  The same holds past the memory limit of
 * the sets (bitset.h).
 *
 * The image's lock protects it once the image is open.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

void
qcow2_guard_free (struct qcow2_guard *g)
{
  qcow2_bitset_free (g->disk);
  qcow2_bitset_free (g->snapshots);
  qcow2_bitset_free (g->bitmaps);
  qcow2_bitset_free (g->left);
  *g = (struct qcow2_guard) { 0 };
}

void
qcow2_guard_put_locked (struct qcow2_image *img, uint64_t host_idx,
                        uint64_t count, bool guarded)
{
  struct qcow2_guard *g = &img->guard;
  int r = 0;

  assert (lock_held (&img->lock));
  if (g->disk == NULL)
    return;
  if (guarded) {
    r = qcow2_bitset_set (g->disk, host_idx, count);
    img->alloc.frontier = MAX_OF (img->alloc.frontier, host_idx + count);
  }
  else
    qcow2_bitset_clear (g->disk, host_idx, count);
  (void) r;
}

void
qcow2_guard_freed_locked (struct qcow2_image *img, uint64_t host_idx,
                          uint64_t count)
{
  const struct qcow2_guard *g = &img->guard;

  assert (lock_held (&img->lock));
  if (g->disk == NULL)
    return;
  qcow2_bitset_clear (g->disk, host_idx, count);
  qcow2_bitset_clear (g->snapshots, host_idx, count);
}

uint64_t
qcow2_next_guarded_locked (struct qcow2_image *img, uint64_t host_idx)
{
  const struct qcow2_guard *g = &img->guard;
  uint64_t next;

  assert (lock_held (&img->lock));
  /* With an external data file, data is not where tables are. */
  if (g->disk == NULL || qcow2_has_data_file (&img->header.geo))
    return UINT64_MAX;
  next = qcow2_bitset_next (g->disk, host_idx);
  next = MIN_OF (next, qcow2_bitset_next (g->snapshots, host_idx));
  return MIN_OF (next, qcow2_bitset_next (g->bitmaps, host_idx));
}

bool
qcow2_guarded_locked (struct qcow2_image *img, uint64_t host_idx,
                      uint64_t count)
{
  return qcow2_next_guarded_locked (img, host_idx) - host_idx < count;
}

bool
qcow2_guard_has_tables_locked (struct qcow2_image *img, uint64_t host_idx,
                               uint64_t count)
{
  const struct qcow2_guard *g = &img->guard;
  uint64_t next;

  assert (lock_held (&img->lock));
  if (g->disk == NULL)
    return false;
  next = qcow2_bitset_next (g->disk, host_idx);
  next = MIN_OF (next, qcow2_bitset_next (g->snapshots, host_idx));
  return next - host_idx < count;
}

bool
qcow2_guard_has_snapshot_locked (struct qcow2_image *img, uint64_t host_idx)
{
  const struct qcow2_guard *g = &img->guard;

  assert (lock_held (&img->lock));
  return g->disk == NULL || g->not_whole ||
    qcow2_bitset_test (g->snapshots, host_idx);
}

/* Returns how many entries of the disk's L1 table name HOST_IDX. */
static uint64_t
count_l1_entries (const struct qcow2_image *img, uint64_t host_idx)
{
  const unsigned bits = img->header.geo.cluster_bits;
  uint64_t n = 0;

  for (uint64_t i = 0; i < img->l1.nr; ++i)
    n += (img->l1.v[i] & QCOW2_OFFSET_MASK) >> bits == host_idx;
  return n;
}

bool
qcow2_guard_is_shared_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  return img->guard.disk &&
    (qcow2_bitset_test (img->guard.snapshots, host_idx) ||
     count_l1_entries (img, host_idx) > 1);
}

void
qcow2_guard_leave_locked (struct qcow2_image *img, uint64_t host_idx)
{
  int r;

  if (qcow2_guard_has_snapshot_locked (img, host_idx) ||
      count_l1_entries (img, host_idx) > 0)
    return;
  if (img->unlogged.on)            /* nothing is replayed */
    qcow2_bitset_clear (img->guard.disk, host_idx, 1);
  else if ((r = qcow2_bitset_set (img->guard.left, host_idx, 1)) < 0)
    return;                      /* it stays guarded, and at worst leaks */
}

bool
qcow2_guard_left_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  return img->guard.left && qcow2_bitset_test (img->guard.left, host_idx);
}

bool
qcow2_guard_stays_locked (struct qcow2_image *img, uint64_t host_idx)
{
  return qcow2_guarded_locked (img, host_idx, 1) &&
    !qcow2_guard_left_locked (img, host_idx);
}
