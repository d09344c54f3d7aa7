/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses what an open image holds plain: data that was written with compress_later,
 * or before the image was to be compressed.  A part of dedup.h, which includes it.
 *
 * Each guest cluster with plain data is written again, through the pipeline, which
 * compresses and packs it elsewhere.  The index leads there from then on, so guest clusters
 * that share the plain cluster find the compressed data, and it is free when the last one
 * has left.  For clients, nothing changes.
 *
 * Data that does not shrink stays where it is.  Data of snapshots, and of tables that several
 * disks share, is compressed for all of them (docs/on-disk.md 14.4).
 */
#ifndef DEDUP_DEDUP_COMPRESS_H
#define DEDUP_DEDUP_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct dedup_pool;
struct dedup_compress_work;

struct dedup_compress_params {
  bool all;                     /* look at all data; else only at what was written since
                                 * the last time, or is there from before the image was
                                 * opened with compress_later */
  /* Keeps requests off NR guest clusters of a root while they are compressed; -ENOENT:
   * the root is gone.  UNLOCK ends that.  NULL: nobody else uses the image. */
  int (*lock) (void *opaque, unsigned root, uint64_t guest_idx, size_t nr);
  void (*unlock) (void *opaque);
  void *opaque;
};

struct dedup_compress_figures { /* all of disks, in clusters of the disk */
  uint64_t found_bytes;         /* plain data that is to be looked at, in all */
  uint64_t read_bytes;          /* of that so far */
  uint64_t compressed_bytes;
  uint64_t too_large;           /* guest clusters that stay: their data does not shrink */
  uint64_t shared;              /* ... disks that are not compressed may need it */
  uint64_t doubtful;            /* ... their data could not be read or is not what the
                                 * index knows; a scrub tells */
};

/* Returns whether there is something to do without ALL. */
bool dedup_compress_due (struct dedup_pool *pool);
/* Returns whether clients have read something since it was asked before; for images that
 * are compressed later.  Any thread. */
bool dedup_compress_met_readers (struct dedup_pool *pool);
/* Begins; one at a time (-EBUSY).  -ENOTSUP: the image has no store, is read-only, or
 * new data is not compressed; without ALL, it is not to be compressed later.  Ended by
 * dedup_compress_end. */
int dedup_compress_begin (struct dedup_pool *pool,
                          const struct dedup_compress_params *p,
                          struct dedup_compress_work **out) MUST_CHECK;
/* Does some milliseconds of work.  1: there is more; 0: the end; -errno: the step may
 * be tried again.  One call at a time. */
int dedup_compress_step (struct dedup_compress_work *c) MUST_CHECK;
/* Any thread. */
void dedup_compress_figures (struct dedup_compress_work *c,
                             struct dedup_compress_figures *f);
/* What was not looked at is due when a client has written something again. */
void dedup_compress_end (struct dedup_compress_work *c);

#endif
