/* SPDX-License-Identifier: BSD-3-Clause */
/* Walks a root for the checker: counts its L1 table, its L2 tables and the
 * clusters that their entries refer to.
 *
 * COPIED is checked on the active root only, against the refcounts in the
 * file, as qemu-img does; but no entry of any root may carry it for an
 * anchored cluster, and no L2 entry of a disk for a cluster whose refcount is
 * not 1.  So the stored refcounts must have been marked, and the anchor walked,
 * before (check.c).  An entry that cannot be right is reported and not followed.
 * One thread, no lock; data is not read.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "check.h"

/* These bits must be 0 (specification, "L1 table entry" and "Standard Cluster
 * Descriptor"). */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)
#define L2_RESERVED_V2 (L2_RESERVED | QCOW2_L2_ZERO)

#define SECTOR 512

struct walk {
  const struct check_root *root;
  uint64_t l1_idx;
  uint32_t weight;             /* references that an entry stands for */
};

static bool
stored_one (const struct check *c, uint64_t host_off)
{
  return c->marks[host_off / c->geo->cluster_size] & CHECK_STORED_ONE;
}

static bool
anchored (const struct check *c, uint64_t host_off)
{
  return c->marks[host_off / c->geo->cluster_size] & CHECK_ANCHORED;
}

/* Checks the COPIED flag of an entry that points to HOST_OFF, a cluster that
 * was counted. */
static void
check_copied (struct check *c, const struct walk *w,
              const struct check_site *site, uint64_t host_off, bool copied)
{
  char where[CHECK_SITE_TEXT];

  if (w->root->kind == CHECK_ROOT_ANCHOR || c->rebuilding)
    return;
  check_site_text (site, where, sizeof where);
  if (copied && anchored (c, host_off))
    check_corrupt (c, "%s%s: COPIED is set, but the cluster at 0x%" PRIx64
                   " is anchored", site->what, where, host_off);
  else if (w->root->kind == CHECK_ROOT_ACTIVE &&
           copied != stored_one (c, host_off))
    check_corrupt (c, "%s%s: COPIED is %s, but the refcount of the cluster at "
                   "0x%" PRIx64 " is %s1", site->what, where,
                   copied ? "set" : "not set", host_off, copied ? "not " : "");
  else if (w->root->kind == CHECK_ROOT_DISK && copied &&
           !stored_one (c, host_off))
    check_corrupt (c, "%s%s: COPIED is set, but the refcount of the cluster at "
                   "0x%" PRIx64 " is not 1", site->what, where, host_off);
}

static void
check_reserved (struct check *c, const struct check_site *site,
                uint64_t entry, uint64_t reserved)
{
  char where[CHECK_SITE_TEXT];

  if (entry & reserved)
    check_corrupt (c, "%s%s: reserved bits are set in its entry, 0x%016"
                   PRIx64, site->what,
                   check_site_text (site, where, sizeof where), entry);
}

static uint8_t
data_mark (const struct walk *w)
{
  return w->root->kind == CHECK_ROOT_ANCHOR ? CHECK_ANCHORED : CHECK_GUEST;
}

/* Checks an entry of the anchor: by docs/on-disk.md section 2 it is 0 or its
 * own offset; COPIED has no meaning in it. */
static void
check_anchor_entry (struct check *c, const struct walk *w,
                    uint64_t guest_off, uint64_t entry)
{
  if (w->root->kind == CHECK_ROOT_ANCHOR &&
      (entry & ~QCOW2_L2_COPIED) != guest_off)
    check_corrupt (c, "anchor: the entry for offset 0x%" PRIx64 " is 0x%016"
                   PRIx64 ", not that offset", guest_off, entry);
}

/* Counts the clusters that a compressed entry touches.  Offset and size share
 * its low 62 bits; the size is in sectors less one (specification, "Compressed
 * Clusters Descriptor"). */
static void
walk_compressed (struct check *c, const struct walk *w,
                 struct check_site *site, uint64_t entry)
{
  unsigned shift = 62 - (c->geo->cluster_bits - 8);
  uint64_t host_off = entry & ((UINT64_C (1) << shift) - 1);
  uint64_t bits = entry & ~(QCOW2_L2_COPIED | QCOW2_L2_COMPRESSED);
  uint64_t len = ((bits >> shift) + 1) * SECTOR - host_off % SECTOR;
  char where[CHECK_SITE_TEXT];

