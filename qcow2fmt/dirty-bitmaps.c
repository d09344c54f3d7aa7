/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps persistent dirty bitmaps up to date (specification, "Bitmaps
 * extension"): an enabled bitmap has to record each part of the disk that
 * changes.
 *
 *   open            the directory is read; a bitmap that is enabled and not in
 *                   use is tracked
 *   first change    each tracked one is marked in use, durably, before any
 *                   guest byte changes; so a crash leaves it marked, which is
 *                   how the format says that it can no longer be relied on
 *   while open      written ranges are noted in memory, a bit a granule
 *   clean close     the noted bits are added to those in the file; a part that
 *                   had no cluster gets one, by a record like any table; and
 *                   once all that is durable the marks are removed
 *
 * A disabled bitmap is not changed.  One that is in use already, or that this
 * program does not understand, is marked and otherwise left alone.  (The mark
 * is written again in each session, because the one that is read may be in the
 * host's cache only, after a failed sync.)  If the directory itself is not
 * valid, or shares a cluster with something else, autoclear bit 0 is cleared
 * with the first change, which gives up all bitmaps.  It is cleared at open
 * already if the refcounts can be rebuilt without them (rebuild.c), so that
 * their clusters become free.  No cluster of a bitmap is written in place if
 * anything else refers to it.
 *
 * Bits are noted under the image's lock, by any thread.  All the rest is done
 * by one thread at a time: at open, before the first change, and at close.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "aligned.h"
#include "bitset.h"
#include "checked.h"
#include "header-format.h"
#include "image.h"

#define FLAG_IN_USE UINT32_C (1)
#define FLAG_AUTO UINT32_C (2)
#define FLAG_EXTRA_COMPATIBLE UINT32_C (4)
#define FLAGS_KNOWN (FLAG_IN_USE | FLAG_AUTO | FLAG_EXTRA_COMPATIBLE)
#define TYPE_DIRTY_TRACKING 1
#define MIN_GRANULARITY_BITS 9        /* QEMU's limits */
#define MAX_GRANULARITY_BITS 31

#define ENTRY_ALL_ONES UINT64_C (1)

/* --- Open ------------------------------------------------------------ */

static uint64_t
bits_per_cluster (const struct qcow2_image *img)
{
  return img->header.geo.cluster_size * 8;
}

/* Returns whether this program can keep bitmap B up to date. */
static bool
understood (const struct qcow2_image *img, const struct qcow2_wire_bitmap *w,
            const struct qcow2_dirty_bitmap *b)
{
  uint64_t granules, entries;

  if ((b->flags & ~FLAGS_KNOWN) || w->type != TYPE_DIRTY_TRACKING ||
      (be32_load (w->extra_size) && !(b->flags & FLAG_EXTRA_COMPATIBLE)) ||
      b->granularity_bits < MIN_GRANULARITY_BITS ||
      b->granularity_bits > MAX_GRANULARITY_BITS)
    return false;
  granules = div_round_up (img->header.geo.virtual_size,
                           UINT64_C (1) << b->granularity_bits);
  entries = div_round_up (granules, bits_per_cluster (img));
  return entries == b->table_entries;
}

static void
take_name (struct qcow2_dirty_bitmap *b, const uint8_t *name, size_t len)
{
  size_t i;

  len = MIN_OF (len, sizeof b->name - 1);
  for (i = 0; i < len; i++)
    b->name[i] = name[i] < ' ' || name[i] > '~' ? '?' : (char) name[i];
}

/* Decodes into B the entry at *AT of the directory DIR, which has LEN bytes at
 * offset DIR_OFF of the file, and moves *AT behind it.  Returns false if it is
 * not valid. */
static bool
decode_entry (const struct qcow2_image *img, const uint8_t *dir, size_t len,
              uint64_t dir_off, size_t *at, struct qcow2_dirty_bitmap *b)
{
  struct qcow2_wire_bitmap w;
  uint64_t size, end;

  if (len - *at < sizeof w)
    return false;
  memcpy (&w, dir + *at, sizeof w);
  size = sizeof w + (uint64_t) be32_load (w.extra_size) +
    be16_load (w.name_size);
  if (size > len - *at)
    return false;
  *b = (struct qcow2_dirty_bitmap) {
    .entry_off = dir_off + *at, .table_off = be64_load (w.table_off),
    .table_entries = be32_load (w.table_entries),
    .flags = be32_load (w.flags), .granularity_bits = w.granularity_bits,
  };
  take_name (b, dir + *at + size - be16_load (w.name_size),
             be16_load (w.name_size));
  if (b->table_off % img->header.geo.cluster_size != 0 ||
      !add_u64 (b->table_off, b->table_entries * sizeof (be64), &end) ||
      end > img->file_size)
    return false;
  b->tracked = (b->flags & (FLAG_AUTO | FLAG_IN_USE)) == FLAG_AUTO &&
    understood (img, &w, b);
  *at += MIN_OF (round_up_pow2 (size, 8), len - *at);
  return true;
}

static int
decode_directory (struct qcow2_image *img, const uint8_t *dir, size_t len,
                  uint64_t dir_off, uint32_t nr)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  size_t at = 0;

  bs->v = calloc (nr + 1, sizeof *bs->v);   /* at most 65535 */
  if (bs->v == NULL)
    return -ENOMEM;
  for (; bs->nr < nr; bs->nr++) {
    struct qcow2_dirty_bitmap *b = &bs->v[bs->nr];

    if (!decode_entry (img, dir, len, dir_off, &at, b))
      return -EINVAL;
    if (b->tracked && (b->noted = qcow2_bitset_new ()) == NULL)
      return -ENOMEM;
    bs->nr_tracked += b->tracked;
  }
  return 0;
}

/* Reads the directory of bitmaps.  Returns -EINVAL if it is not valid. */
static int
load_directory (struct qcow2_image *img, const struct qcow2_wire_bitmaps *w)
{
  uint64_t off = be64_load (w->directory_off), end;
  uint64_t len = be64_load (w->directory_size);
  uint32_t nr = be32_load (w->nr_bitmaps);
  CLEANUP_FREE uint8_t *dir = NULL;
  int r;

  if (nr == 0 || nr > QCOW2_MAX_BITMAPS ||
      len > QCOW2_MAX_BITMAP_DIRECTORY_BYTES ||
      off % img->header.geo.cluster_size != 0 || off == 0 ||
      !add_u64 (off, len, &end) || end > img->file_size)
    return -EINVAL;
  dir = aligned_new (len + 1);
  if (dir == NULL)
    return -ENOMEM;
  img->bitmaps.directory_off = off;
  img->bitmaps.directory_len = len;
  r = io_pread (img->io, dir, len, off);
  return r < 0 ? r : decode_directory (img, dir, len, off, nr);
}

int
qcow2_bitmaps_load (struct qcow2_image *img, struct fault *f)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  struct qcow2_wire_bitmaps w;
  int r;

  if (!(img->header.geo.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
    return 0;
  if (img->header.bitmaps_ext_len == sizeof w) {
    memcpy (&w, img->header.bitmaps_ext, sizeof w);
    r = load_directory (img, &w);
  }
  else
    r = -EINVAL;
  bs->valid = r == 0;
  if (r == -EINVAL)
    qcow2_bitmaps_free (img);
  if (r == 0 || r == -EINVAL)
    return 0;
  return fault_io (f, -r, UINT64_MAX, "reading the directory of bitmaps: %s",
                   strerror (-r));
}

void
qcow2_bitmaps_free (struct qcow2_image *img)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;

  for (size_t i = 0; bs->v && i <= bs->nr; i++)
    qcow2_bitset_free (bs->v[i].noted);
  free (bs->v);
  memset (bs, 0, sizeof *bs);
}

/* --- Where they are --------------------------------------------------------- */

/* Limits how many bytes of bitmap tables are read to find the clusters of
 * bits.  They name a million clusters; of 4 KiB, and with granules of 4 KiB,
 * these have the bits of 128 TiB: eight bitmaps of a disk of 16 TiB. */
#define MAX_TABLE_BYTES (UINT64_C (8) << 20)

/* Returns whether an entry of a bitmap's table is 0 or the place of a cluster.  Bits are
 * neither read nor written where another one leads, and neither a check nor a rebuild
 * counts it: the place may be anybody's. */
static bool
is_place (const struct qcow2_image *img, uint64_t entry)
{
  return entry == (entry & QCOW2_OFFSET_MASK) &&
    entry % img->header.geo.cluster_size == 0;
}

static int
each_cluster (struct qcow2_image *img, const struct qcow2_dirty_bitmap *b,
              void (*cb) (void *opaque, uint64_t host_off, uint64_t len),
              void *opaque)
{
  struct qcow2_flat t = { 0 };
  int r = qcow2_flat_load (img->io, &t, b->table_off, b->table_entries);

  for (uint64_t i = 0; r == 0 && i < t.nr; i++)
    if (t.v[i] != 0 && is_place (img, t.v[i]))
      cb (opaque, t.v[i], img->header.geo.cluster_size);
  qcow2_flat_free (&t);
  return r;
}

int
qcow2_bitmaps_each (struct qcow2_image *img,
                    void (*cb) (void *opaque, uint64_t host_off,
                                uint64_t len), void *opaque)
{
  const struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  uint64_t left = MAX_TABLE_BYTES, len;
  int r = 0;

  if (!bs->valid)
    return 0;
  cb (opaque, bs->directory_off, bs->directory_len);
  for (size_t i = 0; i < bs->nr && r == 0; i++) {
    len = bs->v[i].table_entries * sizeof (be64);
    cb (opaque, bs->v[i].table_off, len);
    if (len > 0 && len <= left) {
      left -= len;
      r = each_cluster (img, &bs->v[i], cb, opaque);
    }
  }
  return r;
}

static bool
read_failed (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_read_failed_locked (img);
}

/* Refcounts that can't be read say nothing of the bitmaps: dropping these would
 * leave their clusters behind. */
int
qcow2_bitmaps_check_place (struct qcow2_image *img)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  bool once;
  int r;

  if (!bs->valid || bs->in_use)
    return 0;
  r = qcow2_used_once (img, bs->directory_off, bs->directory_len, &once);
  if (r == -ENOMEM || (r < 0 && read_failed (img)))
    return r;
  if (r < 0 || !once)
    qcow2_bitmaps_free (img);
  return 0;
}

