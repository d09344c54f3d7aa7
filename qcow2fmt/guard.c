/* SPDX-License-Identifier: BSD-3-Clause */
/* The guard: which clusters hold header, tables or the store, so that no
 * data is ever written there, whatever refcounts and L2 entries say.
 *
 * In a sound image the refcounts see to that.  In one that rotted, or that
 * somebody made up, a table may have refcount 0, be named by an L2 entry (so
 * that overwriting the guest's cluster would free the table), be named twice,
 * or lie past the end of the file, where guest data would come to be taken
 * for a table.  So when an image is opened for writing (after a replay, which
 * may be what makes its tables agree), every table is entered into a bitmap:
 *
 *   what this program writes in place: header, L1, refcount table, anchor L1,
 *   L2 tables with COPIED, refcount blocks, anchor tables.  Two of them that
 *   overlap, one that is misaligned or lies past the end: the image is not
 *   opened for writing;
 *
 *   what it only reads: snapshot table, L1 and L2 tables of snapshots, L2
 *   tables without COPIED.  They may share with each other, not with those
 *   above;
 *
 *   what persistent bitmaps use, wherever it lies.
 *
 * The store adds its areas, and tables made later enter themselves.  Asked
 * are: drop.c before an entry's cluster is freed, scan.c and alloc.c before a
 * cluster counts as free, hold.c before it is linked, existing.c before it is
 * indexed, dirty-bitmaps.c before bits are written, and the write pipeline
 * before each write of data.  Each question is a look at a bit or a few.
 *
 * A table that guest data names as well (qemu-img check -r all makes that an
 * image without errors, by counting both) goes on as it is: a write moves the
 * data to another cluster, and the table keeps its reference.
 *
 * Left out: L2 tables of snapshots past MAX_SNAPSHOT_L1_BYTES of L1 tables;
 * there the refcounts must do.  Where the bitmaps' memory ends (bitmap.h), the
 * same.
 *
 * Protected by the image's lock once the image is open.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "bitmap.h"
#include "checked.h"
#include "image.h"

/* Read at open, to find the L2 tables of snapshots: 16384 GiB of disk each in
 * clusters of 64 KiB, 2 TiB of snapshots in all in clusters of 4 KiB. */
#define MAX_SNAPSHOT_L1_BYTES (UINT64_C (8) << 20)

struct marking {
  struct qcow2_image *img;
  struct qcow2_bitmap *set;
  bool exclusive;              /* may not overlap what is there */
  bool not_whole;
  struct fault *f;
};

/* What lies at HOST_OFF belongs to WHAT. */
static int
mark (struct marking *m, uint64_t host_off, uint64_t bytes, const char *what)
{
  const struct qcow2_geometry *g = &m->img->header.geo;
  uint64_t idx = host_off >> g->cluster_bits, end, last;
  int r;

  if (bytes == 0)
    return 0;
  if (host_off % g->cluster_size != 0)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " is not aligned "
                          "to a cluster: run qemu-img check, or serve it "
                          "with readonly=on", what, host_off);
  if (!add_u64 (host_off, bytes, &end) ||
      (last = (end - 1) >> g->cluster_bits) >= qcow2_host_end (m->img))
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " lies past the "
                          "end of the file: run qemu-img check, or serve "
                          "it with readonly=on", what, host_off);
  if (m->exclusive && qcow2_bitmap_next (m->set, idx) <= last)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " overlaps "
                          "another table: run qemu-img check -r all, or serve "
                          "it with readonly=on and copy the disk", what,
                          host_off);
  r = qcow2_bitmap_set (m->set, idx, last - idx + 1);
  if (r < 0)
    m->not_whole = true;       /* past its limits nothing is guarded */
  m->img->alloc.frontier = MAX_OF (m->img->alloc.frontier, last + 1);
  return 0;
}

/* The tables that T names, where the entries' FLAGS are WANTED. */
static int
mark_named (struct marking *m, const struct qcow2_flat *t, uint64_t mask,
            uint64_t flags, uint64_t wanted, const char *what)
{
  int r = 0;

  for (uint64_t i = 0; i < t->nr && r == 0; ++i)
    if ((t->v[i] & mask) != 0 && (t->v[i] & flags) == wanted)
      r = mark (m, t->v[i] & mask, m->img->header.geo.cluster_size, what);
  return r;
}

static int
mark_flat (struct marking *m, const struct qcow2_flat *t, const char *what)
{
  return mark (m, t->host_off, t->nr * sizeof (be64), what);
}

