/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the tables of a root, in pieces, for those who count what it uses.
 *
 * A piece is a slice of a table.  If it is in the cache, it is copied under the
 * lock.  If not, it is read from the file without the lock and without entering
 * it in the cache: what is not in the cache is in the file as it was last
 * changed.  A pass over all tables thus neither delays requests nor evicts what
 * they need.
 *
 * Between two pieces the image may change, and an image may name any place as a
 * table.  So what entries name may be anything: whoever counts it checks it
 * against the size of the file.  Any thread; nothing is changed.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "usage.h"

/* --- Roots ---------------------------------------------------------------- */

unsigned
usage_nr_roots (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_nr_roots_locked (img);
}

static bool
look_locked (struct qcow2_image *img, unsigned root, struct usage_root *u)
{
  const struct qcow2_snapshot *s;

  *u = (struct usage_root) {
    .root = root, .size_bytes = qcow2_root_size_locked (img, root),
  };
  if (root == QCOW2_ROOT_ACTIVE) {
    u->l1_entries = img->l1.nr;
    u->writable = true;
    return true;
  }
  if (root >= qcow2_nr_roots_locked (img))
    return false;
  s = &img->snapshots.v[root - 1];
  u->l1_entries = s->l1_entries;
  u->writable = s->is_disk && (s->disk_flags & QCOW2_DISK_WRITABLE);
  u->doomed = s->is_disk && (s->disk_flags & QCOW2_DISK_DOOMED);
  return !s->dead && !s->is_anchor;
}

bool
usage_look (struct qcow2_image *img, unsigned root, struct usage_root *u)
{
  LOCK_FOR_SCOPE (&img->lock);

  if (!look_locked (img, root, u))
    return false;
  u->nr_clusters = div_round_up (u->size_bytes, img->header.geo.cluster_size);
  return true;
}

int
usage_file_clusters (struct qcow2_image *img, uint64_t *nr)
{
  int64_t size = io_size (img->io);

  if (size < 0)
    return (int) size;
  /* As the checker does, allow for a last cluster that is not whole. */
  *nr = div_round_up ((uint64_t) size, img->header.geo.cluster_size) + 1;
  *nr = MIN_OF (*nr, qcow2_host_frontier (img));
  return 0;
}

/* --- Pieces of tables ----------------------------------------------------- */

/* Copies the slice with byte WITHIN of the table at HOST_OFF to BUF, if it is in
 * the cache; else returns -EAGAIN. */
static int
copy_cached_locked (struct qcow2_image *img, uint64_t host_off, size_t within,
                    uint8_t *buf)
{
  const struct qcow2_slice *t;
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (img, &txn);
  t = qcow2_cache_get_locked (&txn, host_off, within, &r);
  if (t)
    memcpy (buf, t->data, qcow2_slice_size (&img->header.geo));
  qcow2_txn_end_locked (&txn);
  return r;
}

/* Sets *FILE_OFF to where entry FIRST of the L1 table is, which begins a slice, and
 * copies the slice to w->slice or returns -EAGAIN. */
static int
copy_l1_locked (struct usage_walk *w, uint64_t first, uint64_t *file_off)
{
  const struct qcow2_geometry *g = &w->img->header.geo;
  const uint64_t at = first * sizeof (be64);
  const struct qcow2_snapshot *s = &w->img->snapshots.v[w->root.root - 1];

  *file_off = s->l1_off + at;
  return copy_cached_locked (w->img, s->l1_off +
                             round_down_pow2 (at, g->cluster_size),
                             at % g->cluster_size, w->slice);
}

/* Puts entries FIRST to FIRST + NR - 1 of the active L1 table into w->slice, as
 * they are in a file. */
static void
encode_active_l1_locked (struct usage_walk *w, uint64_t first, uint64_t nr)
{
  uint64_t i;
  be64 wire;

  for (i = 0; i < nr; i++) {
    wire = be64_make (w->img->l1.v[first + i]);
    memcpy (w->slice + i * sizeof wire, &wire, sizeof wire);
  }
}

/* Looks at the root again, sets *NR to how many entries of its L1 table, from
 * FIRST on, are in one slice, and gets them as copy_l1_locked does. */
static int
look_at_l1 (struct usage_walk *w, uint64_t first, uint64_t *nr,
            uint64_t *file_off)
{
  const uint64_t per = qcow2_slice_size (&w->img->header.geo) / sizeof (be64);
  struct usage_root now;
  LOCK_FOR_SCOPE (&w->img->lock);

  if (!look_locked (w->img, w->root.root, &now))
    return -ENOENT;
  *nr = first < now.l1_entries ? MIN_OF (per, now.l1_entries - first) : 0;
  if (w->root.root != QCOW2_ROOT_ACTIVE)
    return *nr ? copy_l1_locked (w, first, file_off) : 0;
  encode_active_l1_locked (w, first, *nr);
  return 0;
}

/* Gets the L1 entries from FIRST on that are in one slice: *NR of them; 0 at the
 * end. */
static int
read_l1_piece (struct usage_walk *w, uint64_t first, uint64_t *v, uint64_t *nr)
{
  uint64_t file_off, i;
  be64 wire;
  int r;

  r = look_at_l1 (w, first, nr, &file_off);
  if (r == -EAGAIN)
    r = io_pread (w->img->io, w->slice, *nr * sizeof wire, file_off);
  for (i = 0; r == 0 && i < *nr; i++) {
    memcpy (&wire, w->slice + i * sizeof wire, sizeof wire);
    v[i] = be64_load (wire);
  }
  return r;
}