bool
qcow2_bitmaps_given_up (const struct qcow2_image *img)
{
  return (img->header.geo.autoclear & QCOW2_AUTOCLEAR_BITMAPS) &&
    !img->bitmaps.valid;
}

/* --- First change ------------------------------------------------------- */

static int
write_flags (struct qcow2_image *img, struct qcow2_dirty_bitmap *b,
             uint32_t flags)
{
  be32 wire = be32_make (flags);
  int r = io_pwrite (img->io, &wire, sizeof wire, b->entry_off +
                     offsetof (struct qcow2_wire_bitmap, flags));

  if (r == 0)
    b->flags = flags;
  return r;
}

static void
say (struct qcow2_image *img, const struct qcow2_dirty_bitmap *b,
     const char *what)
{
  log_line (img->log_sink, LOG_ERROR, "%s: bitmap %s: %s", img->path ?
            img->path : "image", b ? b->name : "directory", what);
}

void
qcow2_bitmaps_warn (struct qcow2_image *img)
{
  if (qcow2_bitmaps_given_up (img))
    say (img, NULL, "is not valid: all bitmaps are given up");
}

/* Sets *OK to whether nothing but B uses its table and the clusters that it names, as far
 * as refcounts tell. */
static int
check_entries (struct qcow2_image *img, const struct qcow2_dirty_bitmap *b, bool *ok)
{
  const uint64_t size = img->header.geo.cluster_size;
  const uint64_t len = b->table_entries * sizeof (be64);
  struct qcow2_flat t = { 0 };
  int r = 0;

  *ok = len <= MAX_TABLE_BYTES;
  if (len == 0 || !*ok)
    return 0;
  r = qcow2_used_once (img, b->table_off, len, ok);
  if (r == 0 && *ok)
    r = qcow2_flat_load (img->io, &t, b->table_off, b->table_entries);
  for (uint64_t i = 0; r == 0 && *ok && i < t.nr; i++) {
    if (t.v[i] == 0 || t.v[i] == ENTRY_ALL_ONES)
      continue;
    *ok = is_place (img, t.v[i]);
    if (*ok)
      r = qcow2_used_once (img, t.v[i], size, ok);
  }
  qcow2_flat_free (&t);
  return r;
}

