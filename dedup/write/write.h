/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs operations on whole guest clusters: the write pipeline.  A write hashes,
 * claims, looks up, holds, compares, stores and links its clusters
 * (docs/ARCHITECTURE.md section 3).  Others unmap clusters, and take data into
 * the index that the image holds already.
 *
 * Calls are safe from any number of threads, and are made without locks.  The
 * caller keeps operations on the same guest cluster apart.  An operation is one
 * group of records: a recovery applies it whole or not at all.
 *
 * Results: 0 or -errno; -ENOSPC: the host is full, or the image may not grow.
 * After a failure the guest clusters of an operation are as they were.
 */
#ifndef DEDUP_WRITE_H
#define DEDUP_WRITE_H

#include "claim.h"
#include "hints.h"
#include "known.h"
#include "pack.h"
#include "upkeep.h"

struct dedup_writer {
  const struct dedup_base *b;
  struct dedup_store *s;
  struct dedup_upkeep *u;
  /* Constant after open: */
  bool dedup;                        /* false: nothing is hashed or linked */
  bool verify;                       /* compare bytes before linking */
  struct dedup_hints *hints;         /* NULL: read-only or dedup=off */
  /* Protected by the image lock: */
  bool descriptors_current;          /* the index has none that is out of date, but
                                      * for what this session has dropped */
  struct dedup_known known;          /* those that it led to when that became so */
  const uint64_t *emptying;          /* clusters that get no new links, as they are
                                      * being emptied (../compact.c), ascending */
  size_t nr_emptying;
  struct dedup_claims claims;
  struct dedup_pack pack;
  struct {                           /* since open */
    uint64_t stored, linked;         /* clusters written; shared instead */
    uint64_t mismatches;             /* named clusters with other bytes */
    uint64_t renewed;                /* entries, under a memory limit */
    uint64_t pieces_moved, clusters_moved;   /* by dedup_move */
  } counts;
};

/* Initializes W, all zero before.  B, S and U stay the caller's, who also sets
 * the constants.  Destroy frees the hints, too. */
void dedup_writer_init (struct dedup_writer *w, const struct dedup_base *b,
                        struct dedup_store *s, struct dedup_upkeep *u);
void dedup_writer_destroy (struct dedup_writer *w);

/* Writes NR clusters from BUF, at most DEDUP_CHUNK_CLUSTERS, as one operation:
 * dedup_write of dedup.h. */
int dedup_pipeline_write (struct dedup_writer *w, unsigned root,
                          const void *buf, uint64_t guest_idx, size_t nr)
  MUST_CHECK;
/* Returns whether the ascending list of NR clusters V has one from FIRST to
 * FIRST + COUNT - 1. */
bool dedup_any_between (const uint64_t *v, size_t nr, uint64_t first,
                        uint64_t count);
/* Returns the value that the index has for a hash; 0: none. */
uint64_t dedup_named_value (struct dedup_writer *w, const struct dedup_hash *h);
/* Trims or zeroes NR clusters, any number, in several operations if there are
 * many: dedup_unmap of dedup.h. */
int dedup_pipeline_unmap (struct dedup_writer *w, unsigned root,
                          uint64_t guest_idx, uint64_t nr,
                          enum dedup_unmap how) MUST_CHECK;
/* As dedup_rewrite of dedup.h. */
int dedup_pipeline_rewrite (struct dedup_writer *w, unsigned root, uint64_t guest_idx,
                            size_t nr, dedup_avoids *avoids, const void *opaque)
  MUST_CHECK;
struct dedup_compressed {            /* guest clusters with plain data */
  size_t moved;                      /* lead to compressed data now */
  size_t too_large;                  /* stay, as their data does not shrink */
  size_t shared;                     /* ... others may need their cluster */
  size_t doubtful;                   /* ... their data is bad, or not what the index
                                      * knows */
  size_t no_space;                   /* ... no space was found */
  size_t raced;                      /* lead to what a client has just written plain; or
                                      * their table cannot be changed now */
};
/* Compresses the data of those of NR guest clusters (at most DEDUP_CHUNK_CLUSTERS) that
 * is stored plain, as dedup_pipeline_rewrite stores data again: what somebody else links
 * later is the compressed data.  KEEP_SHARED: only clusters with one reference.  Counts
 * in *RES. */
int dedup_pipeline_compress (struct dedup_writer *w, unsigned root,
                             uint64_t guest_idx, size_t nr, bool keep_shared,
                             struct dedup_compressed *res) MUST_CHECK;
/* Finds the next range of data, and takes a range into the index:
 * dedup_existing_next and dedup_existing_index of dedup.h. */
int dedup_take_in_next (struct dedup_writer *w, uint64_t *guest_idx,
                        size_t *nr, struct dedup_existing *res) MUST_CHECK;
int dedup_take_in (struct dedup_writer *w, uint64_t guest_idx, size_t nr,
                   bool all, struct dedup_existing *res) MUST_CHECK;
/* As dedup_existing_count and dedup_can_index. */
int dedup_take_in_count (struct dedup_writer *w, uint64_t *guest_idx,
                         uint64_t *nr) MUST_CHECK;
bool dedup_can_take_in (const struct dedup_writer *w);
/* As dedup_is_scattered and dedup_defragment of dedup.h. */
bool dedup_move_would_help (const struct dedup_base *b, uint64_t guest_idx,
                            uint64_t nr);
int dedup_move (struct dedup_writer *w, uint64_t guest_idx, size_t nr)
  MUST_CHECK;

#endif
