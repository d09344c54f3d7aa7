/* SPDX-License-Identifier: BSD-3-Clause */
/* Enters all tables of an image into the guard (guard.c), and refuses to write
 * to an image whose tables overlap, are misaligned or lie past the end.
 *
 * The order is: tables that are written in place, each of which must be alone
 * in its clusters; then those that are only read, which must not overlap the
 * former; then the clusters of bitmaps, which are not checked here.  The new
 * sets replace the old ones only when they are complete.
 *
 * The L1 tables of disks are written in place, too.  Their L2 tables may be
 * several roots', but then their refcounts must say so.
 *
 * Runs when an image is opened for writing, and again after tables moved,
 * without other threads.  Tables that are made later are added by change.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

/* Limits how many bytes of snapshots' L1 tables are read at open to find their
 * L2 tables: in all 512 TiB of disk in clusters of 64 KiB, 2 TiB in clusters
 * of 4 KiB. */
#define MAX_SNAPSHOT_L1_BYTES (UINT64_C (8) << 20)

struct marking {
  struct qcow2_image *img;
  struct qcow2_bitset *set;
  bool exclusive;              /* may not overlap what is in the set */
  bool not_whole;
  uint64_t *named;             /* owned; the clusters of L2 tables, once for
                                * each L1 entry that was read */
  size_t nr_named, max_named;
  struct fault *f;
};

/* Enters BYTES at HOST_OFF into the set; WHAT is the table's name in
 * messages. */
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
  if (m->exclusive && qcow2_bitset_next (m->set, idx) <= last)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " overlaps "
                          "another table: run qemu-img check -r all, or serve "
                          "it with readonly=on and copy the disk", what,
                          host_off);
  r = qcow2_bitset_set (m->set, idx, last - idx + 1);
  if (r < 0)
    m->not_whole = true;       /* past its limits nothing is guarded */
  m->img->alloc.frontier = MAX_OF (m->img->alloc.frontier, last + 1);
  return 0;
}

/* Enters the tables named by those entries of T whose FLAGS are WANTED. */
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

/* Returns whether a slot is a disk whose tables this program writes. */
static bool
is_written_disk (const struct qcow2_image *img, const struct qcow2_snapshot *s)
{
  return qcow2_lends_tables (img) && s->is_disk && !s->dead && !s->is_anchor;
}

/* Enters the L1 tables of disks, which are written in place. */
static int
mark_disks (struct marking *m)
{
  const struct qcow2_snapshot_table *t = &m->img->snapshots;
  int r = 0;

  for (size_t i = 0; i < t->nr && r == 0; ++i)
    if (is_written_disk (m->img, &t->v[i]))
      r = mark (m, t->v[i].l1_off, t->v[i].l1_entries * sizeof (be64),
                "a disk's L1 table");
  return r;
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
                       "a table of the anchor")) < 0 ||
      (r = mark_disks (m)) < 0)
    return r;
  return mark_named (m, &img->l1, QCOW2_OFFSET_MASK, QCOW2_L2_COPIED,
                     QCOW2_L2_COPIED, "an L2 table");
}

/* --- What is only read ----------------------------------------------------- */

/* Enters a table that is only read; refuses one that overlaps a table that is
 * written. */
static int
mark_read (struct marking *m, const struct qcow2_bitset *written,
           uint64_t host_off, uint64_t bytes, const char *what)
{
  const struct qcow2_geometry *g = &m->img->header.geo;
  uint64_t end;

  if (bytes > 0 && add_u64 (host_off, bytes, &end) &&
      qcow2_bitset_next (written, host_off >> g->cluster_bits) <=
      (end - 1) >> g->cluster_bits)
    return fault_corrupt (m->f, host_off, "%s at 0x%" PRIx64 " overlaps "
                          "another table: run qemu-img check -r all, or serve "
                          "it with readonly=on and copy the disk", what,
                          host_off);
  return mark (m, host_off, bytes, what);
}

/* Notes that an L1 entry names the table in cluster IDX, if tables may be
 * lent. */
static int
note_named (struct marking *m, uint64_t idx)
{
  size_t max = m->max_named ? m->max_named * 2 : 1024;
  uint64_t *v;

  if (!qcow2_lends_tables (m->img))
    return 0;
  if (m->nr_named == m->max_named) {
    v = realloc (m->named, max * sizeof *v);
    if (!v)
      return fault_io (m->f, ENOMEM, UINT64_MAX, "out of memory");
    m->named = v;
    m->max_named = max;
  }
  m->named[m->nr_named++] = idx;
  return 0;
}

