/* SPDX-License-Identifier: BSD-3-Clause */
/* Rebuilds all refcounts from the references to clusters.  Three kinds of image
 * need it: one that is marked dirty (it has lazy refcounts, and the program
 * that kept them died), one whose refcount table is too small for writing
 * without a store, and one whose bitmaps are dropped, so that their clusters
 * are not counted any more.
 *
 * The walk is the checker's (check.h).  New blocks and a new table are
 * written behind everything in use, where nothing refers to them; COPIED flags
 * of the active disk are corrected in place, which does not change where data
 * is; then all of it is synced, and one write of the header switches to the new
 * table and clears the dirty bit.  A crash before that write leaves an image
 * that is as dirty as before, and longer.
 *
 * The old table and blocks are not counted, and so are free afterwards.
 * Whoever has the image open must open it again.  An image in which anything
 * but refcounts is wrong is left alone: a user who runs qemu-img check -r all
 * looks at the result, and nobody does here.
 *
 * Runs at open only, single-threaded.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "check.h"
#include "header-format.h"

struct rebuild {
  struct check c;
  struct qcow2_image *img;
  const struct qcow2_geometry *geo;
  uint64_t start;              /* first new cluster: the blocks, the table */
  uint64_t nr_blocks, reftable_clusters;
  uint64_t end;
  uint8_t *buf;                /* one cluster */
};

/* --- Layout --------------------------------------------------------- */

static uint64_t
end_of (const struct rebuild *b, uint64_t host_off, uint64_t bytes)
{
  return div_round_up (host_off + bytes, b->geo->cluster_size);
}

/* Returns the first cluster behind everything that is referred to or counted,
 * and behind the old table and blocks, which are valid until the switch.  The
 * rest of a device or of a long file is free. */
static uint64_t
find_start (const struct rebuild *b)
{
  const struct qcow2_flat *old = &b->img->reftable;
  uint64_t start = b->c.nr, i;
  uint64_t min = MAX_OF (qcow2_host_frontier (b->img), end_of
                         (b, old->host_off, old->nr * sizeof (be64)));

  for (i = 0; i < old->nr; i++)
    if (old->v[i] < b->c.file_size)
      min = MAX_OF (min, end_of (b, old->v[i], b->geo->cluster_size));
  while (start > min && check_count_get (&b->c, start - 1) == 0)
    start--;
  return start;
}

/* Lays out the new blocks and table.  The blocks count themselves and the
 * table, so it repeats until nothing grows. */
static int
lay_out (struct rebuild *b, uint64_t min_clusters, struct fault *f)
{
  const struct qcow2_geometry *g = b->geo;
  uint64_t before, entries;

  b->start = b->end = find_start (b);
  do {
    before = b->end;
    b->nr_blocks = div_round_up (b->end, g->refblock_entries);
    entries = div_round_up (MAX_OF (min_clusters, b->end),
                            g->refblock_entries);
    b->reftable_clusters = div_round_up (entries * sizeof (be64),
                                         g->cluster_size);
    b->end = b->start + b->nr_blocks + b->reftable_clusters;
  } while (b->end != before);
  if (b->reftable_clusters * g->cluster_size > QCOW2_MAX_REFTABLE_BYTES ||
      b->end > QCOW2_MAX_HOST_OFF >> g->cluster_bits)
    return fault_unsupported (f, "its refcounts cannot be rebuilt: the "
                              "refcount table would be larger than the "
                              "maximum");
  if (b->end > io_max_size (b->img->io) >> g->cluster_bits)
    return fault_set (f, FAULT_UNSUPPORTED, ENOSPC, UINT64_MAX, "its refcounts "
                      "cannot be rebuilt: the device is too small");
  return 0;
}

static uint64_t
count_of (const struct rebuild *b, uint64_t host_idx)
{
  if (host_idx >= b->end)
    return 0;
  return host_idx < b->start ? check_count_get (&b->c, host_idx) : 1;
}

/* --- Writing -------------------------------------------------------- */

