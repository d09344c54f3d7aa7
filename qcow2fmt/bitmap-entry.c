/* SPDX-License-Identifier: BSD-3-Clause */
/* Applies a BITMAP change: sets one entry of the table of a persistent bitmap,
 * in the table cache.
 *
 * It promises to touch nothing but an entry of a table that the directory of
 * bitmaps names, because a damaged journal may name any offset.  It relies on
 * change.c to check the new value, and on the directory to be read at open.
 *
 * It has no threads; the image's lock protects it.  The bits themselves, and
 * when an entry is changed, are left to dirty-bitmaps.c.
 */
#include <errno.h>
#include <string.h>

#include "image.h"

/* Returns whether an entry of a bitmap table begins at ENTRY_OFF (bytes of the
 * file). */
static bool
is_table_entry (const struct qcow2_image *img, uint64_t entry_off)
{
  for (size_t i = 0; i < img->bitmaps.nr; i++) {
    const struct qcow2_dirty_bitmap *b = &img->bitmaps.v[i];

    if (entry_off >= b->table_off && entry_off % sizeof (be64) == 0 &&
        (entry_off - b->table_off) / sizeof (be64) < b->table_entries)
      return true;
  }
  return false;
}

int
qcow2_bitmap_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t within = c->table_idx % g->cluster_size;
  be64 wire = be64_make (c->host_off);
  struct qcow2_slice *t;
  int r;

  if (!is_table_entry (img, c->table_idx))
    return -EINVAL;
  t = qcow2_cache_get_locked (txn, c->table_idx - within, within, &r);
  if (!t)
    return r;
  memcpy (t->data + within % qcow2_slice_size (g), &wire, sizeof wire);
  qcow2_cache_dirty_locked (img, t);
  return 0;
}