/* Returns whether the cluster at HOST_OFF has a part of the snapshot table.  A
 * switch frees that table, and then the cluster gets other contents. */
static bool
is_snapshot_table (const struct qcow2_image *img, uint64_t host_off)
{
  const uint64_t from = img->fields.snapshots_off;

  return img->fields.nr_snapshots > 0 && host_off >= from &&
    host_off - from < img->snapshots.raw_len;
}

/* Enters the L2 table that L1 entry E names. */
static int
mark_l2 (struct marking *m, const struct qcow2_bitset *written, uint64_t e,
         const char *what)
{
  const struct qcow2_geometry *g = &m->img->header.geo;
  int r;

  e &= QCOW2_OFFSET_MASK;
  if (e == 0)
    return 0;
  if (qcow2_lends_tables (m->img) && is_snapshot_table (m->img, e))
    return fault_corrupt (m->f, e, "%s at 0x%" PRIx64 " overlaps the snapshot "
                          "table: run qemu-img check -r all, or serve it with "
                          "readonly=on and copy the disk", what, e);
  r = mark_read (m, written, e, g->cluster_size, what);
  return r < 0 ? r : note_named (m, e >> g->cluster_bits);
}

/* Some entries of the L1 table of a root, as they are in memory. */
struct l1_part {
  unsigned root;
  uint64_t next, end;
  uint64_t *v;
};

/* A step of qcow2_txn_run. */
static int
read_l1_locked (struct qcow2_txn *txn, void *opaque)
{
  struct l1_part *p = opaque;
  int r = 0;

  for (; p->next < p->end && r == 0; p->next += r == 0)
    r = qcow2_l1_entry_locked (txn, p->root, p->next, &p->v[p->next]);
  return r;
}

/* Reads the L1 table of the disk in slot I: a replay may have changed it, and
 * the file has it only later. */
static int
read_disk_l1 (struct qcow2_image *img, size_t i, struct qcow2_flat *l1)
{
  struct l1_part p = { .root = (unsigned) i + 1 };

  *l1 = (struct qcow2_flat) { .nr = img->snapshots.v[i].l1_entries };
  l1->v = p.v = calloc (l1->nr + 1, sizeof *l1->v);
  p.end = l1->nr;
  return p.v ? qcow2_txn_run (img, read_l1_locked, &p) : -ENOMEM;
}

/* Enters the tables of the snapshot or disk in slot I. */
static int
mark_snapshot (struct marking *m, const struct qcow2_bitset *written, size_t i,
               uint64_t *budget)
{
  const struct qcow2_snapshot *s = &m->img->snapshots.v[i];
  const uint64_t bytes = (uint64_t) s->l1_entries * sizeof (be64);
  const bool disk = is_written_disk (m->img, s);
  struct qcow2_flat l1 = { 0 };
  int r = disk ? 0 :
    mark_read (m, written, s->l1_off, bytes, "a snapshot's L1 table");

  if (bytes > *budget)
    m->not_whole = true;
  if (r < 0 || bytes == 0 || bytes > *budget)
    return r;
  *budget -= bytes;
  r = disk ? read_disk_l1 (m->img, i, &l1) :
    qcow2_flat_load (m->img->io, &l1, s->l1_off, s->l1_entries);
  if (r < 0)
    r = fault_io (m->f, -r, s->l1_off, "reading a snapshot's L1 table: %s",
                  strerror (-r));
  for (uint64_t k = 0; k < l1.nr && r == 0; ++k)
    r = mark_l2 (m, written, l1.v[k], disk ? "a disk's L2 table" :
                 "a snapshot's L2 table");
  qcow2_flat_free (&l1);
  return r;
}

/* Enters the tables of snapshots into M->set; WRITTEN is not changed. */
static int
mark_snapshots (struct marking *m, const struct qcow2_bitset *written)
{
  const struct qcow2_image *img = m->img;
  uint64_t budget = MAX_SNAPSHOT_L1_BYTES;
  int r;

  m->exclusive = false;
  r = mark_read (m, written, img->fields.snapshots_off,
                 img->fields.nr_snapshots ? img->snapshots.raw_len : 0,
                 "the snapshot table");
  for (size_t i = 0; i < img->snapshots.nr && r == 0; ++i)
    if (!img->snapshots.v[i].is_anchor && !img->snapshots.v[i].dead)
      r = mark_snapshot (m, written, i, &budget);
  return r;
}

/* Enters the L2 tables of the disk that are copied before they change into
 * M->set; WRITTEN is not changed. */
