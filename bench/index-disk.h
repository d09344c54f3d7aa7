/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk's index to be measured: a real store on a real file, with its
 * background loop, without guest data.  Any failure ends the program. */
#ifndef BENCH_INDEX_DISK_H
#define BENCH_INDEX_DISK_H

#include "disk.h"
#include "index-private.h"

#define BATCH 64               /* lookups at once, at the most */

struct bench {
  struct io_store *io;
  struct dedup_disk *d;
  struct srv_loop *loop;
  uint64_t last_change_ns;
  uint64_t index_memory;       /* bound; 0: none */
  unsigned order;              /* of log stores; 0: as usual */
  uint64_t nr_waits;           /* insertions that found no room, tries */
  uint64_t first;              /* of the clusters for data */
  /* Which clusters are free?  NULL: none, as far as merges know. */
  void (*is_dead) (void *disk, const uint64_t *values, size_t nr, bool *dead);
};

/* Bytes written, calls to read, of all disks. */
uint64_t bench_written (void);
uint64_t bench_reads (void);

void bench_must (int r, const char *what);
uint64_t bench_splitmix (uint64_t x);
/* Key number I: 256 bits of SplitMix64's output. */
struct dedup_hash bench_key (uint64_t i);

struct bench_timer {           /* seconds: of the clock, of CPU */
  double wall, thread, process;
};
double bench_seconds (clockid_t clock);
struct bench_timer bench_now (void);
struct bench_timer bench_since (struct bench_timer t);

/* A new file at PATH, with room for NR clusters of 4 KiB of data, from B->first
 * on: reserved in memory, nothing is written there.  Opened. */
void bench_create (struct bench *b, const char *path, uint64_t nr);
/* One that was made before; returns when it is at rest. */
void bench_again (struct bench *b, const char *path);
void bench_open (struct bench *b, bool with_loop);
void bench_stop_loop (struct bench *b);

/* Log NR entries as one operation does. */
void bench_insert (struct bench *b, const struct dedup_hash *h,
                   const uint64_t *host_idx, size_t nr);
/* Look up NR keys; how many lead to what is expected. */
size_t bench_look_up (struct bench *b, struct dedup_probe *p,
                      const uint64_t *expected, size_t nr);
/* Wait until no merge is due. */
void bench_settle (struct bench *b);
size_t bench_tables (struct bench *b);
/* All that only the index needs, bytes. */
uint64_t bench_memory (struct bench *b);

#endif
