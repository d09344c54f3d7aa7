/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the anchor (docs/on-disk.md section 2) in memory, as one bit per host
 * cluster.
 *
 * Each entry of an anchor L2 table is 0 or its own offset, with or without
 * COPIED, which means nothing there; so one bit holds all of it.  The bits of
 * one table are a part.  A part is read when it is first needed, stays in
 * memory from then on (a bit per cluster: 32 MiB per TiB in clusters of 4
 * KiB), and is written back by encoding its whole table.
 *
 * A part without a table (its L1 entry is 0) has no anchored cluster and needs
 * no memory.  A table with any other entry makes the calls that need it fail
 * with -EIO, because the anchor is not valid then.  Only while a journal is
 * replayed may such a table be met: the anchor's L1 was written before the
 * crash, the table was not, and its place holds the bytes from before.  It
 * counts as empty until its ANCHORTABLE record comes; if none comes,
 * qcow2_replay_end fails.
 *
 * The image's lock protects it.  Loading works as in cache.c: the reader
 * releases the lock, and checks afterwards whether the part was created in the
 * meantime.  Parts are named by index throughout, because the array moves when
 * the anchor grows.  What being anchored means for a cluster is left to drop.c
 * and hold.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "image.h"

static size_t
words (const struct qcow2_image *img)
{
  return div_round_up (img->header.geo.l2_entries, 64);
}

int
qcow2_anchor_resize (struct qcow2_image *img, uint64_t nr)
{
  struct qcow2_anchor *a = &img->anchor;
  struct qcow2_anchor_part *parts;
  uint64_t *list;

  nr = MAX_OF (nr, a->l1.nr);
  if (nr <= a->nr_parts)
    return 0;
  parts = calloc (nr, sizeof *parts);
  list = calloc (nr, sizeof *list);
  if (!parts || !list) {
    free (parts);
    free (list);
    return -ENOMEM;
  }
  if (a->nr_parts > 0) {
    memcpy (parts, a->parts, a->nr_parts * sizeof *parts);
    memcpy (list, a->dirty_list, a->nr_dirty * sizeof *list);
  }
  free (a->parts);
  free (a->dirty_list);
  a->parts = parts;
  a->dirty_list = list;
  a->nr_parts = nr;
  return 0;
}

void
qcow2_anchor_free (struct qcow2_image *img)
{
  struct qcow2_anchor *a = &img->anchor;

  for (uint64_t i = 0; i < a->nr_parts; ++i)
    free (a->parts[i].bits);
  free (a->parts);
  free (a->dirty_list);
  qcow2_flat_free (&a->l1);
  memset (a, 0, sizeof *a);
}

uint64_t
qcow2_anchor_part_of (const struct qcow2_image *img, uint64_t host_idx)
{
  return host_idx / img->header.geo.l2_entries;
}

bool
qcow2_anchor_has_part (const struct qcow2_image *img, uint64_t part)
{
  return part < img->anchor.l1.nr &&
    (img->anchor.l1.v[part] & QCOW2_OFFSET_MASK) != 0;
}

int
qcow2_anchor_need_locked (struct qcow2_txn *txn, uint64_t part)
{
  struct qcow2_image *img = txn->img;
  uint64_t off;

  assert (lock_held (&img->lock));
  if (!qcow2_anchor_has_part (img, part) || img->anchor.parts[part].bits)
    return 0;
  off = img->anchor.l1.v[part] & QCOW2_OFFSET_MASK;
  if (off % img->header.geo.cluster_size != 0 ||
      off >> img->header.geo.cluster_bits >=
      qcow2_tables_end_locked (img))
    return -EIO;
  return qcow2_txn_missing_locked (txn, QCOW2_MISSING_ANCHOR, part);
}

int
qcow2_anchor_need_range_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                uint64_t count)
{
  uint64_t part = qcow2_anchor_part_of (txn->img, host_idx);
  uint64_t last = qcow2_anchor_part_of (txn->img, host_idx + count - 1);
  int r = 0;

  assert (count > 0);
  for (; part <= last && part < txn->img->anchor.l1.nr && r == 0; ++part)
    r = qcow2_anchor_need_locked (txn, part);
  return r;
}

