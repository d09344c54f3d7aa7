/* SPDX-License-Identifier: BSD-3-Clause */
/* Goes through the guest clusters of all roots whose data may be moved, each L2 table once:
 * what compaction and compressing later have in common (mover.c).
 *
 * One thread at a time for each struct.
 */
#ifndef DEDUP_MOVER_H
#define DEDUP_MOVER_H

#include "pool.h"

struct dedup_mover {
  /* Constant; the lock is that of dedup-compact.h: */
  struct dedup_pool *pool;
  int (*lock) (void *opaque, unsigned root, uint64_t guest_idx, size_t nr);
  void (*unlock) (void *opaque);
  void *opaque;
  struct dedup_fresh *fresh;    /* gets marks for tables that are passed for now; or
                                 * NULL */
  bool to_compress;             /* passes roots whose data is not to be compressed */
  unsigned root, nr_roots;      /* where it is */
  uint64_t guest_off;
  struct qcow2_tables *seen;
  uint64_t table;               /* the last one that was looked at, + 1 */
  uint64_t table_idx;           /* its cluster */
  bool may;                     /* its data is moved */
};

/* Makes records name places, if the image has snapshots: only then a table that a snapshot
 * has is changed in place.  Before anything is moved; without locks. */
int dedup_mover_prepare (struct dedup_pool *pool) MUST_CHECK;
/* Begins with the first root.  The second goes on with the next one; false: there is
 * none. */
void dedup_mover_begin (struct dedup_mover *m);
bool dedup_mover_next (struct dedup_mover *m) MUST_CHECK;
/* Returns the size of the root in bytes; 0: it is gone, or its data is not moved. */
uint64_t dedup_mover_size (struct dedup_mover *m);
/* Describes what the root maps from guest_off on, before END_OFF, in at most MAX extents,
 * all of one table.  Passes tables whose data is not moved now, or was by way of another
 * root, and entries that are corrupt.  0: it has passed some, or all; -ENOENT: the root is
 * gone or has become smaller. */
int dedup_mover_map (struct dedup_mover *m, uint64_t end_off,
                     struct qcow2_extent *ext, size_t max) MUST_CHECK;
/* Calls WORK for NR guest clusters of one table, off which requests by way of this root are
 * kept meanwhile.  Its result; -ENOENT: the root is gone. */
int dedup_mover_run (struct dedup_mover *m, uint64_t guest_idx, size_t nr,
                     int (*work) (void *opaque, uint64_t guest_idx, size_t nr),
                     void *opaque) MUST_CHECK;
void dedup_mover_end (struct dedup_mover *m);

#endif
