/* SPDX-License-Identifier: BSD-3-Clause */
/* Maps guest ranges to extents.
 *
 * Reads L2 entries through a transaction and merges neighbours of one kind.
 * The entries of an image are checked here: reserved bits, a misaligned
 * offset, or an offset past everything in the file is -EIO for the clusters
 * asked for, and a line in the log, but not more than MAX_LINES in all,
 * because a client can ask again and again.  The rest of the disk stays
 * readable.
 *
 * The lock is held for at most CLUSTERS_PER_CALL entries, so that a long
 * question does not delay writers; the answer then covers a prefix.  A missing
 * L2 table counts as one entry, and so does a run of subclusters of one kind
 * (extended L2 entries).  Any thread may call it.  No data is read here.
 */
#include <errno.h>
#include <inttypes.h>

#include "checked.h"
#include "image.h"

#define CLUSTERS_PER_CALL 512
#define MAX_LINES 10

#define L2_RESERVED                                                     \
  ~(QCOW2_OFFSET_MASK | QCOW2_L2_COPIED | QCOW2_L2_ZERO)

struct walk {
  struct qcow2_image *img;
  struct qcow2_txn *txn;
  unsigned root;
  uint64_t at, end;            /* guest bytes still to be described */
  struct qcow2_extent *ext;
  size_t nr, max;
  unsigned budget;             /* entries that may still be looked at */
  uint64_t bad_entry;          /* cause of -EIO; 0: another cause */
};

/* Returns the first offset of the file at which nothing of the image can
 * lie. */
static uint64_t
host_limit_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return qcow2_host_end (img) << img->header.geo.cluster_bits;
}

static bool
valid_data (const struct qcow2_image *img, uint64_t entry, uint64_t limit,
            uint64_t guest_off)
{
  uint64_t off = entry & QCOW2_OFFSET_MASK;

  if (qcow2_has_data_file (&img->header.geo))
    return !qcow2_has_place (&img->header.geo, entry) || off == guest_off;
  return off % img->header.geo.cluster_size == 0 && off < limit;
}

/* Returns whether ENTRY has subclusters of more than one kind.
 * (QCOW2_L2_INVALID is one of the reserved bits.) */
static bool
is_partial (const struct qcow2_image *img, uint64_t entry)
{
  return qcow2_extended_l2 (&img->header.geo) &&
    !(entry & QCOW2_L2_COMPRESSED) && (entry & QCOW2_L2_PARTIAL);
}

/* Checks ENTRY, and returns false if it is not valid.  Sets E->kind, and
 * E->host_off to the start of the cluster.  *NR is how many entries from this
 * one on are contiguous data clusters; it becomes how many of those are
 * valid. */
static bool
classify_locked (struct qcow2_image *img, uint64_t entry, uint64_t *nr,
                 struct qcow2_extent *e)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t guest_off = round_down_pow2 (e->guest_off, g->cluster_size);
  uint64_t limit = host_limit_locked (img), len;

  if (is_partial (img, entry))
    entry &= ~QCOW2_L2_PARTIAL;
  if (entry & QCOW2_L2_COMPRESSED) {
    e->kind = QCOW2_COMPRESSED;
    e->entry = entry;
    qcow2_compressed_extent (img, entry, &e->host_off, &len);
    return e->host_off < limit && !qcow2_has_data_file (g);
  }
  if (entry & L2_RESERVED)
    return false;
  e->host_off = entry & QCOW2_OFFSET_MASK;
  if (entry & QCOW2_L2_ZERO) {
    e->kind = QCOW2_ZERO;
    return g->version >= 3 && valid_data (img, entry, limit, guest_off);
  }
  e->kind = qcow2_has_place (g, entry) ? QCOW2_DATA : QCOW2_UNALLOCATED;
  if (!valid_data (img, entry, limit, guest_off))
    return false;
  if (!qcow2_has_data_file (g))
    *nr = MIN_OF (*nr, (limit - e->host_off) / g->cluster_size);
  return true;
}

static enum qcow2_kind
subcluster_kind (uint64_t bitmap, unsigned i)
{
  if (bitmap >> i & 1)
    return QCOW2_DATA;
  return bitmap >> (i + 32) & 1 ? QCOW2_ZERO : QCOW2_UNALLOCATED;
}

/* Sets E->kind to the kind of the subcluster that is WITHIN bytes from the
 * start of its cluster, by BITMAP.  Returns for how many bytes from there on
 * the kind is the same. */
static uint64_t
look_inside (const struct qcow2_geometry *g, uint64_t bitmap, uint64_t within,
             struct qcow2_extent *e)
{
  uint64_t size = g->cluster_size / QCOW2_SUBCLUSTERS;
  unsigned i = within / size, end = i + 1;

  e->kind = subcluster_kind (bitmap, i);
  while (end < QCOW2_SUBCLUSTERS && subcluster_kind (bitmap, end) == e->kind)
    end++;
  return end * size - within;
}

