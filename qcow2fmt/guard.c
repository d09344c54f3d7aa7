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
 *   above.
 *
 * The store adds its areas, and tables made later enter themselves.  Asked
 * are: drop.c before an entry's cluster is freed, scan.c and alloc.c before a
 * cluster counts as free, hold.c before it is linked, dirty-bitmaps.c before
 * bits are written, and the write pipeline before each write of data.  Each
 * question is a look at a bit or a few.
 *
 * Left out: what persistent bitmaps use, and L2 tables of snapshots past
 * MAX_SNAPSHOT_L1_BYTES of L1 tables; there the refcounts must do.  Where the
 * bitmap's memory ends (bitmap.h), the same.
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
      (last = (end - 1) >> g->cluster_bits) >= m->img->alloc.frontier)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " lies past the "
                          "end of the file: run qemu-img check, or serve "
                          "it with readonly=on", what, host_off);
  if (m->exclusive && qcow2_bitmap_next (m->set, idx) <= last)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " overlaps "
                          "another table: run qemu-img check, or serve it "
                          "with readonly=on", what, host_off);
  r = qcow2_bitmap_set (m->set, idx, last - idx + 1);
  (void) r;                    /* past its limits nothing is guarded */
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
                          "another table: run qemu-img check, or serve it "
                          "with readonly=on", what, host_off);
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

/* M->set becomes what is only read; WRITTEN stays. */
static int
mark_only_read (struct marking *m, const struct qcow2_bitmap *written)
{
  const struct qcow2_image *img = m->img;
  uint64_t budget = MAX_SNAPSHOT_L1_BYTES, e;
  int r;

  m->exclusive = false;
  r = mark_read (m, written, img->fields.snapshots_off,
                 img->fields.nr_snapshots ? img->snapshots.raw_len : 0,
                 "the snapshot table");
  for (size_t i = 0; i < img->snapshots.nr && r == 0; ++i)
    if (!img->snapshots.v[i].is_anchor)
      r = mark_snapshot (m, written, &img->snapshots.v[i], &budget);
  for (uint64_t i = 0; i < img->l1.nr && r == 0; ++i) {
    e = img->l1.v[i];
    if ((e & QCOW2_OFFSET_MASK) != 0 && !(e & QCOW2_L2_COPIED))
      r = mark_read (m, written, e & QCOW2_OFFSET_MASK,
                     img->header.geo.cluster_size, "an L2 table");
  }
  return r;
}

/* All of FROM into TO as well. */
static void
unite (struct qcow2_bitmap *to, const struct qcow2_bitmap *from)
{
  uint64_t idx = 0, n;
  int r;

  while ((idx = qcow2_bitmap_next (from, idx)) != QCOW2_BITMAP_NONE) {
    n = qcow2_bitmap_run (from, idx, UINT64_MAX);
    r = qcow2_bitmap_set (to, idx, n);
    (void) r;
    idx += n;
  }
}

/* --- Begin ----------------------------------------------------------------- */

int
qcow2_guard_begin (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_bitmap *written = qcow2_bitmap_new ();
  struct qcow2_bitmap *read = qcow2_bitmap_new ();
  struct marking m = { .img = img, .set = written, .f = f };
  int r = written && read ? mark_written (&m)
    : fault_io (f, ENOMEM, UINT64_MAX, "out of memory");

  if (r == 0) {
    m.set = read;
    r = mark_only_read (&m, written);
  }
  if (r == 0) {
    unite (written, read);
    qcow2_bitmap_free (img->guard);
    img->guard = written;
    written = NULL;
  }
  qcow2_bitmap_free (written);
  qcow2_bitmap_free (read);
  return r;
}

/* --- Afterwards ------------------------------------------------------------ */

void
qcow2_guard_put_locked (struct qcow2_image *img, uint64_t host_idx,
                        uint64_t count, bool guarded)
{
  int r = 0;

  assert (lock_held (&img->lock));
  if (img->guard == NULL)
    return;
  if (guarded)
    r = qcow2_bitmap_set (img->guard, host_idx, count);
  else
    qcow2_bitmap_clear (img->guard, host_idx, count);
  (void) r;
}

uint64_t
qcow2_next_guarded_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  /* With an external data file, data is not where tables are. */
  if (img->guard == NULL || qcow2_has_data_file (&img->header.geo))
    return UINT64_MAX;
  return qcow2_bitmap_next (img->guard, host_idx);
}

bool
qcow2_guarded_locked (struct qcow2_image *img, uint64_t host_idx,
                      uint64_t count)
{
  return qcow2_next_guarded_locked (img, host_idx) - host_idx < count;
}