  site->what = "compressed cluster";
  if (entry & QCOW2_L2_COPIED)
    check_corrupt (c, "%s%s: COPIED is set", site->what,
                   check_site_text (site, where, sizeof where));
  check_anchor_entry (c, w, site->guest_off, entry);
  (void) check_count_range (c, site, host_off, len, data_mark (w));
}

/* Checks an entry whose data is in an external file, where it must lie at its
 * guest offset.  Such data has no refcounts. */
static void
check_data_file_entry (struct check *c, const struct check_site *site,
                       uint64_t entry)
{
  char where[CHECK_SITE_TEXT];

  if (qcow2_has_place (c->geo, entry) &&
      (entry & QCOW2_OFFSET_MASK) != site->guest_off)
    check_corrupt (c, "%s%s: its offset in the data file is 0x%" PRIx64,
                   site->what, check_site_text (site, where, sizeof where),
                   entry & QCOW2_OFFSET_MASK);
}

static void
walk_standard (struct check *c, const struct walk *w,
               struct check_site *site, uint64_t entry)
{
  uint64_t host_off = entry & QCOW2_OFFSET_MASK;

  site->what = "data cluster";
  /* In extended entries the zero flag is reserved, too. */
  check_reserved (c, site, entry,
                  c->geo->version < 3 || qcow2_extended_l2 (c->geo) ?
                  L2_RESERVED_V2 : L2_RESERVED);
  check_anchor_entry (c, w, site->guest_off, entry);
  if (qcow2_has_data_file (c->geo)) {
    check_data_file_entry (c, site, entry);
    return;
  }
  if (host_off != 0 &&
      check_count_table (c, site, host_off, c->geo->cluster_size,
                         data_mark (w)))
    check_copied (c, w, site, host_off, entry & QCOW2_L2_COPIED);
}

/* Adds one entry of the active disk to the figures of info and check. */
static void
count_entry (struct qcow2_check_result *r, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED) {
    r->compressed_clusters++;
    r->mapped_clusters++;
  }
  else if (entry & QCOW2_L2_ZERO)
    r->zero_clusters++;
  else if (entry & QCOW2_OFFSET_MASK)
    r->mapped_clusters++;
}

/* Checks the subcluster bitmap of an extended entry: an allocated subcluster
 * needs a host cluster and is not zero, too; a compressed cluster has no
 * subclusters, and the anchor has whole clusters only. */
static void
check_subclusters (struct check *c, const struct walk *w,
                   const struct check_site *site, uint64_t entry,
                   uint64_t bitmap)
{
  uint64_t allocated = bitmap & QCOW2_BITMAP_ALLOCATED;
  char where[CHECK_SITE_TEXT];
  const char *wrong = NULL;

  if (entry & QCOW2_L2_COMPRESSED)
    wrong = bitmap ? "in a compressed cluster's entry" : NULL;
  else if (allocated & bitmap >> 32)
    wrong = "marks subclusters as both allocated and zero";
  else if (allocated && !qcow2_has_place (c->geo, entry))
    wrong = "in an entry without a host cluster";
  else if (w->root->kind == CHECK_ROOT_ANCHOR &&
           bitmap != (entry ? QCOW2_BITMAP_ALLOCATED : 0))
    wrong = "in the anchor, which has whole clusters only";
  if (wrong)
    check_corrupt (c, "cluster%s: subcluster bitmap 0x%016" PRIx64 " %s",
                   check_site_text (site, where, sizeof where), bitmap, wrong);
}

/* Returns the standard entry that count_entry counts an extended one as. */
static uint64_t
standard_entry (uint64_t entry, uint64_t bitmap)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return entry;
  if (bitmap & QCOW2_BITMAP_ALLOCATED)
    return entry;
  return bitmap ? QCOW2_L2_ZERO : 0;
}

