/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes the contents of each 4 KiB block of the disk from its offset. */
#ifndef BENCH_CONTENT_H
#define BENCH_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define CONTENT_UNIT 4096

enum content_dup {
  DUP_NONE,     /* every unit is new */
  DUP_ALL,      /* unit N of the region = unit N of the source range */
  DUP_HALF,     /* as ALL or new, by a coin for each run */
  DUP_SCATTER,  /* runs of the source range in random order */
};

/* A generation and a number name the contents of a unit; two units are equal if
 * and only if both are.  New contents at guest unit U are (gen, U).  A source
 * range was written before as new contents of source_gen. */
struct content {
  enum content_dup dup;
  uint64_t gen;
  uint64_t source_gen;
  uint64_t first_unit;    /* where the region starts; */
  uint64_t nr_units;      /* SCATTER: a multiple of run_units */
  uint64_t source_unit;   /* where the source range starts */
  uint64_t run_units;     /* at least 1 */
};

/* Fills a buffer of LEN bytes (a multiple of the unit) with the bytes that
 * all contents have in common, before it is stamped for the first time. */
void content_prepare (void *buf, size_t len);

/* Turns a prepared buffer into the contents of guest_off .. + len, by writing
 * a few words of each unit.  Both are multiples of the unit. */
void content_stamp (const struct content *c, void *buf, uint64_t guest_off,
                    size_t len);

/* Returns whether BUF holds the contents that content_stamp makes.  If not,
 * *BAD_OFF is the guest offset of the first wrong unit. */
MUST_CHECK bool content_matches (const struct content *c, const void *buf,
                                 uint64_t guest_off, size_t len,
                                 uint64_t *bad_off);

/* Returns the place of I, below N, in a permutation of 0 .. n-1 that KEY
 * chooses. */
uint64_t permute (uint64_t i, uint64_t n, uint64_t key);

#endif
