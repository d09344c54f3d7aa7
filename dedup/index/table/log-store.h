/* SPDX-License-Identifier: BSD-3-Clause */
/* The log store: a cuckoo hash table in RAM of the youngest index entries.
 *
 * 2^order buckets of 4 entries, two buckets per key, partial-key free: whole
 * hashes are kept.  Source: SILT (SOSP 2011) section 4.1; QEMU RFC V8.  Not
 * thread safe: the caller holds its lock.
 */
#ifndef DEDUP_LOG_STORE_H
#define DEDUP_LOG_STORE_H

#include "hash.h"

#define DEDUP_DELETED UINT64_MAX      /* host index of a tombstone */

#define DEDUP_BUCKET_SLOTS 4
#define DEDUP_MAX_KICKS 128

struct dedup_entry {
  struct dedup_hash hash;
  uint64_t value;
};

struct dedup_log_store;

int dedup_log_store_new (unsigned order, struct dedup_log_store **out)
  MUST_CHECK;
void dedup_log_store_free (struct dedup_log_store *ls);
/* Empty again, as if new. */
void dedup_log_store_clear (struct dedup_log_store *ls);

/* Insert, or replace the value of a hash that is there.  VALUE may be
 * DEDUP_DELETED.  -ENOSPC: full, nothing changed (no entry is lost). */
int dedup_log_store_insert (struct dedup_log_store *ls,
                            const struct dedup_hash *hash,
                            uint64_t value) MUST_CHECK;

/* True and *VALUE (perhaps DEDUP_DELETED) if the hash is there. */
bool dedup_log_store_lookup (const struct dedup_log_store *ls,
                             const struct dedup_hash *hash,
                             uint64_t *value);

/* Start to fetch what a lookup of HASH will touch into the CPU's cache. */
void dedup_log_store_prefetch (const struct dedup_log_store *ls,
                               const struct dedup_hash *hash);

size_t dedup_log_store_count (const struct dedup_log_store *ls);
size_t dedup_log_store_deleted (const struct dedup_log_store *ls);
/* Entries at which it counts as full: 93 % of 4 * 2^order. */
size_t dedup_log_store_capacity (const struct dedup_log_store *ls);
unsigned dedup_log_store_order (const struct dedup_log_store *ls);
size_t dedup_log_store_memory (const struct dedup_log_store *ls);

/* Walk slot by slot: slot = bucket * 4 + position, below
 * 4 * 2^order.  False: that slot is empty. */
bool dedup_log_store_slot (const struct dedup_log_store *ls, size_t slot,
                           struct dedup_hash *hash, uint64_t *value);

/* The two buckets of a hash in a table of 2^order (docs/on-disk.md 3.3). */
void dedup_buckets (const struct dedup_hash *hash, unsigned order,
                    uint64_t bucket[2]);

#endif
