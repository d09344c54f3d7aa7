/* SPDX-License-Identifier: BSD-3-Clause */
/* Plans the place of new store areas, and the tables that they and the growth
 * of the file need (docs/on-disk.md section 6).
 *
 * Everything new lies behind the frontier, where all refcounts are 0 and the
 * bytes are unknown, in this order:
 *
 *   areas | anchor L1 | refcount table | snapshot table |
 *   refcount blocks | anchor L2 tables
 *
 * each only if needed.  The refcount blocks count themselves, and the
 * refcount table must reach as far as the last of them, so the layout is
 * computed again until it no longer grows.
 *
 * A plan is a list of changes, HEADER first: the records of one group take
 * effect together, but are applied one by one, and each must fit the tables as
 * the ones before left them.  Making a plan neither writes nor changes
 * anything.  The tables that the HEADER change points to are ready in the
 * plan's buffers, and plan-write.c writes them.  Clusters of replaced tables
 * are freed only where their refcount says that nothing else uses them.  Where
 * one of them holds guest data, too (guard.c), the table's reference passes to
 * the anchor, as in drop.c.
 *
 * Runs at open only, single-threaded; takes the image's lock for functions that
 * need it.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "image.h"

#define MAX_REFTABLE (QCOW2_MAX_REFTABLE_BYTES / sizeof (be64))
#define MAX_L1 (QCOW2_MAX_L1_BYTES / sizeof (be64))

#define MAX_EXTRA 16           /* with more of them, replaced tables leak */

enum { WRITE_SNAPSHOTS, WRITE_REFTABLE, WRITE_ANCHOR_L1 };

/* A table that moves to cluster IDX and then has NR entries; if NR is 0, it
 * does not move. */
struct new_table {
  uint64_t idx, clusters, nr;
};

struct layout {
  uint64_t areas_end;          /* a cluster index, like all of these */
  struct new_table anchor_l1, reftable, snapshots;
  uint64_t refblocks_idx, nr_refblocks;
  uint64_t anchor_tables_idx, nr_anchor_tables;
  uint64_t end;
};

struct builder {
  struct qcow2_image *img;
  const struct qcow2_geometry *geo;
  struct qcow2_plan *plan;
  struct fault *f;
  uint64_t start;              /* the frontier */
  uint64_t areas_end;
  size_t nr_extra;             /* parts of the anchor, beside those of areas, */
  uint64_t extra[MAX_EXTRA];   /* that need a table */
  size_t snapshots_len;        /* of a new table, in bytes */
  uint32_t nr_snapshots;
  struct layout l;
  size_t max_changes;
};

/* --- The bound ------------------------------------------------------ */

/* Returns how many bytes of disks the file may have to hold.  In a pool that is
 * as much as the active L1 table has room for, the size of the longest disk. */
static uint64_t
disk_bytes (const struct qcow2_image *img)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t room = img->l1.nr * g->l2_entries * g->cluster_size;

  if (qcow2_has_disks (img) || (g->refcount_bits >= 32 &&
                                room / 2 > g->virtual_size))
    return MAX_OF (room, g->virtual_size);
  return g->virtual_size;
}

uint64_t
qcow2_growth_bound (struct qcow2_image *img)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t used = qcow2_host_frontier (img) << g->cluster_bits;
  uint64_t bytes, clusters;

  /* At most 2^61 by the L1 limit, so the first sum fits. */
  bytes = disk_bytes (img);
  bytes += bytes / 8;
  if (!add_u64 (bytes, used, &bytes) ||
      !add_u64 (bytes, UINT64_C (4) << 30, &bytes) ||
      bytes > QCOW2_MAX_HOST_OFF)
    bytes = QCOW2_MAX_HOST_OFF;
  clusters = div_round_up (bytes, g->cluster_size);
  clusters = MIN_OF (clusters, io_max_size (img->io) >> g->cluster_bits);
  clusters = MIN_OF (clusters, MAX_REFTABLE * g->refblock_entries);
  return MIN_OF (clusters, MAX_L1 * g->l2_entries);
}

/* --- Layout --------------------------------------------------------- */

static uint64_t
table_entry (const struct qcow2_flat *t, uint64_t i)
{
  return i < t->nr ? t->v[i] & QCOW2_OFFSET_MASK : 0;
}

/* Returns how many of the entries of T that cover clusters [from, to) are
 * empty. */
static uint64_t
count_missing (const struct qcow2_flat *t, uint64_t from, uint64_t to,
               uint64_t per_entry)
{
  uint64_t i, n = 0;

  if (from == to)
    return 0;
  for (i = from / per_entry; i <= (to - 1) / per_entry; i++)
    n += table_entry (t, i) == 0;
  return n;
}