static void
walk_l2_entry (struct check *c, const struct walk *w, unsigned i,
               uint64_t entry, uint64_t bitmap)
{
  const bool extended = qcow2_extended_l2 (c->geo);
  uint64_t guest_idx = w->l1_idx * c->geo->l2_entries + i;
  struct check_site site = {
    .root = w->root->name, .guest_off = guest_idx * c->geo->cluster_size,
    .weight = w->weight,
  };

  /* Entries past the end of the disk may hold VM state: not counted here. */
  if (w->root->kind == CHECK_ROOT_ACTIVE && guest_idx < c->geo->nr_clusters)
    count_entry (c->r, extended ? standard_entry (entry, bitmap) : entry);
  if (extended)
    check_subclusters (c, w, &site, entry, bitmap);
  if (entry & QCOW2_L2_COMPRESSED)
    walk_compressed (c, w, &site, entry);
  else
    walk_standard (c, w, &site, entry);
}

void
check_walk_l2 (struct check *c, const struct check_root *root,
               uint64_t l1_idx, uint64_t host_off, uint32_t weight)
{
  const struct walk w = { .root = root, .l1_idx = l1_idx, .weight = weight };
  unsigned words = c->geo->l2_entry_size / sizeof (be64), i;
  be64 v[2] = { be64_make (0), be64_make (0) };
  int r;

  r = io_pread (c->img->io, c->table, c->geo->cluster_size, host_off);
  if (r < 0) {
    check_error (c, -r, "L2 table at 0x%" PRIx64 ": cannot read: %s", host_off,
                 strerror (-r));
    return;
  }
  for (i = 0; i < c->geo->l2_entries; i++) {
    memcpy (v, c->table + i * words * sizeof v[0], words * sizeof v[0]);
    if (be64_load (v[0]) != 0 || be64_load (v[1]) != 0)
      walk_l2_entry (c, &w, i, be64_load (v[0]), be64_load (v[1]));
  }
}

static struct check_site
table_site (const struct check *c, const struct check_root *root,
            uint64_t l1_idx)
{
  return (struct check_site) {
    .what = "L2 table", .root = root->name,
    .guest_off = l1_idx * c->geo->l2_entries * c->geo->cluster_size,
  };
}

bool
check_l1_entry (struct check *c, const struct check_root *root,
                uint64_t l1_idx, uint64_t entry)
{
  const struct check_site site = table_site (c, root, l1_idx);
  uint64_t host_off = entry & QCOW2_OFFSET_MASK;

  check_reserved (c, &site, entry, L1_RESERVED);
  if (host_off == 0)
    check_corrupt (c, "L1 table of %s: entry %" PRIu64 " is 0x%016" PRIx64
                   ", which points to no table", root->name, l1_idx, entry);
  return host_off != 0 &&
    check_count_table (c, &site, host_off, c->geo->cluster_size, CHECK_L2);
}

void
check_l1_copied (struct check *c, const struct check_root *root,
                 uint64_t l1_idx, uint64_t entry)
{
  const struct walk w = { .root = root, .l1_idx = l1_idx };
  const struct check_site site = table_site (c, root, l1_idx);

  if (root->kind == CHECK_ROOT_ACTIVE)
    check_copied (c, &w, &site, entry & QCOW2_OFFSET_MASK,
                  entry & QCOW2_L2_COPIED);
}

static void
walk_l1_entry (struct check *c, void *opaque, uint64_t i, uint64_t entry)
{
  const struct check_root *root = opaque;
  const uint64_t host_off = entry & QCOW2_OFFSET_MASK;

  check_step (c);
  if (!check_l1_entry (c, root, i, entry))
    return;
  check_l1_copied (c, root, i, entry);
  if (c->has_disks && root->kind == CHECK_ROOT_ANCHOR)
    c->marks[host_off >> c->geo->cluster_bits] |= CHECK_ANCHOR_L2;
  check_walk_l2 (c, root, i, host_off, 1);
}

void
check_walk_root (struct check *c, const struct check_root *root)
{
  const struct check_site site = { .what = "L1 table", .root = root->name };

  if (check_count_table (c, &site, root->l1_off, root->l1_entries * 8,
                         CHECK_OWNED))
    check_each_entry (c, "L1 table", root->l1_off, root->l1_entries,
                      walk_l1_entry, (void *) root);
}
