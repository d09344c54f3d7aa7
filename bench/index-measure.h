/* SPDX-License-Identifier: BSD-3-Clause */
/* What the programs that measure an index share: keys, clocks, counters and
 * lookups.  Any failure ends the program. */
#ifndef BENCH_INDEX_MEASURE_H
#define BENCH_INDEX_MEASURE_H

#include <stdint.h>
#include <time.h>

#include "index.h"
#include "io.h"

#define BATCH 64               /* lookups at once, at the most */

/* Return the bytes written, and the number of calls that read, of all disks. */
uint64_t bench_written (void);
uint64_t bench_reads (void);

void bench_must (int r, const char *what);
uint64_t bench_splitmix (uint64_t x);
/* Returns key number I: 256 bits of SplitMix64's output. */
struct dedup_hash bench_key (uint64_t i);

struct bench_timer {           /* seconds: by the clock, and of CPU */
  double wall, thread, process;
};
double bench_seconds (clockid_t clock);
struct bench_timer bench_now (void);
struct bench_timer bench_since (struct bench_timer t);

/* Returns a store that passes on to S, which it closes with itself, and whose
 * bytes and calls are counted. */
struct io_store *bench_counted (struct io_store *s);

/* Looks up NR keys in X; returns how many have the expected value. */
size_t bench_find (struct lock *lock, struct dedup_index *x,
                   struct dedup_probe *p, const uint64_t *expected, size_t nr);
/* Returns the number of tables that a lookup may have to ask. */
size_t bench_nr_tables (struct lock *lock, struct dedup_index *x);

#endif
