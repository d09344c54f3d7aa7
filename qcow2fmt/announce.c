/* SPDX-License-Identifier: BSD-3-Clause */
/* Announces the tables that tell of ranges of the file, before they are loaded one by
 * one: a store that is far away answers all of them within one round trip.
 *
 * All of this is advice.  It changes nothing in memory, and entries that are not valid
 * are left to those who load the tables.
 */
#include "checked.h"
#include "image.h"

#define AT_ONCE 64

struct announcement {
  struct qcow2_image *img;
  struct io_part v[AT_ONCE];
  size_t nr, all;
  uint64_t last_off[2];       /* of refcounts, and of tables of the anchor */
};

static void
send (struct announcement *a)
{
  (void) io_will_need (a->img->io, a->v, a->nr, true);
  a->all += a->nr;
  a->nr = 0;
}

/* Adds a part of one of the two kinds, unless it begins where the last one did. */
static void
add (struct announcement *a, bool anchor, uint64_t host_off, uint64_t len)
{
  if (host_off == 0 || host_off >= a->img->file_size || host_off == a->last_off[anchor])
    return;
  a->last_off[anchor] = host_off;
  if (a->nr == AT_ONCE)
    send (a);
  a->v[a->nr++] = (struct io_part) { .host_off = host_off, .len = len };
}

/* Adds the slices of refcount block B that have the clusters from FIRST to LAST. */
static void
add_refcounts (struct announcement *a, uint64_t b, uint64_t first, uint64_t last)
{
  const struct qcow2_geometry *g = &a->img->header.geo;
  const uint64_t slice = qcow2_slice_size (g), per = qcow2_refcount_slice (g);
  const uint64_t from = first % g->refblock_entries / per * slice;
  const uint64_t to = (last % g->refblock_entries / per + 1) * slice;

  if (qcow2_has_refblock (a->img, b))
    add (a, false, a->img->reftable.v[b] + from, to - from);
}

static void
add_tables (struct announcement *a, uint64_t first, uint64_t last)
{
  const struct qcow2_geometry *g = &a->img->header.geo;
  uint64_t at, end;

  for (at = first; at <= last; at = end) {
    end = round_up_pow2 (at + 1, g->refblock_entries);
    add_refcounts (a, qcow2_refblock_of (a->img, at), at, MIN_OF (end - 1, last));
  }
  for (at = first; at <= last; at = round_up_pow2 (at + 1, g->l2_entries))
    if (qcow2_anchor_has_part (a->img, qcow2_anchor_part_of (a->img, at)))
      add (a, true, a->img->anchor.l1.v[qcow2_anchor_part_of (a->img, at)] &
           QCOW2_OFFSET_MASK, g->cluster_size);
}

size_t
qcow2_announce_tables (struct qcow2_image *img, const struct qcow2_area *areas, size_t nr,
                       size_t most)
{
  const unsigned bits = img->header.geo.cluster_bits;
  struct announcement a = { .img = img };
  uint64_t last;
  size_t i;

  for (i = 0; i < nr && a.all + a.nr < most; i++)
    if (areas[i].size > 0 && add_u64 (areas[i].host_off, areas[i].size - 1, &last) &&
        last < img->file_size)
      add_tables (&a, areas[i].host_off >> bits, last >> bits);
  send (&a);
  return i;
}
