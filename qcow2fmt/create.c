/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates an empty version 3 image, laid out as qemu-img create does:
 *
 *   cluster 0: header | refcount table | refcount blocks | active L1 table
 *
 * The active disk of a pool is one sector, and its L1 table has room for the
 * longest disk that the pool may hold, because the size in the header grows
 * with the disks (qcow2_size_for_header).
 *
 * The refcount blocks cover just these clusters.  Until all of them are durable
 * a mark is in place of the header, so that an image whose creation was
 * interrupted is recognized and can be created again.  The L1 table is all
 * zeroes: a file is extended, which makes them; on a device, which may hold
 * other bytes, they are written.  No threads.  Creating a store is left to
 * dedup/, above this room.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "header-format.h"
#include "image.h"

/* The mark of an unfinished image, at the start of its first sector. */
static const char making_mark[16] = QCOW2_MAKING_MARK;
#define MARK_BYTES 4096u        /* written with it: a block of any device */

struct layout {
  uint64_t reftable_clusters, nr_refblocks, l1_clusters;
  uint64_t total;              /* clusters, with the header's */
};

static int
check_params (const struct qcow2_create_params *p, struct fault *f)
{
  if (p->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
      p->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
    return fault_usage (f, "cluster size must be from 512 bytes to 2 MiB");
  if (p->refcount_order > 6)
    return fault_usage (f, "refcount width must be from 1 to 64 bits");
  if (p->compression_type > 1)
    return fault_usage (f, "compression type must be zlib or zstd");
  if (p->virtual_size == 0 && p->max_disk_size == 0)
    return fault_usage (f, "disk size must not be 0");
  if (p->virtual_size > INT64_MAX - 511 || p->max_disk_size > INT64_MAX - 511)
    return fault_usage (f, "disk size is too large");
  return 0;
}

/* Sets geometry and L1 size.  lay_out sets the offsets. */
static int
derive_header (const struct qcow2_create_params *p, struct qcow2_header *h,
               struct fault *f)
{
  struct qcow2_geometry *g = &h->geo;
  uint64_t l1_entries, limit, longest;

  memset (h, 0, sizeof *h);
  g->version = 3;
  g->cluster_bits = p->cluster_bits;
  g->cluster_size = UINT64_C (1) << p->cluster_bits;
  g->compression_type = p->compression_type;
  g->refcount_bits = 1u << p->refcount_order;
  g->refblock_entries = g->cluster_size * 8 / g->refcount_bits;
  g->l2_entry_size = sizeof (be64);
  g->l2_entries = g->cluster_size / g->l2_entry_size;
  /* QEMU counts a disk in sectors and would not see a part of one. */
  g->virtual_size = round_up_pow2 (MAX_OF (p->virtual_size, 1), 512);
  g->nr_clusters = div_round_up (g->virtual_size, g->cluster_size);
  longest = div_round_up (MAX_OF (g->virtual_size, p->max_disk_size),
                          g->cluster_size);
  l1_entries = div_round_up (longest, g->l2_entries);
  limit = QCOW2_MAX_L1_BYTES / sizeof (be64);
  if (l1_entries > limit)
    return fault_usage (f, "disk size is above the maximum of %llu bytes for "
                        "clusters of %llu bytes",
                        (unsigned long long)
                        (limit * g->l2_entries * g->cluster_size),
                        (unsigned long long) g->cluster_size);
  h->l1_entries = l1_entries;
  return 0;
}

/* Computes the layout.  The refcount blocks count themselves and the table that
 * lists them, so it repeats until nothing grows; each round adds less than the
 * one before. */
static void
lay_out (struct qcow2_header *h, struct layout *l)
{
  const struct qcow2_geometry *g = &h->geo;
  uint64_t before;

  *l = (struct layout) {
    .l1_clusters = div_round_up (h->l1_entries * sizeof (be64),
                                 g->cluster_size),
  };
  do {
    before = l->total;
    l->total = 1 + l->reftable_clusters + l->nr_refblocks + l->l1_clusters;
    l->nr_refblocks = div_round_up (l->total, g->refblock_entries);
    l->reftable_clusters = div_round_up (l->nr_refblocks * sizeof (be64),
                                         g->cluster_size);
  } while (l->total != before);
  h->fields.reftable_off = g->cluster_size;
  h->fields.reftable_clusters = l->reftable_clusters;
  h->l1_off = (l->total - l->l1_clusters) * g->cluster_size;
}

/* Sets entry I of refcounts BITS wide, which was 0, to 1. */
static void
set_one (uint8_t *refcounts, unsigned bits, uint64_t i)
{
  if (bits >= 8)
    refcounts[(i + 1) * (bits / 8) - 1] = 1;
  else
    refcounts[i * bits / 8] |= 1 << (i * bits % 8);
}

/* Fills BUF with the refcount table and the blocks, in the order of the
 * file. */
static void
fill_refcounts (const struct qcow2_geometry *g, const struct layout *l,
                uint8_t *buf)
{
  uint8_t *blocks = buf + l->reftable_clusters * g->cluster_size;
  uint64_t i, off;
  be64 entry;

  for (i = 0; i < l->nr_refblocks; i++) {
    off = (1 + l->reftable_clusters + i) * g->cluster_size;
    entry = be64_make (off);
    memcpy (buf + i * sizeof entry, &entry, sizeof entry);
  }
  for (i = 0; i < l->total; i++)
    set_one (blocks, g->refcount_bits, i);
}

/* Writes the mark and zeroes to the first LEN bytes and syncs.  BUF is all zeroes, before
 * and after. */
static int
write_mark (struct io_store *io, uint64_t len, uint8_t *buf)
{
  int r;

  memcpy (buf, making_mark, sizeof making_mark);
  r = io_pwrite (io, buf, len, 0);
  memset (buf, 0, sizeof making_mark);
  return r < 0 ? r : io_sync (io);
}

int
qcow2_mark_unfinished (struct io_store *io)
{
  CLEANUP_FREE uint8_t *buf = aligned_zero_new (MARK_BYTES);

  return buf ? write_mark (io, MARK_BYTES, buf) : -ENOMEM;
}

int
qcow2_is_unfinished (struct io_store *io)
{
  char head[sizeof making_mark];
  int r = io_pread (io, head, sizeof head, 0);

  return r < 0 ? r : memcmp (head, making_mark, sizeof head) == 0;
}

/* Makes the file TOTAL bytes long, with zeroes behind the first cluster.  On a
 * device other bytes may be there. */
static int
set_size (struct io_store *io, uint64_t total, uint64_t cluster_size)
{
  int r = io_truncate (io, cluster_size);

  return r < 0 ? r : io_truncate (io, total);
}

static int
clear_l1 (struct io_store *io, const struct qcow2_header *h,
          const struct layout *l)
{
  return io_max_size (io) == UINT64_MAX ? 0
    : io_pwrite_zeroes (io, h->l1_off, l->l1_clusters * h->geo.cluster_size);
}

/* Checks that the tables end inside the device, if IO is one. */
static int
check_device (struct io_store *io, uint64_t end_off, struct fault *f)
{
  if (end_off <= io_max_size (io))
    return 0;
  return fault_set (f, FAULT_UNSUPPORTED, ENOSPC, UINT64_MAX, "the device is "
                    "too small: its tables would end at byte %llu",
                    (unsigned long long) end_off);
}

/* Writes the whole image: the mark before anything else, and the header last.  BUF, all
 * zeroes, has room for the refcount table and blocks, or for the header. */
static int
write_image (struct io_store *io, const struct qcow2_header *h,
             const struct layout *l, uint8_t *buf)
{
  const uint64_t size = h->geo.cluster_size;
  int r;

  if ((r = write_mark (io, size, buf)) < 0 ||
      (r = set_size (io, l->total * size, size)) < 0)
    return r;
  fill_refcounts (&h->geo, l, buf);
  if ((r = clear_l1 (io, h, l)) < 0 ||
      (r = io_pwrite (io, buf, (l->reftable_clusters + l->nr_refblocks) *
                      size, size)) < 0 ||
      (r = io_sync (io)) < 0)
    return r;
  qcow2_header_create (buf, h);
  r = io_pwrite (io, buf, size, 0);
  return r < 0 ? r : io_sync (io);
}

int
qcow2_create (struct io_store *io, const struct qcow2_create_params *p,
              struct fault *f)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct qcow2_header h;
  struct layout l;
  int r;

  if ((r = check_params (p, f)) < 0 || (r = derive_header (p, &h, f)) < 0)
    return r;
  lay_out (&h, &l);
  if ((r = check_device (io, l.total * h.geo.cluster_size, f)) < 0)
    return r;
  /* At most 2 clusters of 2 MiB, or 600 KiB of small ones: 65536 clusters
   * of L1 at 512 bytes, with refcounts of 8 bytes. */
  buf = aligned_zero_new ((l.reftable_clusters + l.nr_refblocks) *
                          h.geo.cluster_size);
  if (buf == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = write_image (io, &h, &l, buf);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "writing the new image: %s",
                     strerror (-r));
  return 0;
}
