/* SPDX-License-Identifier: BSD-3-Clause */
/* Applying a change (an after-image) to the tables in memory.
 *
 * Each kind of change is first checked against this image (a journal may be
 * corrupt: -EINVAL), then everything it needs is pinned (-EAGAIN), then it is
 * made; so it is made whole or not at all.  Applying twice is the same as
 * once: REFBLOCK, L2_TABLE and ANCHOR_TABLE make their table anew whatever
 * the file holds at that place, and the records that follow fill it again.
 *
 * The copy of a shared L2 table is the one change that depends on something
 * else than itself: on the old table.  l2.c keeps that from being reused.
 *
 * Protected by the image's lock.  Reports nothing but in qcow2_change_locked.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "image.h"

/* Bits of a standard L2 entry that must be 0. */
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

/* A cluster that may hold a table or data: not the header, and counted by
 * the refcount table. */
static bool
host_off_ok (const struct qcow2_image *img, uint64_t host_off)
{
  const struct qcow2_geometry *geo = &img->header.geo;

  return host_off != 0 && host_off % geo->cluster_size == 0 &&
    host_off < QCOW2_MAX_HOST_OFF &&
    host_off >> geo->cluster_bits < qcow2_refcount_coverage (img);
}

/* How many of LEFT entries from IDX on are in one slice of PER entries; or,
 * where there is no table, in none of WHOLE. */
static uint64_t
at_once (uint64_t idx, uint64_t left, const struct qcow2_slice *t, uint64_t per,
         uint64_t whole)
{
  if (!t)
    per = whole;
  return MIN_OF (left, per - idx % per);
}

/* --- L2 ----------------------------------------------------------------- */

static bool
entry_ok (const struct qcow2_image *img, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return !(entry & QCOW2_L2_COPIED);
  if (entry & L2_RESERVED)
    return false;
  if (qcow2_has_data_file (&img->header.geo))
    return (entry & QCOW2_OFFSET_MASK) % img->header.geo.cluster_size == 0;
  if ((entry & QCOW2_OFFSET_MASK) == 0)
    return !(entry & QCOW2_L2_COPIED);
  return host_off_ok (img, entry & QCOW2_OFFSET_MASK);
}

/* The slice of an L2 table with the entry of GUEST_IDX, to be changed; NULL
 * where there is no table. */
static int
get_l2 (struct qcow2_txn *txn, uint64_t guest_idx, struct qcow2_slice **t)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t e = txn->img->l1.v[guest_idx / g->l2_entries];
  int r = 0;

  *t = NULL;
  if ((e & QCOW2_OFFSET_MASK) == 0)
    return 0;
  if (!(e & QCOW2_L2_COPIED))
    return -EINVAL;            /* a snapshot's as well: to be copied first */
  *t = qcow2_cache_get_locked (txn, e & QCOW2_OFFSET_MASK,
                               guest_idx % g->l2_entries * g->l2_entry_size,
                               &r);
  return r;
}

static int
check_l2 (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t end, idx = c->guest_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r;

  if (c->root != QCOW2_ROOT_ACTIVE || c->count == 0 ||
      !add_u64 (c->guest_idx, c->count, &end) ||
      end > g->nr_clusters || (end - 1) / g->l2_entries >= img->l1.nr ||
      !entry_ok (img, c->entry))
    return -EINVAL;
  for (; left > 0; idx += n, left -= n) {
    r = get_l2 (txn, idx, &t);
    if (r == 0 && !t && c->entry != 0)
      r = -EINVAL;
    if (r < 0)
      return r;
    n = at_once (idx, left, t, qcow2_l2_slice (g), g->l2_entries);
  }
  return 0;
}

static void
fill_l2 (struct qcow2_image *img, struct qcow2_slice *t, uint64_t i,
         uint64_t n, uint64_t entry)
{
  for (; n > 0; ++i, --n)
    qcow2_l2_store (&img->header.geo, t->data, i, entry);
  qcow2_cache_dirty_locked (img, t);
}

static int
apply_l2 (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t per = qcow2_l2_slice (g);
  uint64_t idx = c->guest_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r = check_l2 (txn, c);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    r = get_l2 (txn, idx, &t);
    assert (r == 0);           /* pinned by check_l2 */
    n = at_once (idx, left, t, per, g->l2_entries);
    if (t)
      fill_l2 (txn->img, t, idx % per, n, c->entry);
  }
  return 0;
}

/* --- REFCOUNT ------------------------------------------------------------- */

