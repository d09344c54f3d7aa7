/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the references of persistent dirty bitmaps (specification, "Bitmaps
 * extension"): their directory, tables and clusters.
 *
 * Promises that an image with bitmaps is not reported as leaking clusters.  As
 * in QEMU, bitmaps exist only while autoclear bit 0 is set.  Runs in the
 * checker's thread, after the roots were walked (check.c); what the bits mean
 * is left out, since only references matter here.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "check.h"
#include "header-format.h"

#define ENTRY_ALL_ONES UINT64_C (1)
#define ENTRY_RESERVED UINT64_C (0xff000000000001fe)

static void
bitmap_entry (struct check *c, void *opaque, uint64_t i, uint64_t entry)
{
  const struct check_site site = { .what = "bitmap cluster" };
  uint64_t host_off = entry & QCOW2_OFFSET_MASK;

  if ((entry & ENTRY_RESERVED) || ((entry & ENTRY_ALL_ONES) && host_off))
    check_corrupt (c, "bitmap table entry %" PRIu64 ": reserved bits are set, "
                   "0x%016" PRIx64, i, entry);
  else if (host_off)
    (void) check_count_table (c, &site, host_off, c->geo->cluster_size,
                              CHECK_OWNED);
}

static void
walk_bitmap (struct check *c, const struct qcow2_wire_bitmap *b)
{
  const struct check_site site = { .what = "bitmap table" };
  uint64_t host_off = be64_load (b->table_off);
  uint64_t nr = be32_load (b->table_entries);

  if (check_count_table (c, &site, host_off, nr * 8, CHECK_OWNED))
    check_each_entry (c, "bitmap table", host_off, nr, bitmap_entry, NULL);
}

static void
walk_directory (struct check *c, uint64_t host_off, uint64_t size,
                uint32_t nr)
{
  struct qcow2_wire_bitmap b;
  uint64_t at = 0, len;
  int r;

  while (nr-- > 0) {
    if (at + sizeof b > size) {
      check_corrupt (c, "bitmap directory at 0x%" PRIx64 ": it ends before "
                     "its last entry", host_off);
      return;
    }
    r = io_pread (c->img->io, &b, sizeof b, host_off + at);
    if (r < 0) {
      check_error (c, -r, "bitmap directory at 0x%" PRIx64 ": cannot read: "
                   "%s", host_off, strerror (-r));
      return;
    }
    walk_bitmap (c, &b);
    len = sizeof b + (uint64_t) be32_load (b.extra_size) +
      be16_load (b.name_size);
    at += round_up_pow2 (len, 8);
  }
}

void
check_bitmaps (struct check *c)
{
  const struct check_site site = { .what = "bitmap directory" };
  struct qcow2_wire_bitmaps ext;
  uint64_t host_off, size;
  uint32_t nr;

  /* A rebuild drops bitmaps that cannot be right: it does not count them. */
  if (!(c->geo->autoclear & QCOW2_AUTOCLEAR_BITMAPS) ||
      (c->rebuilding && qcow2_bitmaps_given_up (c->img)) ||
      c->img->header.bitmaps_ext_len != sizeof ext)
    return;
  memcpy (&ext, c->img->header.bitmaps_ext, sizeof ext);
  host_off = be64_load (ext.directory_off);
  size = be64_load (ext.directory_size);
  nr = be32_load (ext.nr_bitmaps);
  if (nr > QCOW2_MAX_BITMAPS)
    check_corrupt (c, "header: it claims %" PRIu32 " bitmaps", nr);
  else if (check_count_table (c, &site, host_off, size, CHECK_OWNED))
    walk_directory (c, host_off, size, nr);
}