static int
mark_written (struct marking *m)
{
  const struct qcow2_image *img = m->img;
  int r;

  m->exclusive = true;
  if ((r = mark (m, 0, 1, "the header")) < 0 ||
      (r = mark_flat (m, &img->l1, "the L1 table")) < 0 ||
      (r = mark_flat (m, &img->reftable, "the refcount table")) < 0 ||
      (r = mark_flat (m, &img->anchor.l1, "the anchor's L1 table")) < 0 ||
      (r = mark_named (m, &img->reftable, UINT64_MAX, 0, 0,
                       "a refcount block")) < 0 ||
      (r = mark_named (m, &img->anchor.l1, QCOW2_OFFSET_MASK, 0, 0,
                       "a table of the anchor")) < 0)
    return r;
  return mark_named (m, &img->l1, QCOW2_OFFSET_MASK, QCOW2_L2_COPIED,
                     QCOW2_L2_COPIED, "an L2 table");
}

/* --- What is only read ----------------------------------------------------- */

/* Does a table that is only read lie on one that is written? */
static int
mark_read (struct marking *m, const struct qcow2_bitmap *written,
           uint64_t host_off, uint64_t bytes, const char *what)
{
  const struct qcow2_geometry *g = &m->img->header.geo;
  uint64_t end;

  if (bytes > 0 && add_u64 (host_off, bytes, &end) &&
      qcow2_bitmap_next (written, host_off >> g->cluster_bits) <=
      (end - 1) >> g->cluster_bits)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " overlaps "
                          "another table: run qemu-img check -r all, or serve "
                          "it with readonly=on and copy the disk", what,
                          host_off);
  return mark (m, host_off, bytes, what);
}

static int
mark_snapshot (struct marking *m, const struct qcow2_bitmap *written,
               const struct qcow2_snapshot *s, uint64_t *budget)
{
  const uint64_t bytes = (uint64_t) s->l1_entries * sizeof (be64);
  const uint64_t size = m->img->header.geo.cluster_size;
  struct qcow2_flat l1 = { 0 };
  int r = mark_read (m, written, s->l1_off, bytes, "a snapshot's L1 table");

  if (bytes > *budget)
    m->not_whole = true;
  if (r < 0 || bytes == 0 || bytes > *budget)
    return r;
  *budget -= bytes;
  r = qcow2_flat_load (m->img->io, &l1, s->l1_off, s->l1_entries);
  if (r < 0)
    return fault_io (m->f, -r, s->l1_off, "reading a snapshot's L1 table: %s",
                     strerror (-r));
  for (uint64_t i = 0; i < l1.nr && r == 0; ++i)
    r = mark_read (m, written, l1.v[i] & QCOW2_OFFSET_MASK,
                   l1.v[i] & QCOW2_OFFSET_MASK ? size : 0,
                   "a snapshot's L2 table");
  qcow2_flat_free (&l1);
  return r;
}

/* M->set becomes what snapshots have; WRITTEN stays. */
static int
mark_snapshots (struct marking *m, const struct qcow2_bitmap *written)
{
  const struct qcow2_image *img = m->img;
  uint64_t budget = MAX_SNAPSHOT_L1_BYTES;
  int r;

  m->exclusive = false;
  r = mark_read (m, written, img->fields.snapshots_off,
                 img->fields.nr_snapshots ? img->snapshots.raw_len : 0,
                 "the snapshot table");
  for (size_t i = 0; i < img->snapshots.nr && r == 0; ++i)
    if (!img->snapshots.v[i].is_anchor)
      r = mark_snapshot (m, written, &img->snapshots.v[i], &budget);
  return r;
}

/* M->set becomes the L2 tables of the disk that are copied before they change;
 * WRITTEN stays. */
static int
mark_shared (struct marking *m, const struct qcow2_bitmap *written)
{
  const struct qcow2_image *img = m->img;
  uint64_t e;
  int r = 0;

  for (uint64_t i = 0; i < img->l1.nr && r == 0; ++i) {
    e = img->l1.v[i];
    if ((e & QCOW2_OFFSET_MASK) != 0 && !(e & QCOW2_L2_COPIED))
      r = mark_read (m, written, e & QCOW2_OFFSET_MASK,
                     img->header.geo.cluster_size, "an L2 table");
  }
  return r;
}

/* All of FROM into TO as well. */
static int
unite (struct qcow2_bitmap *to, const struct qcow2_bitmap *from)
{
  uint64_t idx = 0, n;
  int r = 0;

  while (r == 0 &&
         (idx = qcow2_bitmap_next (from, idx)) != QCOW2_BITMAP_NONE) {
    n = qcow2_bitmap_run (from, idx, UINT64_MAX);
    r = qcow2_bitmap_set (to, idx, n);
    idx += n;
  }
  return r;
}

/* What is no place for a bitmap is found where it is used. */
static void
mark_bitmap (void *opaque, uint64_t host_off, uint64_t bytes)
{
  struct marking *m = opaque;
  const unsigned bits = m->img->header.geo.cluster_bits;
  uint64_t end;
  int r;

  if (bytes == 0 || !add_u64 (host_off, bytes, &end) ||
      (end - 1) >> bits >= qcow2_host_end (m->img))
    return;
  m->img->alloc.frontier = MAX_OF (m->img->alloc.frontier,
                                   ((end - 1) >> bits) + 1);
  r = qcow2_bitmap_set (m->set, host_off >> bits,
                        ((end - 1) >> bits) - (host_off >> bits) + 1);
  (void) r;                    /* past its limits nothing is guarded */
}