static int
check_refcount_range (const struct qcow2_image *img,
                      const struct qcow2_change *c)
{
  uint64_t end, last_part;

  if (c->host_idx == 0 || c->count == 0 ||
      !add_u64 (c->host_idx, c->count, &end) ||
      end > qcow2_refcount_coverage (img) ||
      end > QCOW2_MAX_HOST_OFF >> img->header.geo.cluster_bits ||
      c->refcount > img->header.geo.refcount_max ||
      (c->anchored && c->refcount == 0))
    return -EINVAL;
  last_part = qcow2_anchor_part_of (img, end - 1);
  for (uint64_t p = qcow2_anchor_part_of (img, c->host_idx);
       c->anchored && p <= last_part; ++p)
    if (!qcow2_anchor_has_part (img, p))
      return -EINVAL;
  return 0;
}

static int
check_refcount (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t idx = c->host_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r = check_refcount_range (txn->img, c);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    r = qcow2_refblock_locked (txn, idx, &t);
    if (r == 0 && !t && c->refcount != 0)
      r = -EINVAL;
    if (r < 0)
      return r;
    n = at_once (idx, left, t, qcow2_refcount_slice (g), g->refblock_entries);
  }
  return qcow2_anchor_need_range_locked (txn, c->host_idx, c->count);
}

void
qcow2_refblock_change_locked (struct qcow2_image *img, struct qcow2_slice *t,
                              uint64_t host_idx, uint64_t count,
                              uint64_t refcount, bool anchored)
{
  const struct qcow2_geometry *geo = &img->header.geo;
  uint64_t first = host_idx % qcow2_refcount_slice (geo);

  for (uint64_t i = 0; i < count; ++i)
    qcow2_refcount_put (geo->refcount_bits, t->data, first + i, refcount);
  t->is_refblock = true;
  qcow2_cache_dirty_locked (img, t);
  qcow2_anchor_put_locked (img, host_idx, count, anchored);
  if (refcount > 0)
    qcow2_alloc_used_locked (img, host_idx, count);
  else
    qcow2_cache_forget_locked (img, host_idx, count);
}

static int
apply_refcount (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  uint64_t per = qcow2_refcount_slice (g);
  uint64_t idx = c->host_idx, left = c->count, n;
  struct qcow2_slice *t;
  int r = check_refcount (txn, c);

  if (r < 0)
    return r;
  for (; left > 0; idx += n, left -= n) {
    r = qcow2_refblock_locked (txn, idx, &t);
    assert (r == 0);           /* pinned by check_refcount */
    n = at_once (idx, left, t, per, g->refblock_entries);
    if (t)
      qcow2_refblock_change_locked (txn->img, t, idx, n, c->refcount,
                                    c->anchored);
  }
  return 0;
}

/* --- Tables ------------------------------------------------------------- */

/* An entry that names another table already would lose what that says. */
static bool
may_become (const struct qcow2_flat *f, uint64_t i, uint64_t host_off)
{
  uint64_t old;

  if (i >= f->nr)
    return false;
  old = f->v[i] & QCOW2_OFFSET_MASK;
  return old == 0 || old == host_off;
}

/* The cluster at HOST_OFF is a table from now on. */
static void
now_table (struct qcow2_image *img, uint64_t host_off)
{
  uint64_t idx = host_off >> img->header.geo.cluster_bits;

  qcow2_alloc_used_locked (img, idx, 1);
  qcow2_guard_put_locked (img, idx, 1, true);
}

static int
apply_l2_table (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (c->root != QCOW2_ROOT_ACTIVE || !host_off_ok (img, c->host_off) ||
      c->source_off == c->host_off ||
      (!may_become (&img->l1, c->table_idx, c->host_off) &&
       !may_become (&img->l1, c->table_idx, c->source_off)))
    return -EINVAL;
  if (c->source_off != 0 && !host_off_ok (img, c->source_off))
    return -EINVAL;
  r = qcow2_cache_create_locked (txn, c->host_off, c->source_off, false);
  if (r < 0)
    return r;
  qcow2_flat_set (&img->l1, c->table_idx, c->host_off | QCOW2_L2_COPIED);
  now_table (img, c->host_off);
  return 0;
}

static int
apply_refblock (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (!host_off_ok (img, c->host_off) ||
      !may_become (&img->reftable, c->table_idx, c->host_off))
    return -EINVAL;
  r = qcow2_cache_create_locked (txn, c->host_off, 0, true);
  if (r < 0)
    return r;
  qcow2_flat_set (&img->reftable, c->table_idx, c->host_off);
  now_table (img, c->host_off);
  return 0;
}

static int
apply_anchor_table (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  int r;

  if (!host_off_ok (img, c->host_off) ||
      !may_become (&img->anchor.l1, c->table_idx, c->host_off))
    return -EINVAL;
  r = qcow2_anchor_create_locked (img, c->table_idx, c->host_off);
  if (r < 0)
    return r;
  now_table (img, c->host_off);
  return 0;
}

