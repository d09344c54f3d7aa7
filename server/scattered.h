/* SPDX-License-Identifier: BSD-3-Clause */
/* Remembers which scattered parts of a disk were read in sequence, so that
 * they are moved to one place when the server is idle (defragment.c).
 *
 * A mark is a bit for each unit of guest bytes: a MiB, or more where the disk
 * is so large that the bits would take more than a MiB of memory.
 */
#ifndef DEDUP_SCATTERED_H
#define DEDUP_SCATTERED_H

#include <stdbool.h>
#include <stdint.h>

#include "dedup.h"
#include "read-ahead.h"

#define SRV_SCATTERED_UNIT_BITS 20
#define SRV_SCATTERED_MAX_UNITS (UINT64_C (8) << 20)

struct srv_scattered {          /* all zero: nothing is ever marked */
  /* Constant after init: */
  struct dedup_pool *pool;
  unsigned cluster_bits;
  uint64_t nr_clusters;
  unsigned unit_bits;           /* log2 of a unit's bytes */
  uint64_t nr_units;
  uint64_t *marks;              /* NULL: off */

  /* Atomic, as are the words of marks: */
  uint64_t nr_marked;
  uint64_t read_ns;             /* CLOCK_MONOTONIC, of the last read, and */
  uint64_t sequential_ns;       /* the last one in sequence; 0: never */

  /* Of the one thread that takes marks: */
  uint64_t next_unit;           /* where to look for them */
};

/* Starts to mark units of the active disk of POOL; a unit is a cluster at
 * least.  -ENOMEM. */
int srv_scattered_init (struct srv_scattered *g, struct dedup_pool *pool)
  MUST_CHECK;
void srv_scattered_destroy (struct srv_scattered *g);

/* Notes a read of the disk.  A: what follows from it, or NULL if it is too
 * small to be in sequence.  Marks units that a reader has passed and that are
 * scattered, for which it asks the tables once; nothing where marks are off.
 * Any thread. */
void srv_scattered_note (struct srv_scattered *g, const struct srv_ahead *a);

bool srv_scattered_is_marked (const struct srv_scattered *g, uint64_t unit);
void srv_scattered_mark (struct srv_scattered *g, uint64_t unit);
/* Takes the next unit that is marked, and unmarks it; false: none is. */
bool srv_scattered_take (struct srv_scattered *g, uint64_t *unit);

#endif