static int
write_block (struct rebuild *b, uint64_t i)
{
  const struct qcow2_geometry *g = b->geo;
  uint64_t first = i * g->refblock_entries, k;

  memset (b->buf, 0, g->cluster_size);
  for (k = 0; k < g->refblock_entries; k++)
    qcow2_refcount_put (g->refcount_bits, b->buf, k, count_of (b, first + k));
  return io_pwrite (b->img->io, b->buf, g->cluster_size,
                    (b->start + i) << g->cluster_bits);
}

/* Writes cluster I of the refcount table. */
static int
write_reftable (struct rebuild *b, uint64_t i)
{
  const struct qcow2_geometry *g = b->geo;
  const uint64_t per = g->cluster_size / sizeof (be64);
  uint64_t k, block;
  be64 wire;

  memset (b->buf, 0, g->cluster_size);
  for (k = 0; k < per; k++) {
    block = i * per + k;
    wire = be64_make (block < b->nr_blocks ?
                      (b->start + block) << g->cluster_bits : 0);
    memcpy (b->buf + k * sizeof wire, &wire, sizeof wire);
  }
  return io_pwrite (b->img->io, b->buf, g->cluster_size,
                    (b->start + b->nr_blocks + i) << g->cluster_bits);
}

static int
write_tables (struct rebuild *b)
{
  uint64_t i;
  int r = 0;

  for (i = 0; i < b->nr_blocks && r == 0; i++)
    r = write_block (b, i);
  for (i = 0; i < b->reftable_clusters && r == 0; i++)
    r = write_reftable (b, i);
  return r;
}

/* --- COPIED --------------------------------------------------------- */

/* Returns ENTRY, of L1 or L2, with the COPIED flag that its new refcount asks
 * for.  Not for data in an external file, which has no refcounts. */
static uint64_t
with_copied (const struct rebuild *b, uint64_t entry)
{
  uint64_t off = entry & QCOW2_OFFSET_MASK;

  if (off == 0)
    return entry;
  if (count_of (b, off >> b->geo->cluster_bits) == 1)
    return entry | QCOW2_L2_COPIED;
  return entry & ~QCOW2_L2_COPIED;
}

static int
mend_l2 (struct rebuild *b, uint64_t host_off)
{
  const struct qcow2_geometry *g = b->geo;
  uint64_t entry, wanted;
  bool changed = false;
  unsigned i;
  be64 wire;
  int r;

  r = io_pread (b->img->io, b->buf, g->cluster_size, host_off);
  if (r < 0)
    return r;
  for (i = 0; i < g->l2_entries; i++) {
    memcpy (&wire, b->buf + i * g->l2_entry_size, sizeof wire);
    entry = be64_load (wire);
    wanted = entry & QCOW2_L2_COMPRESSED ? entry : with_copied (b, entry);
    if (wanted == entry)
      continue;
    wire = be64_make (wanted);
    memcpy (b->buf + i * g->l2_entry_size, &wire, sizeof wire);
    changed = true;
  }
  return changed ? io_pwrite (b->img->io, b->buf, g->cluster_size, host_off)
    : 0;
}

static int
mend_l1 (struct rebuild *b, uint64_t i, uint64_t entry)
{
  be64 wire = be64_make (entry);

  return io_pwrite (b->img->io, &wire, sizeof wire,
                    b->img->l1.host_off + i * sizeof wire);
}

static int
mend_flags (struct rebuild *b)
{
  const struct qcow2_flat *l1 = &b->img->l1;
  bool data_file = b->geo->incompatible & QCOW2_INCOMPAT_DATA_FILE;
  uint64_t i, wanted;
  int r = 0;

  for (i = 0; i < l1->nr && r == 0; i++) {
    wanted = with_copied (b, l1->v[i]);
    if (wanted != l1->v[i])
      r = mend_l1 (b, i, wanted);
    if (r == 0 && wanted != 0 && !data_file)
      r = mend_l2 (b, wanted & QCOW2_OFFSET_MASK);
  }
  return r;
}

/* --- The switch ----------------------------------------------------- */

