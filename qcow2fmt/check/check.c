/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks a whole image: counts every reference to every host cluster by walking
 * everything that refers to clusters, and compares the counts with the
 * refcounts in the file.
 *
 * Verdicts are those of `qemu-img check`: a refcount too low, a wrong COPIED
 * flag or a bad entry is a corruption, a refcount too high is a leak.  On top
 * of that come the rules of docs/on-disk.md section 2 (anchor, store areas),
 * tables that something else refers to as well, and refcounts of clusters
 * past the end of the file.
 *
 * Order: stored refcounts first (the COPIED rule needs to know which are 1),
 * the anchor before the other roots (they need to know what is anchored),
 * the comparison last.
 *
 * The checker reads the file, with decoders of its own: it shares neither
 * cache nor table code with the rest of the room, so that a mistake there
 * does not hide itself.  It runs in the caller's thread and takes no lock;
 * nothing may be changed in memory meanwhile.  It repairs nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "check.h"

/* In a snapshot table entry: the byte where the size of its extra data is, and
 * how much extra data version 3 requires (specification, "Snapshots"). */
#define SNAPSHOT_EXTRA_SIZE_AT 36
#define SNAPSHOT_EXTRA_V3 16

/* Returns how often check_step is called at the most; entries that are 0 are
 * skipped. */
static uint64_t
count_steps (const struct qcow2_image *img)
{
  uint64_t n = img->header.l1_entries + 2 * img->reftable.nr;
  size_t i;

  for (i = 0; i < img->snapshots.nr; i++)
    n += img->snapshots.v[i].l1_entries;
  return n;
}

static void
check_header (struct check *c)
{
  const struct check_site site = { .what = "header" };

  /* The first cluster of a file that was opened is inside it. */
  (void) check_count_range (c, &site, 0, c->geo->cluster_size, CHECK_OWNED);
}

/* Walks the anchor, or all other roots, each for itself. */
static void
walk_roots (struct check *c, bool anchor)
{
  struct check_root root;
  size_t r;

  for (r = 0; r <= c->img->snapshots.nr; r++)
    if (check_root_at (c, r, &root) &&
        (root.kind == CHECK_ROOT_ANCHOR) == anchor)
      check_walk_root (c, &root);
}

static bool
snapshot_extra_missing (const struct qcow2_snapshot_table *t, size_t i)
{
  be32 extra;

  memcpy (&extra, t->raw[i].bytes + SNAPSHOT_EXTRA_SIZE_AT, sizeof extra);
  return be32_load (extra) < SNAPSHOT_EXTRA_V3;
}

static void
check_snapshot_table (struct check *c)
{
  const struct qcow2_snapshot_table *t = &c->img->snapshots;
  const struct check_site site = { .what = "snapshot table" };
  size_t i;

  if (t->nr == 0)
    return;
  (void) check_count_table (c, &site, c->img->fields.snapshots_off,
                            t->raw_len, CHECK_OWNED);
  for (i = 0; c->geo->version >= 3 && i < t->nr; i++)
    if (snapshot_extra_missing (t, i))
      check_corrupt (c, "snapshot \"%.60s\": its entry in the snapshot table "
                     "is incomplete", t->v[i].id);
}

/* Checks one cluster of a store area.  False: it overlaps another area, and
 * the rest of this one is not checked. */
static bool
check_area_cluster (struct check *c, uint64_t host_idx)
{
  uint64_t host_off = host_idx * c->geo->cluster_size;
  uint8_t *mark = &c->marks[host_idx];

  if (*mark & CHECK_AREA) {
    check_corrupt (c, "store area at 0x%" PRIx64 " overlaps another one",
                   host_off);
    return false;
  }
  *mark |= CHECK_AREA;
  c->r->store_clusters++;
  if (!(*mark & CHECK_ANCHORED))
    check_corrupt (c, "store area at 0x%" PRIx64 ": the cluster is not "
                   "anchored", host_off);
  else if (check_count_get (c, host_idx) != 1)
    check_corrupt (c, "store area at 0x%" PRIx64 ": something else refers to "
                   "the cluster", host_off);
  return true;
}

static void
check_area (struct check *c, const struct qcow2_area *a)
{
  uint64_t cs = c->geo->cluster_size, end, i;

  if (a->host_off % cs != 0 || a->size % cs != 0 ||
      !add_u64 (a->host_off, a->size, &end) || end / cs > c->nr) {
    check_corrupt (c, "store area at 0x%" PRIx64 ", size 0x%" PRIx64
                   ": not inside the file, or not aligned",
                   a->host_off, a->size);
    return;
  }
  for (i = a->host_off / cs; i < end / cs; i++)
    if (!check_area_cluster (c, i))
      return;
}

static void
check_areas (struct check *c)
{
  size_t i;

  for (i = 0; i < c->p->nr_areas; i++)
    check_area (c, &c->p->areas[i]);
}

/* Reports a cluster that holds a table and is used for something else, too. */
static void
check_overlap (struct check *c, uint64_t host_idx)
{
  uint64_t host_off = host_idx * c->geo->cluster_size;
  uint64_t n = check_count_get (c, host_idx);
  uint8_t mark = c->marks[host_idx];

  if ((mark & CHECK_OWNED) && n != 1)
    check_corrupt (c, "table at 0x%" PRIx64 ": the cluster is referenced %"
                   PRIu64 " times", host_off, n);
  /* Not a finding: an L2 table in a cluster that held data before may still be
   * anchored. */
  else if ((mark & CHECK_L2) && (mark & CHECK_GUEST))
    check_corrupt (c, "L2 table at 0x%" PRIx64 ": the cluster is used for "
                   "data, too", host_off);
}

static void
tally (struct check *c, uint64_t host_idx)
{
  uint8_t mark = c->marks[host_idx];

  if (mark & CHECK_GUEST)
    c->r->data_clusters++;
  if ((mark & CHECK_GUEST) && (mark & CHECK_ANCHORED))
    c->r->anchored_clusters++;
  if (mark & (CHECK_OWNED | CHECK_L2))
    c->r->meta_clusters++;
  if ((mark & (CHECK_ANCHORED | CHECK_AREA)) == CHECK_ANCHORED &&
      check_count_get (c, host_idx) == 1)
    c->r->garbage++;
}

static void
check_clusters (struct check *c)
{
  uint64_t i;

  for (i = 0; i < c->nr; i++)
    if (c->marks[i]) {
      check_overlap (c, i);
      tally (c, i);
    }
}

void
check_references (struct check *c)
{
  check_header (c);
  walk_roots (c, true);
  if (c->has_disks)
    check_walk_paths (c);
  else
    walk_roots (c, false);
  check_snapshot_table (c);
  check_bitmaps (c);
  check_areas (c);
  check_clusters (c);
}

static void
check_everything (struct check *c)
{
  check_refcounts_mark (c);
  check_references (c);
  check_refcounts_compare (c);
  c->done = c->total;
  check_step (c);
}

int
qcow2_check (struct qcow2_image *img, const struct qcow2_check_params *p,
             struct qcow2_check_result *r, struct fault *f)
{
  struct check c = {
    .img = img, .geo = qcow2_geometry (img), .p = p, .r = r,
    .total = count_steps (img),
  };
  int ret;

  memset (r, 0, sizeof *r);
  r->guest_clusters = c.geo->nr_clusters;
  ret = check_count_init (&c, f);
  if (ret == 0)
    check_everything (&c);
  check_count_free (&c);
  return ret;
}