static bool
continues (const struct qcow2_extent *last, const struct qcow2_extent *e)
{
  if (last->kind != e->kind || e->kind == QCOW2_COMPRESSED)
    return false;
  return e->kind != QCOW2_DATA || last->host_off + last->len == e->host_off;
}

/* Adds E to the answer.  Returns false if there is no room. */
static bool
append (struct walk *w, const struct qcow2_extent *e)
{
  if (w->nr > 0 && continues (&w->ext[w->nr - 1], e)) {
    w->ext[w->nr - 1].len += e->len;
    return true;
  }
  if (w->nr == w->max)
    return false;
  w->ext[w->nr++] = *e;
  return true;
}

static bool
no_table_locked (const struct walk *w, uint64_t guest_idx)
{
  const struct qcow2_image *img = w->img;
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, w->root);
  uint64_t i = guest_idx / img->header.geo.l2_entries;

  if (w->root != QCOW2_ROOT_ACTIVE)
    return s && i >= s->l1_entries;
  return i < img->l1.nr && img->l1.v[i] == 0;
}

/* Describes a cluster and the data clusters that follow it in the file, or a
 * missing table.  Returns 1 if the walk continues, 0 if it is done. */
static int
step_locked (struct walk *w)
{
  struct qcow2_image *img = w->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t guest_idx = w->at / g->cluster_size, next = 0;
  uint64_t nr = MIN_OF (w->budget,
                        (w->end - 1) / g->cluster_size + 1 - guest_idx);
  uint64_t entry = 0, bitmap = 0, within = w->at % g->cluster_size;
  uint64_t inside = UINT64_MAX;
  struct qcow2_extent e = { .guest_off = w->at };
  int r;

  if (no_table_locked (w, guest_idx)) {
    next = (guest_idx / g->l2_entries + 1) * g->l2_entries;
    nr = 1;
  }
  else {
    r = qcow2_get_l2_locked (w->txn, w->root, guest_idx, &entry, &bitmap,
                             &nr);
    if (r < 0)
      return r;
  }
  if (!classify_locked (img, entry, &nr, &e)) {
    w->bad_entry = entry;
    return -EIO;
  }
  if (is_partial (img, entry))
    inside = look_inside (g, bitmap, within, &e);
  next = next ? next : guest_idx + nr;
  e.len = MIN_OF (next * g->cluster_size, w->end) - w->at;
  e.len = MIN_OF (e.len, inside);
  e.host_off = e.kind == QCOW2_DATA ? e.host_off + within : 0;
  if (!append (w, &e))
    return 0;
  w->at += e.len;
  w->budget -= nr;
  return w->at < w->end && w->budget > 0;
}

/* Walks from w->at on until the answer is complete.  Returns 0 or -errno. */
static int
walk_locked (struct qcow2_txn *txn, void *opaque)
{
  struct walk *w = opaque;
  int r;

  assert (lock_held (&w->img->lock));
  if (w->end > qcow2_root_size_locked (w->img, w->root))
    return -EINVAL;
  w->txn = txn;
  do
    r = step_locked (w);
  while (r > 0);
  return r;
}

static void
tell_bad_entry (struct qcow2_image *img, uint64_t entry, uint64_t guest_off)
{
  unsigned told;

  if (__atomic_load_n (&img->bad_entries_told, __ATOMIC_RELAXED) >= MAX_LINES)
    return;
  told = __atomic_fetch_add (&img->bad_entries_told, 1, __ATOMIC_RELAXED);
  if (told < MAX_LINES)
    log_line (img->log_sink, LOG_ERROR, "%s: corrupt L2 entry 0x%016" PRIx64
              " of guest offset %" PRIu64 "%s", img->path ? img->path : "image",
              entry, guest_off, told + 1 < MAX_LINES ? "" :
              ": no more of them are logged, run qemu-img check");
}

static uint64_t
size_of_root (struct qcow2_image *img, unsigned root)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_root_size_locked (img, root);
}

int
qcow2_map (struct qcow2_image *img, unsigned root, uint64_t guest_off,
           uint64_t len, struct qcow2_extent *ext, size_t max)
{
  struct walk w = {
    .img = img, .root = root, .at = guest_off, .ext = ext, .max = max,
    .budget = CLUSTERS_PER_CALL,
  };
  int r;

  assert (max > 0);
  if (!add_u64 (guest_off, len, &w.end))
    return -EINVAL;
  if (len == 0)
    return guest_off <= size_of_root (img, root) ? 0 : -EINVAL;
  r = qcow2_txn_run (img, walk_locked, &w);
  if (r == 0)
    return w.nr;
  /* The extents before the bad entry are valid. */
  if (w.nr > 0 && w.bad_entry)
    return w.nr;
  if (w.bad_entry)
    tell_bad_entry (img, w.bad_entry, w.at);
  return r;
}
