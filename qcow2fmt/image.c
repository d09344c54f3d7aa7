/* SPDX-License-Identifier: BSD-3-Clause */
/* Answers small questions about an open image from memory: its parts that
 * others need, and where in the file something can lie.
 *
 * Everything else in this room may use this file, which uses none of it.  It
 * does no I/O and changes nothing.  Functions whose name ends with _locked,
 * and those that read the frontier or the refcount table, need the image's
 * lock once other threads may change the image.
 */
#include "checked.h"
#include "image.h"

/* --- Parts ------------------------------------------------------------ */

const struct qcow2_geometry *
qcow2_geometry (const struct qcow2_image *img)
{
  return &img->header.geo;
}

struct io_store *
qcow2_io (struct qcow2_image *img)
{
  return img->io;
}

struct io_store *
qcow2_data_io (struct qcow2_image *img)
{
  return img->data ? img->data : img->io;
}

struct lock *
qcow2_lock (struct qcow2_image *img)
{
  return &img->lock;
}

const uint8_t *
qcow2_store_extension (const struct qcow2_image *img)
{
  return img->header.has_store_ext ? img->header.store_ext : NULL;
}

bool
qcow2_has_anchor (const struct qcow2_image *img)
{
  return img->fields.anchor_l1_entries > 0;
}

size_t
qcow2_snapshots (const struct qcow2_image *img,
                 const struct qcow2_snapshot **out)
{
  *out = img->snapshots.v;
  return img->snapshots.nr;
}

bool
qcow2_read_failed_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->read_failed;
}

uint64_t
qcow2_size_for_header (const struct qcow2_image *img)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t longest = 0;

  /* Bitmaps are as long as the disk, and a backing file would show up behind
   * its end. */
  if (img->bitmaps.nr > 0 || g->has_backing || qcow2_has_data_file (g))
    return g->virtual_size;
  for (size_t i = 0; i < img->snapshots.nr; i++)
    if (img->snapshots.v[i].is_disk && !img->snapshots.v[i].dead)
      longest = MAX_OF (longest, img->snapshots.v[i].disk_size);
  /* At most 2^22 entries of 2^39 bytes. */
  longest = MIN_OF (longest, img->l1.nr * g->l2_entries * g->cluster_size);
  return MAX_OF (g->virtual_size,
                 round_up_pow2 (MIN_OF (longest, INT64_MAX - 511), 512));
}

/* --- Where something can lie ------------------------------------------- */

uint64_t
qcow2_host_end (const struct qcow2_image *img)
{
  return MAX_OF (div_round_up (img->file_size, img->header.geo.cluster_size),
                 img->alloc.frontier);
}

uint64_t
qcow2_refcount_coverage (const struct qcow2_image *img)
{
  /* At most 2^20 entries (8 MiB) of 2^24 clusters each: no overflow. */
  return img->reftable.nr * img->header.geo.refblock_entries;
}

uint64_t
qcow2_countable_clusters (const struct qcow2_image *img)
{
  return qcow2_refcount_coverage (img);
}

uint64_t
qcow2_tables_end_locked (const struct qcow2_image *img)
{
  /* A crash may have cut off a table that the file names already. */
  return MAX_OF (qcow2_host_end (img), img->replaying ?
                 qcow2_refcount_coverage (img) : 0);
}