static uint64_t
new_autoclear (const struct qcow2_image *img)
{
  return img->header.geo.autoclear &
    ~(qcow2_bitmaps_given_up (img) ? QCOW2_AUTOCLEAR_BITMAPS : 0);
}

/* Writes bytes 48 to 95 of the header at once: the refcount table, the fields
 * of the snapshot table, and in version 3 the features. */
static int
switch_header (struct rebuild *b)
{
  const struct qcow2_header_fields *h = &b->img->fields;
  struct {
    be64 reftable_off;
    be32 reftable_clusters, nr_snapshots;
    be64 snapshots_off, incompatible, compatible, autoclear;
  } wire = {
    be64_make ((b->start + b->nr_blocks) << b->geo->cluster_bits),
    be32_make ((uint32_t) b->reftable_clusters), be32_make (h->nr_snapshots),
    be64_make (h->snapshots_off),
    be64_make (b->geo->incompatible & ~QCOW2_INCOMPAT_DIRTY),
    be64_make (b->geo->compatible), be64_make (new_autoclear (b->img)),
  };
  size_t len = b->geo->version >= 3 ? sizeof wire
    : offsetof (struct qcow2_wire_header, incompatible) -
      offsetof (struct qcow2_wire_header, reftable_off);
  int r;

  _Static_assert (sizeof wire == 48, "header bytes 48 to 95");
  r = io_pwrite (b->img->io, &wire, len,
                 offsetof (struct qcow2_wire_header, reftable_off));
  return r == 0 ? io_sync (b->img->io) : r;
}

static int
write_behind_end (struct rebuild *b)
{
  int r = write_tables (b);

  if (r == 0)
    r = mend_flags (b);
  return r == 0 ? io_sync (b->img->io) : r;
}

/* Truncates the file to SIZE, its size before: nothing refers to what was
 * written behind that. */
static void
cut_back (struct rebuild *b, uint64_t size)
{
  if (io_truncate (b->img->io, size) < 0)
    log_line (b->img->log_sink, LOG_DEBUG, "%s: could not be shortened to its "
              "old size", b->img->path ? b->img->path : "image");
}

/* --- The whole ------------------------------------------------------ */

static int
count_references (struct rebuild *b, struct fault *f)
{
  const struct qcow2_check_result *found = b->c.r;
  int r = check_count_init (&b->c, f);

  if (r < 0)
    return r;
  check_references (&b->c);
  if (found->errors > 0)
    return fault_io (f, b->c.err, UINT64_MAX, "its refcounts must be rebuilt, "
                     "but its tables cannot be read: %s", strerror (b->c.err));
  if (found->corruptions > 0)
    return fault_corrupt (f, UINT64_MAX, "its refcounts must be rebuilt, but "
                          "other things are wrong, too: run qemu-img check -r "
                          "all, or serve it with readonly=on");
  return 0;
}

static int
rebuild (struct rebuild *b, uint64_t min_clusters, struct fault *f)
{
  int64_t size = io_size (b->img->io);
  int r;

  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "cannot get the file's size");
  if ((r = count_references (b, f)) < 0 ||
      (r = lay_out (b, min_clusters, f)) < 0)
    return r;
  b->buf = aligned_new (b->geo->cluster_size);       /* at most 2 MiB */
  if (b->buf == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = write_behind_end (b);
  if (r < 0)
    cut_back (b, (uint64_t) size);
  else
    r = switch_header (b);      /* may have happened even if it fails */
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "rebuilding its refcounts: %s",
                           strerror (-r)) : 0;
}

int
qcow2_rebuild_refcounts (struct qcow2_image *img, uint64_t min_clusters,
                         struct fault *f)
{
  struct qcow2_check_result result = { 0 };
  const struct qcow2_check_params params = { 0 };
  struct rebuild b = {
    .c = { .img = img, .geo = qcow2_geometry (img), .p = &params,
           .r = &result, .rebuilding = true },
    .img = img, .geo = qcow2_geometry (img),
  };
  int r;

  assert (img->writable);
  r = rebuild (&b, min_clusters, f);
  free (b.buf);
  check_count_free (&b.c);
  return r;
}