struct replaced {              /* a cluster that may be replaced */
  uint64_t host_idx, refcount;
  bool anchored;
};

static int
look_locked (struct qcow2_txn *txn, void *opaque)
{
  struct replaced *c = opaque;

  return qcow2_get_refcount_locked (txn, c->host_idx, &c->refcount,
                                    &c->anchored);
}

/* Reads the refcount of cluster HOST_IDX of a table at HOST_OFF into C. */
static int
look_at (struct builder *b, uint64_t host_off, uint64_t host_idx,
         struct replaced *c)
{
  int r;

  *c = (struct replaced) { .host_idx = host_idx };
  r = qcow2_txn_run (b->img, look_locked, c);
  return r < 0 ? fault_io (b->f, -r, host_off, "reading refcounts: %s",
                           strerror (-r)) : 0;
}

/* Returns whether the anchor has a table for PART, or gets one by this plan. */
static bool
anchor_part_planned (const struct builder *b, uint64_t part)
{
  const uint64_t per = b->geo->l2_entries;

  if (table_entry (&b->img->anchor.l1, part) != 0)
    return true;
  if (b->areas_end > b->start && part >= b->start / per &&
      part <= (b->areas_end - 1) / per)
    return true;
  for (size_t i = 0; i < b->nr_extra; i++)
    if (b->extra[i] == part)
      return true;
  return false;
}

/* Plans anchor tables for those clusters of a table at HOST_OFF that something
 * else refers to: their references pass to the anchor if the table is
 * replaced. */
static int
find_shared (struct builder *b, uint64_t host_off, uint64_t bytes)
{
  uint64_t idx = host_off / b->geo->cluster_size, part;
  uint64_t end = idx + div_round_up (bytes, b->geo->cluster_size);
  struct replaced c;
  int r;

  for (; idx < end; idx++) {
    r = look_at (b, host_off, idx, &c);
    if (r < 0)
      return r;
    part = idx / b->geo->l2_entries;
    if (c.refcount > 1 && !c.anchored && !anchor_part_planned (b, part) &&
        b->nr_extra < MAX_EXTRA)
      b->extra[b->nr_extra++] = part;
  }
  return 0;
}

static void
place_table (struct new_table *t, uint64_t nr, uint64_t bytes,
             uint64_t cluster_size, uint64_t *next)
{
  t->idx = *next;
  t->nr = nr;
  t->clusters = div_round_up (bytes, cluster_size);
  *next += t->clusters;
}

/* Places refcount blocks and anchor tables from cluster NEXT on.  It repeats,
 * because the end depends on the blocks, and the blocks on the end. */
static void
place_refblocks (struct builder *b, uint64_t next)
{
  struct layout *l = &b->l;
  uint64_t before;

  l->refblocks_idx = next;
  l->nr_anchor_tables = count_missing (&b->img->anchor.l1, b->start,
                                       l->areas_end, b->geo->l2_entries) +
    b->nr_extra;
  do {
    before = l->nr_refblocks;
    l->anchor_tables_idx = next + before;
    l->end = next + before + l->nr_anchor_tables;
    l->nr_refblocks = count_missing (&b->img->reftable, b->start, l->end,
                                     b->geo->refblock_entries);
  } while (l->nr_refblocks != before);
}

/* Computes the layout with tables for LIMIT clusters. */
static void
lay_out (struct builder *b, uint64_t limit)
{
  const struct qcow2_geometry *g = b->geo;
  struct layout *l = &b->l;
  uint64_t next = b->areas_end;
  uint64_t nr_l1 = div_round_up (limit, g->l2_entries);
  uint64_t nr_reftable = div_round_up (limit, g->refblock_entries);

  *l = (struct layout) { .areas_end = b->areas_end };
  if (b->img->anchor.l1.nr < nr_l1)
    place_table (&l->anchor_l1, nr_l1, nr_l1 * sizeof (be64),
                 g->cluster_size, &next);
  if (b->img->reftable.nr < nr_reftable)
    place_table (&l->reftable, nr_reftable, nr_reftable * sizeof (be64),
                 g->cluster_size, &next);
  if (l->anchor_l1.nr > 0)
    place_table (&l->snapshots, b->nr_snapshots, b->snapshots_len,
                 g->cluster_size, &next);
  place_refblocks (b, next);
}

