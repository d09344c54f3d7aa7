/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the owner of an index that is measured: it gives the index its storage,
 * and has it freeze and merge in the background.
 *
 * Entries are made in order: number I has the key bench_key (I) and the value
 * I + 1.  One thread makes all of these calls.  Any failure ends the program.
 */
#ifndef BENCH_INDEX_OWNER_H
#define BENCH_INDEX_OWNER_H

#include <stdbool.h>

#include "index-measure.h"

struct bench_owner {
  /* Makes an index for NR entries at PATH, and opens it, with background work. */
  void (*create) (void *opaque, const char *path, uint64_t nr);
  /* Opens one that was made before; returns when it is at rest.  May be NULL. */
  void (*again) (void *opaque, const char *path);
  /* Enters the next NR entries, as one operation does. */
  void (*insert) (void *opaque, const struct dedup_hash *h,
                  const uint64_t *values, size_t nr);
  /* Waits until no merge is due. */
  void (*settle) (void *opaque);
  /* Ends background work, if there is any, and frees the index.  CRASH: as a
   * crash leaves it, with all entries durable. */
  void (*close) (void *opaque, bool crash);
  /* Opens it again, without background work and without filters. */
  void (*open) (void *opaque);
  void (*load_filters) (void *opaque);
  /* Closes the storage. */
  void (*end) (void *opaque);
  struct lock *(*lock) (void *opaque);
  struct dedup_index *(*index) (void *opaque);
  void (*figures) (void *opaque, struct dedup_index_figures *f);
  /* Returns how many insertions found no room. */
  uint64_t (*nr_waits) (void *opaque);
  void *opaque;
};

/* Makes owners.  DISK: a pool in a new qcow2 image, as the server has it.  PLAIN: no
 * image, no log, only tables, in a file or in memory. */
void bench_disk_owner (struct bench_owner *o);
void bench_plain_owner (struct bench_owner *o, bool in_memory);

#endif