static int
mark_shared (struct marking *m, const struct qcow2_bitset *written)
{
  const struct qcow2_image *img = m->img;
  uint64_t e;
  int r = 0;

  for (uint64_t i = 0; i < img->l1.nr && r == 0; ++i) {
    e = img->l1.v[i];
    if (!(e & QCOW2_L2_COPIED))
      r = mark_l2 (m, written, e, "an L2 table");
  }
  return r;
}

/* --- Tables of several roots ------------------------------------------------- */

/* Where a table's refcount says less than the L1 entries do, it would be
 * changed in place while another root has it. */

static int
by_value (const void *a, const void *b)
{
  const uint64_t *va = a, *vb = b;

  return (*va > *vb) - (*va < *vb);
}

struct named_table {
  uint64_t host_idx, refcount;
};

/* A step of qcow2_txn_run. */
static int
get_refcount_locked (struct qcow2_txn *txn, void *opaque)
{
  struct named_table *t = opaque;
  bool anchored;

  return qcow2_get_refcount_locked (txn, t->host_idx, &t->refcount, &anchored);
}

/* Refuses a table that more L1 entries name than its refcount says. */
static int
check_named (struct marking *m)
{
  const unsigned bits = m->img->header.geo.cluster_bits;
  struct named_table t;
  size_t i, n;
  int r;

  if (m->nr_named > 0)
    qsort (m->named, m->nr_named, sizeof *m->named, by_value);
  for (i = 0; i < m->nr_named; i += n) {
    t.host_idx = m->named[i];
    for (n = 1; i + n < m->nr_named && m->named[i + n] == t.host_idx; )
      ++n;
    if (n == 1)
      continue;
    r = qcow2_txn_run (m->img, get_refcount_locked, &t);
    if (r < 0)
      return fault_io (m->f, -r, t.host_idx << bits, "reading refcounts: %s",
                       strerror (-r));
    if (qcow2_paths_of (t.refcount) < n)
      return fault_corrupt (m->f, t.host_idx << bits, "an L2 table at 0x%"
                            PRIx64 " is named by more L1 entries than its "
                            "refcount says: run qemu-img check -r all, or "
                            "serve it with readonly=on", t.host_idx << bits);
  }
  return 0;
}

/* Adds all bits of FROM to TO. */
static int
unite (struct qcow2_bitset *to, const struct qcow2_bitset *from)
{
  uint64_t idx = 0, n;
  int r = 0;

  while (r == 0 &&
         (idx = qcow2_bitset_next (from, idx)) != QCOW2_BITSET_NONE) {
    n = qcow2_bitset_run (from, idx, UINT64_MAX);
    r = qcow2_bitset_set (to, idx, n);
    idx += n;
  }
  return r;
}

/* Enters a range that a bitmap uses.  A range where no bitmap can be is ignored
 * here: it is refused where it is used. */
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
  r = qcow2_bitset_set (m->set, host_off >> bits,
                        ((end - 1) >> bits) - (host_off >> bits) + 1);
  (void) r;                    /* past its limits nothing is guarded */
}

/* --- Begin ----------------------------------------------------------------- */

static bool
new_sets (struct qcow2_guard *g)
{
  g->disk = qcow2_bitset_new ();
  g->snapshots = qcow2_bitset_new ();
  g->bitmaps = qcow2_bitset_new ();
  g->left = qcow2_bitset_new ();
  return g->disk && g->snapshots && g->bitmaps && g->left;
}

static int
mark_all (struct marking *m, struct qcow2_guard *g)
{
  struct qcow2_bitset *shared = qcow2_bitset_new ();
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
  if (r == 0)
    r = check_named (m);
  free (m->named);
  if (r == 0 && unite (g->disk, shared) < 0)
    m->not_whole = true;
  qcow2_bitset_free (shared);
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
  int r = qcow2_snapshot_reload (img, f);

  if (r < 0)
    return r;
  r = new_sets (&guard) ? qcow2_bitmaps_check_place (img) : -ENOMEM;
  r = r < 0 ? fault_io (f, -r, UINT64_MAX, "reading refcounts: %s",
                        strerror (-r))
    : mark_all (&m, &guard);
  if (r == 0) {
    /* Clusters that were left before must stay left. */
    if (img->guard.left && unite (guard.left, img->guard.left) == 0 &&
        unite (guard.disk, img->guard.left) < 0)
      guard.not_whole = true;
    qcow2_guard_free (&img->guard);
    img->guard = guard;
  }
  else
    qcow2_guard_free (&guard);
  return r;
}