static int
check_limit (struct builder *b, uint64_t limit)
{
  const struct qcow2_geometry *g = b->geo;

  if (limit > QCOW2_MAX_HOST_OFF / g->cluster_size ||
      div_round_up (limit, g->refblock_entries) > MAX_REFTABLE ||
      div_round_up (limit, g->l2_entries) > MAX_L1)
    return fault_set (b->f, FAULT_UNSUPPORTED, ENOSPC, UINT64_MAX,
                      "the file would grow past the maximum for clusters of "
                      "%llu bytes and refcounts of %u bits",
                      (unsigned long long) g->cluster_size,
                      g->refcount_bits);
  return 0;
}

/* Computes the layout with a limit that grows until the plan itself fits under
 * it. */
static int
lay_out_to_fit (struct builder *b, uint64_t limit)
{
  int r;

  limit = MAX_OF (limit, b->areas_end);
  for (;;) {
    r = check_limit (b, limit);
    if (r < 0)
      return r;
    lay_out (b, limit);
    if (b->l.end <= limit)
      return 0;
    limit = b->l.end;
  }
}

static int
place_areas (struct builder *b, const uint64_t *size, size_t nr)
{
  const uint64_t cs = b->geo->cluster_size;
  uint64_t next = b->start;
  size_t i;

  for (i = 0; i < nr; i++) {
    assert (size[i] % cs == 0);
    b->plan->area_host_off[i] = next * cs;
    next += size[i] / cs;
    if (next > QCOW2_MAX_HOST_OFF / cs)
      return check_limit (b, next);
  }
  b->areas_end = next;
  return 0;
}

/* Measures the snapshot table that a new anchor would need. */
static int
measure_snapshots (struct builder *b)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  int r;

  r = qcow2_snapshot_encode (b->img, 0, 0, &buf, &b->snapshots_len,
                             &b->nr_snapshots);
  if (r == -ENOSPC)
    return fault_set (b->f, FAULT_UNSUPPORTED, ENOSPC, UINT64_MAX,
                      "no room for another snapshot in the snapshot table");
  return r < 0 ? fault_io (b->f, -r, UINT64_MAX, "%s", strerror (-r)) : 0;
}

/* --- Changes -------------------------------------------------------- */

static int
add_change (struct builder *b, const struct qcow2_change *c)
{
  struct qcow2_plan *p = b->plan;
  struct qcow2_change *bigger;

  if (p->nr_changes == b->max_changes) {
    b->max_changes = b->max_changes ? b->max_changes * 2 : 16;
    bigger = realloc (p->changes, b->max_changes * sizeof *bigger);
    if (bigger == NULL)
      return fault_io (b->f, ENOMEM, UINT64_MAX, "out of memory");
    p->changes = bigger;
  }
  p->changes[p->nr_changes++] = *c;
  return 0;
}

/* Adds a change of TYPE for each empty entry of T among those that cover
 * clusters [from, to).  Each gets a new table, from cluster HOST_IDX on. */
static int
add_tables (struct builder *b, enum qcow2_change_type type,
            const struct qcow2_flat *t, uint64_t from, uint64_t to,
            uint64_t per_entry, uint64_t host_idx)
{
  struct qcow2_change c = { .type = type };
  uint64_t i;
  int r;

  if (from == to)
    return 0;
  for (i = from / per_entry; i <= (to - 1) / per_entry; i++) {
    if (table_entry (t, i) != 0)
      continue;
    c.table_idx = i;
    c.host_off = host_idx++ * b->geo->cluster_size;
    r = add_change (b, &c);
    if (r < 0)
      return r;
  }
  return 0;
}

static int
add_refcounts (struct builder *b, uint64_t host_idx, uint64_t count,
               uint64_t refcount, bool anchored)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .refcount = refcount,
    .anchored = anchored,
  };
  int r;

  for (; count > 0; host_idx += c.count, count -= c.count) {
    c.host_idx = host_idx;
    c.count = MIN_OF (count, UINT32_MAX);
    r = add_change (b, &c);
    if (r < 0)
      return r;
  }
  return 0;
}

/* Adds the anchor's tables for references that pass to it, in front of those
 * for areas. */
static int
add_extra (struct builder *b)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_ANCHOR_TABLE };
  int r = 0;

  for (size_t i = 0; i < b->nr_extra && r == 0; i++) {
    c.table_idx = b->extra[i];
    c.host_off = (b->l.anchor_tables_idx + i) * b->geo->cluster_size;
    r = add_change (b, &c);
  }
  return r;
}

