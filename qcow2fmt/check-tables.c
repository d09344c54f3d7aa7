/* SPDX-License-Identifier: BSD-3-Clause */
/* The checker's walk over the roots: L1 tables, L2 tables, and what their
 * entries refer to.
 *
 * COPIED is checked on the active root only, against the refcounts in the
 * file, as qemu-img does; but no entry of any root may carry it for an
 * anchored cluster.  An entry that cannot be right is told and not followed.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "check.h"

/* Specification, "L1 table entry" and "Standard Cluster Descriptor". */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)
#define L2_RESERVED_V2 (L2_RESERVED | QCOW2_L2_ZERO)

#define SECTOR 512

struct walk {
  const struct check_root *root;
  uint64_t l1_idx;
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

/* COPIED of an entry that points to HOST_OFF, which was counted. */
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

/* docs/on-disk.md section 2: an anchor entry is 0 or its own offset, and COPIED
 * says nothing in it. */
static void
check_anchor_entry (struct check *c, const struct walk *w,
                    uint64_t guest_off, uint64_t entry)
{
  if (w->root->kind == CHECK_ROOT_ANCHOR &&
      (entry & ~QCOW2_L2_COPIED) != guest_off)
    check_corrupt (c, "anchor: the entry for offset 0x%" PRIx64 " is 0x%016"
                   PRIx64 ", not that offset", guest_off, entry);
}

/* Offset and size share the low 62 bits; the size is in sectors less one
 * (specification, "Compressed Clusters Descriptor"). */
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

/* Data in an external file is not counted, and lies at its guest offset. */
static void
check_data_file_entry (struct check *c, const struct check_site *site,
                       uint64_t entry)
{
  char where[CHECK_SITE_TEXT];

  if (qcow2_has_place (c->geo, entry) &&
      (entry & QCOW2_OFFSET_MASK) != site->guest_off)
    check_corrupt (c, "%s%s: its place in the data file is 0x%" PRIx64,
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

/* What info and check tell of the active disk. */
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

/* The subclusters of an extended entry.  What is allocated has a place, and is
 * not zero; nothing is inside compressed ones, and the anchor's are whole. */
static void
check_subclusters (struct check *c, const struct walk *w,
                   const struct check_site *site, uint64_t entry,
                   uint64_t bitmap)
{
  uint64_t allocated = bitmap & QCOW2_BITMAP_ALLOCATED;
  char where[CHECK_SITE_TEXT];
  const char *wrong = NULL;

  if (entry & QCOW2_L2_COMPRESSED)
    wrong = bitmap ? "of a compressed cluster" : NULL;
  else if (allocated & bitmap >> 32)
    wrong = "which is both allocated and zero";
  else if (allocated && !qcow2_has_place (c->geo, entry))
    wrong = "without a cluster";
  else if (w->root->kind == CHECK_ROOT_ANCHOR &&
           bitmap != (entry ? QCOW2_BITMAP_ALLOCATED : 0))
    wrong = "of the anchor, which has no parts of clusters";
  if (wrong)
    check_corrupt (c, "cluster%s: subcluster bitmap 0x%016" PRIx64 " %s",
                   check_site_text (site, where, sizeof where), bitmap, wrong);
}

/* As a standard entry, for what is counted. */
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
  };

  /* Past the end of the disk there may be a snapshot's VM state. */
  if (w->root->kind == CHECK_ROOT_ACTIVE && guest_idx < c->geo->nr_clusters)
    count_entry (c->r, extended ? standard_entry (entry, bitmap) : entry);
  if (extended)
    check_subclusters (c, w, &site, entry, bitmap);
  if (entry & QCOW2_L2_COMPRESSED)
    walk_compressed (c, w, &site, entry);
  else
    walk_standard (c, w, &site, entry);
}

static void
walk_l2 (struct check *c, const struct walk *w, uint64_t host_off)
{
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
      walk_l2_entry (c, w, i, be64_load (v[0]), be64_load (v[1]));
  }
}

static void
walk_l1_entry (struct check *c, void *opaque, uint64_t i, uint64_t entry)
{
  struct walk w = { .root = opaque, .l1_idx = i };
  struct check_site site = {
    .what = "L2 table", .root = w.root->name,
    .guest_off = i * c->geo->l2_entries * c->geo->cluster_size,
  };
  uint64_t host_off = entry & QCOW2_OFFSET_MASK;

  check_step (c);
  check_reserved (c, &site, entry, L1_RESERVED);
  if (host_off == 0)
    check_corrupt (c, "L1 table of %s: entry %" PRIu64 " is 0x%016" PRIx64
                   ", which names no table", w.root->name, i, entry);
  else if (check_count_table (c, &site, host_off, c->geo->cluster_size,
                              CHECK_L2)) {
    if (w.root->kind == CHECK_ROOT_ACTIVE)
      check_copied (c, &w, &site, host_off, entry & QCOW2_L2_COPIED);
    walk_l2 (c, &w, host_off);
  }
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
