/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks an image, and rebuilds its refcounts.
 *
 * It is a library of its own above that of the format (qcow2.h): the tables in
 * memory, the allocator and transactions know nothing of it.  It reads the file
 * from one thread, while nobody else uses the image.
 */
#ifndef QCOW2_CHECK_PUBLIC_H
#define QCOW2_CHECK_PUBLIC_H

#include "qcow2.h"

struct qcow2_check_params {
  const struct qcow2_area *areas;   /* of the store */
  size_t nr_areas;
  void (*problem) (void *opaque, bool is_leak, const char *line);
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

struct qcow2_check_result {
  uint64_t corruptions, leaks, garbage, errors;
  uint64_t guest_clusters;         /* of the active disk */
  uint64_t mapped_clusters;        /* with data of their own here */
  uint64_t zero_clusters, compressed_clusters;
  uint64_t data_clusters;          /* host clusters of guest data, all roots */
  uint64_t anchored_clusters;      /* of them indexed or once indexed */
  uint64_t meta_clusters;          /* tables */
  uint64_t store_clusters;         /* areas */
};

/* Recomputes every refcount from header, tables, snapshots, anchor and areas
 * and compares it with the stored one; checks the flags, alignment and range of
 * every entry.  In an image with disks, also the debts of their tables; it may
 * have bit 48 if it was closed with debts, but nothing to replay.  Reads the file,
 * not the cache: nothing may be changed in memory. */
int qcow2_check (struct qcow2_image *img, const struct qcow2_check_params *p,
                 struct qcow2_check_result *r, struct fault *f) MUST_CHECK;

/* Rebuilds all refcounts, in a table for MIN_CLUSTERS or more, clears the dirty
 * bit, and drops bitmaps that can't be right; one write of the header switches
 * to all that.  IMG, open for writing, must be closed and opened again
 * afterwards. */
int qcow2_rebuild_refcounts (struct qcow2_image *img, uint64_t min_clusters,
                             struct fault *f) MUST_CHECK;

#endif
