/* SPDX-License-Identifier: BSD-3-Clause */
/* Compacts an open image: empties clusters of which little is in use any more, because
 * the compressed data in them was overwritten.  A part of dedup.h, which includes it.
 *
 * A cluster with compressed data is free only when nobody uses any of it.  Compaction
 * finds the clusters with much dead data (qcow2-packed.h), and writes the guest
 * clusters that use them again, through the pipeline, which compresses and packs them
 * elsewhere.  Nothing gets new links to such a cluster meanwhile.  For clients, nothing
 * changes.
 *
 * Data of snapshots, and of tables that several disks share, is moved for all of them
 * (docs/on-disk.md 14.4).  Data stays where it is if it does not shrink, is being deleted, or
 * lies in a table that more disks and snapshots have than can be counted for one move.  A
 * cluster that has some of the last two can't be freed, so all that is in it stays.
 */
#ifndef DEDUP_DEDUP_COMPACT_H
#define DEDUP_DEDUP_COMPACT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct dedup_pool;
struct dedup_compact;

/* So much of what compressed data takes may be dead afterwards, unless something else is
 * asked for. */
#define DEDUP_COMPACT_PERCENT 10u
/* A compaction goes through the file so many times at the most.  Data that it moves may
 * leave dead bytes in clusters beside those that are emptied. */
#define DEDUP_COMPACT_PASSES 8u

struct dedup_compact_params {
  unsigned percent;             /* of dead bytes that are left, 1 to 99; 0: the
                                 * default */
  bool ends;                    /* the ends of sectors that operations have lost may be a
                                 * reason to compact, too: half of a sector each, as a
                                 * descriptor does not say where its data ends */
  /* Keeps requests off NR guest clusters of a root while they are moved; -ENOENT: the
   * root is gone.  UNLOCK ends that.  NULL: nobody else uses the image. */
  int (*lock) (void *opaque, unsigned root, uint64_t guest_idx, size_t nr);
  void (*unlock) (void *opaque);
  void *opaque;
  size_t max_packed, max_clusters, max_plan;    /* descriptors in memory; clusters that
                                                 * are emptied together, and that the work
                                                 * is foretold from.  0: the defaults (for
                                                 * tests) */
};

struct dedup_compact_figures {
  uint64_t clusters;            /* of the file that were chosen to be emptied */
  uint64_t dead_bytes;          /* in them */
  unsigned passes;              /* through the file, that moved something */
  uint64_t packed_bytes, packed_dead_bytes;     /* clusters with compressed data, and
                                                 * what is dead in them, as they were
                                                 * counted last */
  uint64_t shared_dead_bytes;   /* of these, those in clusters that are not emptied, as they
                                 * hold data that stays */
  uint64_t moved_bytes;         /* of disks, expanded */
  uint64_t handled_bytes;       /* the same, with what was to be moved and stayed */
  uint64_t to_move_bytes;       /* what that will be in all, foretold by each pass; 0: not
                                 * known yet */
  uint64_t left;                /* guest clusters that stay where they are */
  uint64_t doubtful;            /* of these, those whose data could not be read or is not
                                 * what the index knows; a scrub tells */
};

/* Begins a compaction; one at a time (-EBUSY).  -ENOTSUP: the image has no store, is
 * read-only, or new data is not compressed.  Ended by dedup_compact_end. */
int dedup_compact_begin (struct dedup_pool *pool,
                         const struct dedup_compact_params *p,
                         struct dedup_compact **out) MUST_CHECK;
/* Does some milliseconds of work.  1: there is more; 0: the end; -errno: the step may
 * be tried again.  One call at a time. */
int dedup_compact_step (struct dedup_compact *c) MUST_CHECK;
/* The same, in a smaller operation unless that would lose much, so that who competes for a
 * processor or the image lock waits less. */
int dedup_compact_small_step (struct dedup_compact *c) MUST_CHECK;
/* Any thread. */
void dedup_compact_figures (struct dedup_compact *c,
                            struct dedup_compact_figures *f);
void dedup_compact_end (struct dedup_compact *c);

#endif
