/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a set of bytes as ranges that neither overlap nor touch, in order.
 * Private to io/.  Not safe for use by several threads at once: the caller
 * locks. */
#ifndef DEDUP_IO_RANGES_H
#define DEDUP_IO_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct io_range {
  uint64_t from, to;          /* bytes FROM to TO - 1 */
};

struct io_ranges {            /* starts all zero */
  struct io_range *v;         /* owned */
  size_t nr, capacity;
};

/* Adds FROM..TO, which is not empty; -ENOMEM changes nothing. */
int io_ranges_add (struct io_ranges *r, uint64_t from, uint64_t to) MUST_CHECK;
/* Removes FROM..TO, which is not empty; -ENOMEM changes nothing. */
int io_ranges_remove (struct io_ranges *r, uint64_t from, uint64_t to) MUST_CHECK;
/* Returns whether the set has any byte of FROM..TO. */
bool io_ranges_overlap (const struct io_ranges *r, uint64_t from, uint64_t to);
/* Sets *GAP to the first range inside FROM..TO that the set has no byte of;
 * returns false if there is none. */
bool io_ranges_gap (const struct io_ranges *r, uint64_t from, uint64_t to,
                    struct io_range *gap);
void io_ranges_free (struct io_ranges *r);

#endif