/* Ends the tracking of B if its table names clusters that are not its own: somebody may
 * get them while the image is open, and bits would be written over theirs at the close.
 * Later it cannot be told any more whose they are. */
static int
verify (struct qcow2_image *img, struct qcow2_dirty_bitmap *b)
{
  bool ok;
  int r = check_entries (img, b, &ok);

  if (r == -ENOMEM || (r < 0 && read_failed (img)))
    return r;
  b->tracked = r == 0 && ok;
  return 0;
}

int
qcow2_bitmaps_begin (struct qcow2_image *img)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  bool written = false;
  int r = 0;

  if (bs->in_use || !(img->header.geo.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
    return 0;
  qcow2_bitmaps_warn (img);
  for (size_t i = 0; bs->valid && i < bs->nr && r == 0; i++) {
    struct qcow2_dirty_bitmap *b = &bs->v[i];

    if (!(b->flags & FLAG_AUTO))
      continue;
    if (b->tracked && (r = verify (img, b)) < 0)
      return r;
    if (!b->tracked && !(b->flags & FLAG_IN_USE))
      say (img, b, "cannot be kept up to date: it is marked as in use, so "
           "that QEMU does not rely on it");
    r = write_flags (img, b, b->flags | FLAG_IN_USE);
    written = true;
  }
  if (r == 0 && written)
    r = io_sync (img->io);
  bs->in_use = r == 0;
  return r;
}

uint64_t
qcow2_kept_autoclear (const struct qcow2_image *img)
{
  uint64_t kept = QCOW2_AUTOCLEAR_RAW_DATA;

  if (img->bitmaps.valid)
    kept |= QCOW2_AUTOCLEAR_BITMAPS;
  return img->header.geo.autoclear & kept;
}

/* --- While open ----------------------------------------------------------- */

void
qcow2_bitmaps_note (struct qcow2_image *img, uint64_t guest_off,
                    uint64_t len)
{
  uint64_t end = MIN_OF (guest_off + len, img->header.geo.virtual_size);

  if (img->bitmaps.nr_tracked == 0 || guest_off >= end)
    return;
  LOCK_FOR_SCOPE (&img->lock);
  for (size_t i = 0; i < img->bitmaps.nr; i++) {
    struct qcow2_dirty_bitmap *b = &img->bitmaps.v[i];
    uint64_t first;

    if (!b->tracked)             /* any granularity */
      continue;
    first = guest_off >> b->granularity_bits;
    if (qcow2_bitset_set (b->noted, first, ((end - 1) >> b->granularity_bits) -
                          first + 1) < 0) {
      b->tracked = false;      /* stays marked */
      say (img, b, "no memory to keep it up to date: it stays marked as in "
           "use, so that QEMU does not rely on it");
    }
  }
}

/* --- Close ------------------------------------------------------------------ */

/* Adds the noted bits of [FIRST, FIRST + NR) to DATA. */
static void
merge (const struct qcow2_dirty_bitmap *b, uint64_t first, uint64_t nr,
       uint8_t *data)
{
  uint64_t i = qcow2_bitset_next (b->noted, first);

  while (i != QCOW2_BITSET_NONE && i - first < nr) {
    data[(i - first) / 8] |= 1u << (i - first) % 8;
    i = qcow2_bitset_next (b->noted, i + 1);
  }
}

static bool
overlaps (uint64_t off, uint64_t len, uint64_t other, uint64_t other_len)
{
  return off < other + other_len && other < off + len;
}

/* Returns whether T, or a table that it names, overlaps the range. */
static bool
overlaps_tables (const struct qcow2_image *img, const struct qcow2_flat *t,
                 uint64_t off, uint64_t len)
{
  const uint64_t size = img->header.geo.cluster_size;

  if (overlaps (off, len, t->host_off, t->nr * sizeof (be64)))
    return true;
  for (uint64_t i = 0; i < t->nr; i++)
    if ((t->v[i] & QCOW2_OFFSET_MASK) &&
        overlaps (off, len, t->v[i] & QCOW2_OFFSET_MASK, size))
      return true;
  return false;
}

/* Returns whether a range of the file may belong to a bitmap: it overlaps
 * neither header, tables nor the store.  A wrong directory must not make the
 * program overwrite those. */
static bool
may_be_bitmap (struct qcow2_image *img, uint64_t off, uint64_t len)
{
  const uint64_t size = img->header.geo.cluster_size;

  LOCK_FOR_SCOPE (&img->lock);
  return off >= size &&
    !qcow2_guard_has_tables_locked (img, off / size,
                                    div_round_up (len, size)) &&
    !overlaps (off, len, img->fields.snapshots_off, img->snapshots.raw_len) &&
    !overlaps_tables (img, &img->l1, off, len) &&
    !overlaps_tables (img, &img->reftable, off, len) &&
    !overlaps_tables (img, &img->anchor.l1, off, len);
}

/* Writes DATA, a cluster of bits, to a free cluster, and attaches that to the
 * table entry at ENTRY_OFF, which had none. */
static int
add_cluster (struct qcow2_image *img, uint64_t entry_off, const uint8_t *data,
             qcow2_attach_cb attach, void *opaque)
{
  const struct qcow2_geometry *g = &img->header.geo;
  struct qcow2_run run;
  int r;

  lock_acquire (&img->lock);
  r = qcow2_reserve_locked (img, 1, &run);
  lock_release (&img->lock);
  if (r < 0)
    return r;
  r = io_pwrite (img->io, data, g->cluster_size,
                 run.host_idx << g->cluster_bits);
  if (r == 0)
    r = attach (opaque, entry_off, run.host_idx);
  if (r < 0) {
    LOCK_FOR_SCOPE (&img->lock);
    qcow2_unreserve_unbacked_locked (img, &run);
  }
  return r;
}

/* Adds the noted bits of table entry TI to those in the file.  DATA is scratch
 * space of one cluster.  Returns -EINVAL if its cluster must not be written. */
static int
save_part (struct qcow2_image *img, const struct qcow2_dirty_bitmap *b,
           uint64_t ti, uint8_t *data, qcow2_attach_cb attach, void *opaque)
{
  const uint64_t size = img->header.geo.cluster_size;
  uint64_t entry_off = b->table_off + ti * sizeof (be64), off;
  bool once = true;
  be64 wire;
  int r;

  r = io_pread (img->io, &wire, sizeof wire, entry_off);
  if (r < 0)
    return r;
  off = be64_load (wire);
  if (off == ENTRY_ALL_ONES)
    return 0;
  if (!is_place (img, off) ||
      off + size > round_up_pow2 (img->file_size, size) ||
      (off && !may_be_bitmap (img, off, size)))
    return -EINVAL;
  r = off ? qcow2_used_once (img, off, size, &once) : 0;
  if (r < 0 || !once)
    return r < 0 ? r : -EINVAL;
  memset (data, 0, size);
  r = off ? io_pread (img->io, data, size, off) : 0;
  if (r < 0)
    return r;
  merge (b, ti * bits_per_cluster (img), bits_per_cluster (img), data);
  return off ? io_pwrite (img->io, data, size, off)
    : add_cluster (img, entry_off, data, attach, opaque);
}

static int
save_bitmap (struct qcow2_image *img, const struct qcow2_dirty_bitmap *b,
             uint8_t *data, qcow2_attach_cb attach, void *opaque)
{
  const uint64_t per = bits_per_cluster (img);
  uint64_t i = qcow2_bitset_next (b->noted, 0);
  const uint64_t len = b->table_entries * sizeof (be64);
  bool once = true;
  int r = 0;

  if (i == QCOW2_BITSET_NONE)
    return 0;
  r = qcow2_used_once (img, b->table_off, len, &once);
  if (r < 0 || !once || !may_be_bitmap (img, b->table_off, len))
    return r < 0 ? r : -EINVAL;
  while (i != QCOW2_BITSET_NONE && r == 0) {
    r = save_part (img, b, i / per, data, attach, opaque);
    i = qcow2_bitset_next (b->noted, (i / per + 1) * per);
  }
  return r;
}

bool
qcow2_bitmaps_to_save (const struct qcow2_image *img)
{
  return img->bitmaps.in_use && img->bitmaps.nr_tracked > 0;
}

int
qcow2_bitmaps_save (struct qcow2_image *img, qcow2_attach_cb attach,
                    void *opaque)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  CLEANUP_FREE uint8_t *data = NULL;
  int r;

  if (!qcow2_bitmaps_to_save (img))
    return 0;
  data = aligned_new (img->header.geo.cluster_size);         /* at most 2 MiB */
  if (data == NULL)
    return -ENOMEM;
  for (size_t i = 0; i < bs->nr; i++) {
    struct qcow2_dirty_bitmap *b = &bs->v[i];

    if (!b->tracked)
      continue;
    r = save_bitmap (img, b, data, attach, opaque);
    if (r < 0) {
      b->tracked = false;
      say (img, b, "could not be saved: it stays marked as in use, so that "
           "QEMU does not rely on it");
    }
  }
  return 0;
}

int
qcow2_bitmaps_end (struct qcow2_image *img)
{
  struct qcow2_dirty_bitmaps *bs = &img->bitmaps;
  int r = 0;

  if (!qcow2_bitmaps_to_save (img))
    return 0;
  for (size_t i = 0; i < bs->nr && r == 0; i++)
    if (bs->v[i].tracked)
      r = write_flags (img, &bs->v[i], bs->v[i].flags & ~FLAG_IN_USE);
  if (r == 0)
    r = io_sync (img->io);
  bs->in_use = false;
  return r;
}

/* --- The change ---------------------------------------------------------------- */

int
qcow2_bitmap_attach_locked (struct qcow2_txn *txn, uint64_t entry_off,
                            uint64_t host_idx)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_BITMAP, .table_idx = entry_off,
    .host_off = host_idx << txn->img->header.geo.cluster_bits,
  };
  int r = qcow2_prepare_meta_locked (txn, host_idx);

  if (r == 0)
    r = qcow2_change_locked (txn, &c);
  if (r == 0)
    qcow2_set_refcount_locked (txn, host_idx, 1, false);
  return r;
}