bool
qcow2_anchor_test_locked (const struct qcow2_image *img, uint64_t host_idx)
{
  uint64_t part = qcow2_anchor_part_of (img, host_idx);
  uint64_t i = host_idx % img->header.geo.l2_entries;

  if (!qcow2_anchor_has_part (img, part))
    return false;
  assert (img->anchor.parts[part].bits);
  return img->anchor.parts[part].bits[i / 64] >> i % 64 & 1;
}

void
qcow2_find_unanchored_locked (struct qcow2_image *img,
                              const uint64_t *host_idx, size_t nr,
                              bool *not_anchored)
{
  size_t i;

  assert (lock_held (&img->lock));
  for (i = 0; i < nr; ++i) {
    uint64_t part = qcow2_anchor_part_of (img, host_idx[i]);

    not_anchored[i] = !qcow2_anchor_has_part (img, part) ||
      (img->anchor.parts[part].bits &&
       !qcow2_anchor_test_locked (img, host_idx[i]));
  }
}

bool
qcow2_anchor_was_applied (const struct qcow2_image *img)
{
  const struct qcow2_flat *anchor = &img->anchor.l1, *l1 = &img->l1;
  uint64_t i;

  if (img->header.geo.incompatible & QCOW2_INCOMPAT_RECOVERY)
    return false;              /* L1 and anchor may be of two moments */
  for (i = 0; i < anchor->nr && i < l1->nr; ++i)
    if ((anchor->v[i] & QCOW2_OFFSET_MASK) != 0 &&
        (anchor->v[i] & QCOW2_OFFSET_MASK) == (l1->v[i] & QCOW2_OFFSET_MASK))
      return true;
  return false;
}

static void
put_one (struct qcow2_image *img, uint64_t part, uint64_t i, bool anchored)
{
  uint64_t *w = &img->anchor.parts[part].bits[i / 64];
  uint64_t bit = UINT64_C (1) << i % 64;

  /* A bit that a replay finds set already may be so in the host's cache only (a
   * sync failed in the last session), so it must be written all the same. */
  if (anchored == ((*w & bit) != 0) && !img->replaying)
    return;
  *w = anchored ? *w | bit : *w & ~bit;
  qcow2_anchor_dirty_locked (img, part);
}

void
qcow2_anchor_put_locked (struct qcow2_image *img, uint64_t host_idx,
                         uint64_t count, bool anchored)
{
  uint64_t part;

  for (; count > 0; ++host_idx, --count) {
    part = qcow2_anchor_part_of (img, host_idx);
    if (qcow2_anchor_has_part (img, part))
      put_one (img, part, host_idx % img->header.geo.l2_entries, anchored);
    else
      assert (!anchored);
  }
}

/* Gives a part its bits, which it owns from then on; frees those it had. */
static void
set_bits (struct qcow2_anchor *a, uint64_t part, uint64_t *bits)
{
  if (!a->parts[part].bits)
    a->nr_loaded++;
  free (a->parts[part].bits);
  a->parts[part].bits = bits;
}

int
qcow2_anchor_create_locked (struct qcow2_image *img, uint64_t part,
                            uint64_t host_off)
{
  struct qcow2_anchor *a = &img->anchor;
  uint64_t *bits;

  assert (lock_held (&img->lock));
  assert (part < a->l1.nr);
  bits = calloc (words (img), sizeof *bits);
  if (!bits)
    return -ENOMEM;
  set_bits (a, part, bits);
  a->parts[part].loading = a->parts[part].doubtful = false;
  qcow2_flat_set (&a->l1, part, host_off);
  qcow2_anchor_dirty_locked (img, part);
  pthread_cond_broadcast (&img->loaded);
  return 0;
}

void
qcow2_anchor_dirty_locked (struct qcow2_image *img, uint64_t part)
{
  struct qcow2_anchor *a = &img->anchor;

  assert (lock_held (&img->lock));
  assert (a->parts[part].bits);
  if (a->parts[part].dirty)
    return;
  a->parts[part].dirty = true;
  a->dirty_list[a->nr_dirty++] = part;
}