/* --- Begin ----------------------------------------------------------------- */

static bool
new_sets (struct qcow2_guard *g)
{
  g->disk = qcow2_bitmap_new ();
  g->snapshots = qcow2_bitmap_new ();
  g->bitmaps = qcow2_bitmap_new ();
  g->left = qcow2_bitmap_new ();
  return g->disk && g->snapshots && g->bitmaps && g->left;
}

static void
free_sets (struct qcow2_guard *g)
{
  qcow2_bitmap_free (g->disk);
  qcow2_bitmap_free (g->snapshots);
  qcow2_bitmap_free (g->bitmaps);
  qcow2_bitmap_free (g->left);
  *g = (struct qcow2_guard) { 0 };
}

static int
mark_all (struct marking *m, struct qcow2_guard *g)
{
  struct qcow2_bitmap *shared = qcow2_bitmap_new ();
  int r = shared ? 0 : -ENOMEM;

  if (r < 0)
    return fault_io (m->f, ENOMEM, UINT64_MAX, "out of memory");
  m->set = g->disk;
  r = mark_written (m);
  m->set = g->snapshots;
  if (r == 0)
    r = mark_snapshots (m, g->disk);
  m->set = shared;
  if (r == 0)
    r = mark_shared (m, g->disk);
  if (r == 0 && unite (g->disk, shared) < 0)
    m->not_whole = true;
  qcow2_bitmap_free (shared);
  m->set = g->bitmaps;
  if (r == 0 && (r = qcow2_bitmaps_each (m->img, mark_bitmap, m)) < 0)
    r = fault_io (m->f, -r, UINT64_MAX, "reading the tables of bitmaps: %s",
                  strerror (-r));
  g->not_whole = m->not_whole;
  return r;
}

int
qcow2_guard_begin (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_guard guard = { 0 };
  struct marking m = { .img = img, .f = f };
  int r = new_sets (&guard) ? qcow2_bitmaps_check_place (img) : -ENOMEM;

  r = r < 0 ? fault_io (f, -r, UINT64_MAX, "%s", strerror (-r))
    : mark_all (&m, &guard);
  if (r == 0) {
    /* What was left before must stay so. */
    if (img->guard.left && unite (guard.left, img->guard.left) == 0 &&
        unite (guard.disk, img->guard.left) < 0)
      guard.not_whole = true;
    free_sets (&img->guard);
    img->guard = guard;
  }
  else
    free_sets (&guard);
  return r;
}

void
qcow2_guard_free (struct qcow2_image *img)
{
  free_sets (&img->guard);
}

/* --- Afterwards ------------------------------------------------------------ */

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
    r = qcow2_bitmap_set (g->disk, host_idx, count);
    img->alloc.frontier = MAX_OF (img->alloc.frontier, host_idx + count);
  }
  else
    qcow2_bitmap_clear (g->disk, host_idx, count);
  (void) r;
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
  next = qcow2_bitmap_next (g->disk, host_idx);
  next = MIN_OF (next, qcow2_bitmap_next (g->snapshots, host_idx));
  return MIN_OF (next, qcow2_bitmap_next (g->bitmaps, host_idx));
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
  next = qcow2_bitmap_next (g->disk, host_idx);
  next = MIN_OF (next, qcow2_bitmap_next (g->snapshots, host_idx));
  return next - host_idx < count;
}

bool
qcow2_guard_has_snapshot_locked (struct qcow2_image *img, uint64_t host_idx)
{
  const struct qcow2_guard *g = &img->guard;

  assert (lock_held (&img->lock));
  return g->disk == NULL || g->not_whole ||
    qcow2_bitmap_test (g->snapshots, host_idx);
}

/* How many entries of the disk's L1 table name HOST_IDX? */
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
    (qcow2_bitmap_test (img->guard.snapshots, host_idx) ||
     count_l1_entries (img, host_idx) > 1);
}

void
qcow2_guard_leave_locked (struct qcow2_image *img, uint64_t host_idx)
{
  int r;

  if (qcow2_guard_has_snapshot_locked (img, host_idx) ||
      count_l1_entries (img, host_idx) > 0)
    return;
  if (img->direct.on)            /* nothing is replayed */
    qcow2_bitmap_clear (img->guard.disk, host_idx, 1);
  else if ((r = qcow2_bitmap_set (img->guard.left, host_idx, 1)) < 0)
    return;                      /* it stays a table, and at worst a leak */
}

bool
qcow2_guard_left_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  return img->guard.left && qcow2_bitmap_test (img->guard.left, host_idx);
}

bool
qcow2_guard_stays_locked (struct qcow2_image *img, uint64_t host_idx)
{
  return qcow2_guarded_locked (img, host_idx, 1) &&
    !qcow2_guard_left_locked (img, host_idx);
}