static int
add_new (struct builder *b)
{
  const struct layout *l = &b->l;
  int r;

  r = add_tables (b, QCOW2_CHANGE_REFBLOCK, &b->img->reftable, b->start,
                  l->end, b->geo->refblock_entries, l->refblocks_idx);
  if (r == 0)
    r = add_tables (b, QCOW2_CHANGE_ANCHOR_TABLE, &b->img->anchor.l1,
                    b->start, l->areas_end, b->geo->l2_entries,
                    l->anchor_tables_idx + b->nr_extra);
  if (r == 0)
    r = add_extra (b);
  if (r == 0)
    r = add_refcounts (b, b->start, l->areas_end - b->start, 1, true);
  if (r == 0)
    r = add_refcounts (b, l->areas_end, l->end - l->areas_end, 1, false);
  return r;
}

/* --- Replaced tables ------------------------------------------------ */

/* Adds changes that drop the reference of a replaced table to each cluster of
 * its BYTES at HOST_OFF, or pass it to the anchor if there are others.  Other
 * clusters stay as they are: where the image is not clean, a leak is the safe
 * choice. */
static int
add_freed (struct builder *b, uint64_t host_off, uint64_t bytes)
{
  uint64_t idx = host_off / b->geo->cluster_size;
  uint64_t end = idx + div_round_up (bytes, b->geo->cluster_size);
  uint64_t nr_alone = 0;       /* of the clusters before IDX: to be freed */
  struct replaced c;
  int r = 0;

  for (; idx < end && r == 0; idx++) {
    r = look_at (b, host_off, idx, &c);
    if (r < 0)
      return r;
    if (c.refcount == 1 && !c.anchored) {
      nr_alone++;
      continue;
    }
    r = add_refcounts (b, idx - nr_alone, nr_alone, 0, false);
    nr_alone = 0;
    if (r == 0 && c.refcount > 1 && !c.anchored &&
        anchor_part_planned (b, idx / b->geo->l2_entries))
      r = add_refcounts (b, idx, 1, c.refcount, true);
  }
  return r < 0 ? r : add_refcounts (b, idx - nr_alone, nr_alone, 0, false);
}

/* Returns the size of the present snapshot table in bytes.  A table that a plan
 * has switched to in this session has the entries of the slots and a new
 * anchor. */
static size_t
old_snapshots_len (const struct builder *b)
{
  const struct qcow2_image *img = b->img;

  if (img->fields.nr_snapshots == 0)
    return 0;
  if (img->fields.snapshots_off == img->snapshots.host_off)
    return img->snapshots.raw_len;
  return b->snapshots_len;
}

/* Calls find_shared for all tables that might be replaced. */
static int
find_all_shared (struct builder *b)
{
  const struct qcow2_header_fields *old = &b->img->fields;
  int r;

  r = find_shared (b, old->snapshots_off, old_snapshots_len (b));
  if (r == 0)
    r = find_shared (b, old->reftable_off,
                     old->reftable_clusters * b->geo->cluster_size);
  return r;
}

static int
add_replaced (struct builder *b)
{
  const struct qcow2_header_fields *old = &b->img->fields;
  const struct layout *l = &b->l;
  int r = 0;

  if (l->snapshots.nr > 0)
    r = add_freed (b, old->snapshots_off, old_snapshots_len (b));
  if (r == 0 && l->reftable.nr > 0)
    r = add_freed (b, old->reftable_off,
                   old->reftable_clusters * b->geo->cluster_size);
  if (r == 0 && l->anchor_l1.nr > 0)
    r = add_freed (b, old->anchor_l1_off,
                   old->anchor_l1_entries * sizeof (be64));
  return r;
}

/* --- The header and the tables it points to ------------------------- */

static int
add_header (struct builder *b)
{
  const struct layout *l = &b->l;
  const uint64_t cs = b->geo->cluster_size;
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_HEADER, .header = b->img->fields,
  };

  if (l->anchor_l1.nr == 0 && l->reftable.nr == 0)
    return 0;
  if (l->reftable.nr > 0) {
    c.header.reftable_off = l->reftable.idx * cs;
    c.header.reftable_clusters = l->reftable.clusters;
  }
  if (l->anchor_l1.nr > 0) {
    c.header.anchor_l1_off = l->anchor_l1.idx * cs;
    c.header.anchor_l1_entries = l->anchor_l1.nr;
    c.header.snapshots_off = l->snapshots.idx * cs;
    c.header.nr_snapshots = b->nr_snapshots;
  }
  b->plan->new_header = true;
  return add_change (b, &c);
}

