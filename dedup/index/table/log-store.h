/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the log store: a cuckoo hash table in RAM of the youngest entries.
 *
 * It has 2^order buckets of 4 entries; each hash may be in two buckets, and is
 * kept whole.  Source: SILT (SOSP 2011) section 4.1; QEMU RFC V8.  Not thread
 * safe: the caller holds its lock.
 */
#ifndef DEDUP_LOG_STORE_H
#define DEDUP_LOG_STORE_H

#include "hash.h"

#define DEDUP_DELETED UINT64_MAX      /* value of a tombstone */

#define DEDUP_BUCKET_SLOTS 4
#define DEDUP_MAX_KICKS 128

struct dedup_entry {
  struct dedup_hash hash;
  uint64_t value;
};

struct dedup_log_store;

/* Makes an empty log store.  -EINVAL: ORDER is out of range; -ENOMEM. */
int dedup_log_store_new (unsigned order, struct dedup_log_store **out)
  MUST_CHECK;
/* Frees LS, which is being copied no longer.  NULL is fine. */
void dedup_log_store_free (struct dedup_log_store *ls);
/* Removes all entries, as if LS were new; it is being copied no longer. */
void dedup_log_store_clear (struct dedup_log_store *ls);

/* Inserts an entry, or replaces the value of a hash that is there.  VALUE may
 * be DEDUP_DELETED.  -ENOSPC: there is no place, and nothing was changed;
 * -EINVAL: VALUE is 0. */
int dedup_log_store_insert (struct dedup_log_store *ls,
                            const struct dedup_hash *hash,
                            uint64_t value) MUST_CHECK;

/* Returns true and *VALUE (perhaps DEDUP_DELETED) if the hash is there. */
bool dedup_log_store_lookup (const struct dedup_log_store *ls,
                             const struct dedup_hash *hash,
                             uint64_t *value);

/* Starts to fetch what a lookup of HASH will touch into the CPU's cache. */
void dedup_log_store_prefetch (const struct dedup_log_store *ls,
                               const struct dedup_hash *hash);

/* Returns the number of entries, tombstones included. */
size_t dedup_log_store_count (const struct dedup_log_store *ls);
/* Returns the number of tombstones. */
size_t dedup_log_store_deleted (const struct dedup_log_store *ls);
/* Returns the number of entries at which LS is full: 93 % of 4 * 2^order. */
size_t dedup_log_store_capacity (const struct dedup_log_store *ls);
unsigned dedup_log_store_order (const struct dedup_log_store *ls);
/* Returns the bytes of memory that LS takes. */
size_t dedup_log_store_memory (const struct dedup_log_store *ls);

/* Returns true and the entry in SLOT, or false if that is empty.  Slots are
 * numbered bucket * 4 + position, below 4 * 2^order. */
bool dedup_log_store_slot (const struct dedup_log_store *ls, size_t slot,
                           struct dedup_hash *hash, uint64_t *value);

/* A copy of all entries as they are at one moment, which is made in parts while
 * others change the log store: a part that is about to change is copied first.  The
 * caller allocates it; one lock must protect LS and all copies of it. */
struct dedup_log_copy {
  /* Of the caller: takes an entry (not NULL). */
  void (*take) (void *opaque, const struct dedup_entry *e);
  void *opaque;
  uint8_t *copied;               /* dedup_log_copy_parts of LS bytes, all 0 */
  /* Of log-store.c: */
  struct dedup_log_store *ls;    /* NULL: the copy is complete */
  size_t next;                   /* part to be looked at next */
  struct dedup_log_copy *other;  /* of the same log store */
};

/* Returns the number of parts of LS; of 0 if LS is NULL. */
size_t dedup_log_copy_parts (const struct dedup_log_store *ls);
/* Starts a copy of LS. */
void dedup_log_copy_start (struct dedup_log_copy *c,
                           struct dedup_log_store *ls);
/* Copies MAX parts more at the most.  Returns whether there are more.  A copy that
 * was started goes on until this returned false, or dedup_log_copy_stop. */
bool dedup_log_copy_some (struct dedup_log_copy *c, size_t max);
void dedup_log_copy_stop (struct dedup_log_copy *c);
/* Goes on with the copies of LS, which must be complete before LS is cleared or
 * freed; as dedup_log_copy_some. */
bool dedup_log_store_let_copy (struct dedup_log_store *ls, size_t max);

/* Computes the two buckets of a hash among 2^ORDER (docs/on-disk.md 3.3). */
void dedup_buckets (const struct dedup_hash *hash, unsigned order,
                    uint64_t bucket[2]);

#endif