/* Reads the slice with byte WITHIN of an L2 table into w->slice. */
static int
read_l2_piece (struct usage_walk *w, const struct usage_table *t,
               size_t within)
{
  const struct qcow2_geometry *g = &w->img->header.geo;
  const uint64_t host_off = t->host_idx * g->cluster_size;
  int r;

  lock_acquire (&w->img->lock);
  r = copy_cached_locked (w->img, host_off, within, w->slice);
  lock_release (&w->img->lock);
  if (r == -EAGAIN)
    r = io_pread (w->img->io, w->slice, qcow2_slice_size (g),
                  host_off + within);
  return r;
}

/* --- The walk ------------------------------------------------------------- */

int
usage_walk_init (struct usage_walk *w, struct qcow2_image *img,
                 const struct qcow2_usage_params *p)
{
  w->img = img;
  w->p = p;
  w->slice = aligned_new (qcow2_slice_size (&img->header.geo));
  return w->slice ? 0 : -ENOMEM;
}

void
usage_walk_free (struct usage_walk *w)
{
  free (w->slice);
}

static int
take_l1_entry (struct usage_walk *w, uint64_t l1_idx, uint64_t entry)
{
  const struct qcow2_geometry *g = &w->img->header.geo;
  const struct usage_table t = {
    .l1_idx = l1_idx, .host_idx = (entry & QCOW2_OFFSET_MASK) / g->cluster_size,
  };

  if (w->p && w->p->stop && w->p->stop (w->p->opaque))
    return -EINTR;
  return t.host_idx ? w->table (w, &t) : 0;
}

int
usage_walk_some (struct usage_walk *w, uint64_t *first)
{
  uint64_t v[QCOW2_SLICE_BYTES / sizeof (be64)], nr = 0, i;
  int r = read_l1_piece (w, *first, v, &nr);

  for (i = 0; r == 0 && i < nr; i++)
    r = v[i] ? take_l1_entry (w, *first + i, v[i]) : 0;
  *first += nr;
  return r < 0 ? r : nr > 0;
}

int
usage_walk_root (struct usage_walk *w)
{
  uint64_t first = 0;
  int r;

  while ((r = usage_walk_some (w, &first)) == 1)
    ;
  return r;
}

static bool
is_mapped (const struct qcow2_geometry *g, uint64_t entry, uint64_t bitmap)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return true;
  if (qcow2_extended_l2 (g))
    return bitmap & QCOW2_BITMAP_ALLOCATED;
  return !(entry & QCOW2_L2_ZERO) && qcow2_has_place (g, entry);
}

/* Sets the clusters of the file that ENTRY refers to. */
static void
find_clusters (const struct qcow2_image *img, uint64_t entry,
               struct usage_entry *e)
{
  const uint64_t cs = img->header.geo.cluster_size;
  uint64_t host_off = entry & QCOW2_OFFSET_MASK, len = cs;

  if (entry & QCOW2_L2_COMPRESSED)
    qcow2_compressed_extent (img, entry, &host_off, &len);
  if (qcow2_has_data_file (&img->header.geo) || host_off == 0)
    return;
  e->host_idx = host_off / cs;
  e->nr = (host_off + len - 1) / cs - e->host_idx + 1;
}

static void
take_l2_entry (struct usage_walk *w, const struct usage_table *t, uint64_t i,
               const uint8_t *p)
{
  const struct qcow2_geometry *g = &w->img->header.geo;
  struct usage_entry e = { .guest_idx = t->l1_idx * g->l2_entries + i };
  be64 wire[2] = { be64_make (0), be64_make (0) };
  uint64_t entry;

  memcpy (wire, p, g->l2_entry_size);
  entry = be64_load (wire[0]);
  e.mapped = is_mapped (g, entry, be64_load (wire[1]));
  if (entry & QCOW2_L2_COMPRESSED)
    e.packed = entry & ~QCOW2_L2_COPIED;
  find_clusters (w->img, entry, &e);
  if (e.mapped || e.nr > 0)
    w->entry (w, &e);
}

int
usage_walk_table (struct usage_walk *w, const struct usage_table *t)
{
  const struct qcow2_geometry *g = &w->img->header.geo;
  const uint64_t per = qcow2_l2_slice (g);
  uint64_t i, k;
  int r;

  for (i = 0; i < g->l2_entries; i += per) {
    r = read_l2_piece (w, t, i * g->l2_entry_size);
    if (r < 0)
      return r;
    for (k = 0; k < per; k++)
      take_l2_entry (w, t, i + k, w->slice + k * g->l2_entry_size);
  }
  return 0;
}

/* --- References ----------------------------------------------------------- */

struct question {
  uint64_t host_idx, n;
};

static int
count_references_locked (struct qcow2_txn *txn, void *opaque)
{
  struct question *q = opaque;
  bool anchored;
  int r = qcow2_get_refcount_locked (txn, q->host_idx, &q->n, &anchored);

  if (r == 0 && anchored && q->n > 0)
    q->n--;
  return r;
}

int
usage_references (struct qcow2_image *img, uint64_t host_idx, uint64_t *n)
{
  struct question q = { .host_idx = host_idx };
  int r = qcow2_txn_run (img, count_references_locked, &q);

  *n = q.n;
  return r;
}