/* Allocates the plan's buffer for table T, in whole clusters. */
static int
make_room (struct builder *b, int which, const struct new_table *t)
{
  struct qcow2_plan *p = b->plan;

  p->write_off[which] = t->idx * b->geo->cluster_size;
  p->write_len[which] = t->clusters * b->geo->cluster_size;
  p->write_buf[which] = aligned_zero_new (p->write_len[which]);
  if (p->write_buf[which] == NULL)
    return fault_io (b->f, ENOMEM, UINT64_MAX, "out of memory");
  return 0;
}

/* Copies OLD into a buffer for T, which has as many entries or more.  It takes
 * at most 8 MiB for a refcount table and 32 MiB for an L1. */
static int
copy_table (struct builder *b, int which, const struct new_table *t,
            const struct qcow2_flat *old)
{
  uint64_t i;
  be64 wire;
  int r;

  if (t->nr == 0)
    return 0;
  r = make_room (b, which, t);
  for (i = 0; r == 0 && i < old->nr; i++) {
    wire = be64_make (old->v[i]);
    memcpy (b->plan->write_buf[which] + i * sizeof wire, &wire, sizeof wire);
  }
  return r;
}

static int
copy_snapshots (struct builder *b)
{
  const struct new_table *t = &b->l.snapshots;
  CLEANUP_FREE uint8_t *buf = NULL;
  size_t len;
  uint32_t nr;
  int r;

  if (t->nr == 0)
    return 0;
  r = make_room (b, WRITE_SNAPSHOTS, t);
  if (r < 0)
    return r;
  r = qcow2_snapshot_encode (b->img, b->l.anchor_l1.idx * b->geo->cluster_size,
                             b->l.anchor_l1.nr, &buf, &len, &nr);
  if (r < 0)
    return fault_io (b->f, -r, UINT64_MAX, "%s", strerror (-r));
  assert (len == b->snapshots_len && nr == b->nr_snapshots);
  memcpy (b->plan->write_buf[WRITE_SNAPSHOTS], buf, len);
  return 0;
}

static int
copy_tables (struct builder *b)
{
  int r;

  r = copy_snapshots (b);
  if (r == 0)
    r = copy_table (b, WRITE_REFTABLE, &b->l.reftable, &b->img->reftable);
  if (r == 0)
    r = copy_table (b, WRITE_ANCHOR_L1, &b->l.anchor_l1,
                    &b->img->anchor.l1);
  return r;
}

/* --- Plans ---------------------------------------------------------- */

static void
find_start (struct builder *b)
{
  b->start = qcow2_host_frontier (b->img);
}

/* Checks that the layout ends inside the device, if the image is on one. */
static int
check_device (const struct builder *b)
{
  const uint64_t max = io_max_size (b->img->io);

  if (b->l.end <= max >> b->geo->cluster_bits)
    return 0;
  return fault_set (b->f, FAULT_UNSUPPORTED, ENOSPC, UINT64_MAX, "the device is "
                    "too small: its tables and journal would end at byte %llu",
                    (unsigned long long) (b->l.end * b->geo->cluster_size));
}

static int
build (struct builder *b, const uint64_t *area_size, size_t nr_areas,
       uint64_t max_clusters)
{
  int r;

  find_start (b);
  if ((r = measure_snapshots (b)) < 0 ||
      (r = place_areas (b, area_size, nr_areas)) < 0 ||
      (r = find_all_shared (b)) < 0 ||
      (r = lay_out_to_fit (b, max_clusters)) < 0 ||
      (r = check_device (b)) < 0 ||
      (r = add_header (b)) < 0 ||
      (r = add_new (b)) < 0 ||
      (r = add_replaced (b)) < 0)
    return r;
  b->plan->end_idx = b->l.end;
  return copy_tables (b);
}

int
qcow2_plan_new (struct qcow2_image *img, const uint64_t *area_size,
                size_t nr_areas, uint64_t max_clusters,
                struct qcow2_plan **plan, struct fault *f)
{
  struct qcow2_plan *p = calloc (1, sizeof *p);
  struct builder b = {
    .img = img, .geo = &img->header.geo, .plan = p, .f = f,
  };
  int r;

  if (p == NULL ||
      (p->area_host_off = calloc (nr_areas + 1, sizeof (uint64_t))) == NULL) {
    qcow2_plan_free (p);
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  r = build (&b, area_size, nr_areas, max_clusters);
  if (r < 0) {
    qcow2_plan_free (p);
    return r;
  }
  *plan = p;
  return 0;
}

void
qcow2_plan_free (struct qcow2_plan *plan)
{
  size_t i;

  if (plan == NULL)
    return;
  for (i = 0; i < QCOW2_PLAN_WRITES; i++)
    free (plan->write_buf[i]);
  free (plan->changes);
  free (plan->area_host_off);
  free (plan);
}
