/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes an index to be measured: that of a real store on a real file, with its
 * background loop, without guest data.  Any failure ends the program. */
#ifndef BENCH_INDEX_DISK_H
#define BENCH_INDEX_DISK_H

#include "index-measure.h"
#include "index-private.h"
#include "pool.h"

struct bench {
  struct io_store *io;
  struct dedup_pool *d;
  struct srv_loop *loop;
  uint64_t last_change_ns;
  uint64_t index_memory;       /* bound; 0: none */
  unsigned order;              /* of log stores; 0: the default */
  uint64_t nr_waits;           /* how often an insertion found no room */
  uint64_t first;              /* first of the clusters for data */
  /* Finds the clusters that are free.  NULL: merges take none as free. */
  void (*is_dead) (void *disk, const uint64_t *values, size_t nr, bool *dead);
};

/* Makes a new file at PATH, with room for NR clusters of 4 KiB of data from
 * B->first on (reserved in memory, nothing is written there), and opens it. */
void bench_create (struct bench *b, const char *path, uint64_t nr);
/* Opens a file that was made before; returns when it is at rest. */
void bench_again (struct bench *b, const char *path);
void bench_open (struct bench *b, bool with_loop);
void bench_stop_loop (struct bench *b);

/* Logs NR entries, as one operation does. */
void bench_insert (struct bench *b, const struct dedup_hash *h,
                   const uint64_t *host_idx, size_t nr);
/* Looks up NR keys; returns how many have the expected value. */
size_t bench_look_up (struct bench *b, struct dedup_probe *p,
                      const uint64_t *expected, size_t nr);
/* Waits until no merge is due. */
void bench_settle (struct bench *b);
/* Returns the bytes of memory that only the index needs. */
uint64_t bench_memory (struct bench *b);

#endif