void
qcow2_anchor_encode_locked (const struct qcow2_image *img, uint64_t part,
                            uint8_t *out)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  const uint64_t *bits = img->anchor.parts[part].bits;
  uint64_t first = part * geo->l2_entries;

  for (uint64_t i = 0; i < geo->l2_entries; ++i)
    qcow2_l2_store (geo, out, i, bits[i / 64] >> i % 64 & 1 ?
                    (first + i) << geo->cluster_bits : 0);
}

static int
decode (const struct qcow2_image *img, uint64_t part, const uint8_t *table,
        uint64_t *bits)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t first = part * geo->l2_entries, v, bitmap;

  for (uint64_t i = 0; i < geo->l2_entries; ++i) {
    v = qcow2_l2_load (geo, table, i, &bitmap);
    if (v == 0)
      continue;
    /* When another snapshot is applied after the anchor was, QEMU sets COPIED
     * in the anchor's tables. */
    if ((v & ~QCOW2_L2_COPIED) != (first + i) << geo->cluster_bits)
      return -EBADMSG;
    bits[i / 64] |= UINT64_C (1) << i % 64;
  }
  return 0;
}

/* Reads and decodes the table of a part into BITS, without the lock.  Returns
 * -EBADMSG if it is not valid. */
static int
read_part (struct qcow2_image *img, uint64_t part, uint64_t host_off,
           uint64_t *bits)
{
  size_t size = img->header.geo.cluster_size;
  CLEANUP_FREE uint8_t *table = aligned_new (size);

  if (!table || !bits)
    return -ENOMEM;
  if (io_pread (img->io, table, size, host_off) < 0)
    return -EIO;
  return decode (img, part, table, bits);
}

static int
load_part (struct qcow2_image *img, uint64_t part)
{
  struct qcow2_anchor *a = &img->anchor;
  uint64_t off = a->l1.v[part] & QCOW2_OFFSET_MASK;
  uint64_t *bits;
  int r;

  a->parts[part].loading = true;
  lock_release (&img->lock);
  bits = calloc (words (img), sizeof *bits);
  r = read_part (img, part, off, bits);
  lock_acquire (&img->lock);

  pthread_cond_broadcast (&img->loaded);
  if (!a->parts[part].loading) {
    free (bits);               /* created meanwhile: the file is older */
    return 0;
  }
  a->parts[part].loading = false;
  if (r == -EBADMSG && img->replaying) {
    memset (bits, 0, words (img) * sizeof *bits);
    a->parts[part].doubtful = true;
    r = 0;
  }
  img->read_failed = img->read_failed || r == -EIO;
  if (r == -EBADMSG)
    r = -EIO;
  if (r < 0)
    free (bits);
  else
    set_bits (a, part, bits);
  return r;
}

int
qcow2_anchor_load_locked (struct qcow2_txn *txn, uint64_t part)
{
  struct qcow2_image *img = txn->img;

  assert (lock_held (&img->lock));
  while (qcow2_anchor_has_part (img, part) && !img->anchor.parts[part].bits) {
    if (!img->anchor.parts[part].loading)
      return load_part (img, part);
    lock_wait (&img->lock, &img->loaded);
  }
  return 0;
}

/* --- Replay ------------------------------------------------------------- */

void
qcow2_replay_begin (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);

  img->replaying = true;
}

/* Ends the replay for the anchor: each part must have its table. */
static int
end_parts (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);

  img->replaying = false;
  for (uint64_t i = 0; i < img->anchor.nr_parts; ++i)
    if (img->anchor.parts[i].doubtful)
      return -EIO;
  return 0;
}

int
qcow2_replay_end (struct qcow2_image *img)
{
  struct fault f = { 0 };
  int r = end_parts (img);

  if (r < 0)
    return r;
  r = qcow2_snapshot_reload (img, &f);
  lock_acquire (&img->lock);
  qcow2_replay_freed_locked (img);
  lock_release (&img->lock);
  if (r < 0)
    log_line (img->log_sink, LOG_ERROR, "%s: the snapshot table of the last "
              "change: %s", img->path ? img->path : "image", f.msg);
  return r;
}

size_t
qcow2_anchor_memory (const struct qcow2_image *img)
{
  const struct qcow2_anchor *a = &img->anchor;

  return a->nr_parts * (sizeof *a->parts + sizeof *a->dirty_list) +
    a->nr_loaded * words (img) * sizeof *a->parts->bits;
}