/* --- HEADER ------------------------------------------------------------- */

static bool
aligned_or_zero (const struct qcow2_image *img, uint64_t off)
{
  return off % img->header.geo.cluster_size == 0 && off < QCOW2_MAX_HOST_OFF;
}

/* Tables only grow, within QEMU's limits. */
static bool
header_ok (const struct qcow2_image *img,
           const struct qcow2_header_fields *h)
{
  uint64_t bytes;

  if (!mul_u64 (h->reftable_clusters, img->header.geo.cluster_size, &bytes) ||
      bytes > QCOW2_MAX_REFTABLE_BYTES || bytes / 8 < img->reftable.nr)
    return false;
  if (h->anchor_l1_entries > QCOW2_MAX_L1_BYTES / 8 ||
      h->anchor_l1_entries < img->anchor.l1.nr)
    return false;
  return h->reftable_off != 0 && aligned_or_zero (img, h->reftable_off) &&
    aligned_or_zero (img, h->snapshots_off) &&
    aligned_or_zero (img, h->anchor_l1_off) &&
    (h->nr_snapshots == 0) == (h->snapshots_off == 0) &&
    (h->anchor_l1_entries == 0) == (h->anchor_l1_off == 0) &&
    h->nr_snapshots <= QCOW2_MAX_SNAPSHOTS;
}

/* Move *T, if it is not there already. */
static int
moved (const struct qcow2_flat *t, uint64_t host_off, uint64_t nr,
       struct qcow2_flat *out)
{
  memset (out, 0, sizeof *out);
  if (t->host_off == host_off && t->nr == nr)
    return 0;
  return qcow2_flat_copy (t, host_off, nr, out);
}

static void
replace (struct qcow2_flat *t, const struct qcow2_flat *by)
{
  if (!by->v)
    return;
  qcow2_flat_free (t);
  *t = *by;
}

/* What the header itself holds; the rest is in the snapshot table. */
static bool
same_in_file (const struct qcow2_header_fields *a,
              const struct qcow2_header_fields *b)
{
  return a->reftable_off == b->reftable_off &&
    a->reftable_clusters == b->reftable_clusters &&
    a->nr_snapshots == b->nr_snapshots &&
    a->snapshots_off == b->snapshots_off;
}

static int
apply_header (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_header_fields *h = &c->header;
  struct qcow2_flat reftable, l1;
  int r;

  if (!header_ok (img, h))
    return -EINVAL;
  r = qcow2_anchor_resize (img, h->anchor_l1_entries);
  if (r < 0)
    return r;
  r = moved (&img->reftable, h->reftable_off, (uint64_t)
             h->reftable_clusters * img->header.geo.cluster_size / 8,
             &reftable);
  if (r < 0)
    return r;
  r = moved (&img->anchor.l1, h->anchor_l1_off, h->anchor_l1_entries, &l1);
  if (r < 0) {
    qcow2_flat_free (&reftable);
    return r;
  }
  replace (&img->reftable, &reftable);
  replace (&img->anchor.l1, &l1);
  if (!same_in_file (&img->fields, h))
    img->header_dirty = true;
  img->fields = *h;
  qcow2_alloc_set_bound_locked (img);
  return 0;
}

int
qcow2_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  assert (lock_held (&txn->img->lock));
  switch (c->type) {
  case QCOW2_CHANGE_L2:
    return apply_l2 (txn, c);
  case QCOW2_CHANGE_REFCOUNT:
    return apply_refcount (txn, c);
  case QCOW2_CHANGE_L2_TABLE:
    return apply_l2_table (txn, c);
  case QCOW2_CHANGE_REFBLOCK:
    return apply_refblock (txn, c);
  case QCOW2_CHANGE_ANCHOR_TABLE:
    return apply_anchor_table (txn, c);
  case QCOW2_CHANGE_HEADER:
    return apply_header (txn, c);
  case QCOW2_CHANGE_BITMAP:
    return host_off_ok (txn->img, c->host_off) ?
      qcow2_bitmap_apply_locked (txn, c) : -EINVAL;
  }
  return -EINVAL;
}

int
qcow2_change_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  int r = qcow2_apply_locked (txn, c);

  if (r == 0)
    qcow2_report_locked (txn->img, c);
  return r;
}

void
qcow2_set_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           uint64_t refcount, bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .count = 1,
    .refcount = refcount, .anchored = anchored,
  };
  int r = qcow2_change_locked (txn, &c);

  assert (r == 0);
  (void) r;
}

void
qcow2_set_log (struct qcow2_image *img, const struct qcow2_log *log)
{
  img->log = *log;
}
