/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a static filter, which tells for a hash that it may be in a
 * segment, or that it is not.  It takes about BITS bits an entry and has
 * 2^-BITS false positives, for any BITS from 1 to 16.
 *
 * Source: P. C. Dillinger and S. Walzer, "Ribbon filter: practically smaller
 * than Bloom and Xor" (2021): a linear system over GF(2), whose rows are 128
 * consecutive coefficients at a place that follows from the hash, solved by
 * Gauss elimination on the fly; the solution is stored by columns.
 *
 * A segment's filter is cut into shards by hash range, of some ten thousand
 * entries each, so that building takes little memory and stays in the cache,
 * and needs few spare rows.
 */
#ifndef DEDUP_FILTER_H
#define DEDUP_FILTER_H

#include "checked.h"
#include "hash.h"

#define DEDUP_FILTER_MAX_BITS 16
#define DEDUP_FILTER_SHARD 32768   /* entries of a shard, about */

/* The parts of a hash that filters use; the same for all filters. */
struct dedup_filter_key {
  uint64_t pos;                    /* word 0: the place in hash order */
  uint64_t lo, hi;                 /* coefficients */
  uint32_t fingerprint;
};
/* Computes the key of a hash. */
void dedup_filter_key (const struct dedup_hash *h, struct dedup_filter_key *k);

struct dedup_filter_shard {        /* one for each, and one behind the last */
  uint32_t first_block;            /* of BITS words each */
  uint32_t seed;
};

struct dedup_filter {
  uint32_t lo, hi;                 /* prefixes (hash >> 224) it is cut over */
  unsigned bits;
  uint32_t nr_shards;
  struct dedup_filter_shard *shards;
  /* The first columns of each block, after which most tests end, and then the
   * others, each with a block of padding.  HEAD owns the memory of both. */
  uint64_t *head, *tail;
  uint64_t inverse;                /* 2^64 / (hi - lo + 1) */
};

#define DEDUP_FILTER_HEAD 4        /* columns, or all if they are fewer */

/* Returns the number of shards for so many entries. */
uint32_t dedup_filter_shards (uint64_t nr_entries);
/* Fills in INVERSE, when LO and HI are known. */
void dedup_filter_init (struct dedup_filter *f);
/* Allocates HEAD and TAIL, when the shards are known.  The caller fills them
 * with dedup_filter_put.  -ENOMEM. */
int dedup_filter_alloc (struct dedup_filter *f) MUST_CHECK;
/* Frees what F has, and clears it. */
void dedup_filter_free (struct dedup_filter *f);

/* Returns the number of all words, as they are written (docs/on-disk.md section
 * 3.4): block by block, BITS words each. */
static inline uint64_t
dedup_filter_words (const struct dedup_filter *f)
{
  return (uint64_t) f->shards[f->nr_shards].first_block * f->bits;
}
/* Stores the words of one block. */
void dedup_filter_put (struct dedup_filter *f, uint64_t block,
                       const uint64_t *words);
/* Copies the words of one block, as they were put. */
void dedup_filter_get (const struct dedup_filter *f, uint64_t block,
                       uint64_t *words);
/* Returns the bytes of memory that F's tables take. */
size_t dedup_filter_memory (const struct dedup_filter *f);

/* The place of a key's bits.  Places are computed for many keys before the
 * first one is tested, so that memory has time to fetch them. */
struct dedup_filter_place {
  const uint64_t *head;            /* NULL: not in it */
  const struct dedup_filter *filter;
  uint64_t c[3];
  uint32_t fingerprint;
  uint32_t bits;                   /* to be compared; 0: it may be in it */
};
/* Computes the place of K in F, and starts to fetch it. */
void dedup_filter_find (const struct dedup_filter *f,
                        const struct dedup_filter_key *k,
                        struct dedup_filter_place *p);
/* Tests NR places.  Writes the positions of those whose keys may be in their
 * filters to MAYBE (room for NR), in order; returns their number. */
size_t dedup_filter_test (const struct dedup_filter_place *p, size_t nr,
                          uint16_t *maybe);

/* --- Building: keys come in hash order ----------------------------------- */

struct dedup_filter_builder;

/* Starts to build a filter of about NR_ENTRIES keys with prefixes LO to HI. */
int dedup_filter_builder_new (uint32_t lo, uint32_t hi, uint64_t nr_entries,
                              unsigned bits,
                              struct dedup_filter_builder **out) MUST_CHECK;
/* Adds a hash.  -EINVAL: no system of a shard could be solved, as these are no
 * uniform hashes; -ENOMEM. */
int dedup_filter_builder_add (struct dedup_filter_builder *b,
                              const struct dedup_hash *h) MUST_CHECK;
/* Builds the last shards; the caller frees *OUT.  Errors as above. */
int dedup_filter_builder_finish (struct dedup_filter_builder *b,
                                 struct dedup_filter *out) MUST_CHECK;
void dedup_filter_builder_free (struct dedup_filter_builder *b);

#endif
