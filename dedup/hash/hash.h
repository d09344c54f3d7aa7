/* SPDX-License-Identifier: BSD-3-Clause */
/* Content hashes: the identity of a block, and cheap checksums. */
#ifndef DEDUP_HASH_H
#define DEDUP_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "cleanup.h"

enum dedup_hash_alg {     /* values of the header extension, byte 20 */
  DEDUP_HASH_SHA256 = 0,
  DEDUP_HASH_SHA3_256 = 1,
  DEDUP_HASH_SKEIN_256_256 = 2,
  DEDUP_HASH_XXH3_128 = 16,   /* keyed, and not cryptographic */
};

#define DEDUP_HASH_KEY_SIZE 16
#define DEDUP_HASH_SECRET_SIZE 192

struct dedup_hash {
  uint8_t b[32];
};

static inline bool
dedup_hash_equal (const struct dedup_hash *a, const struct dedup_hash *b)
{
  return memcmp (a->b, b->b, sizeof a->b) == 0;
}

/* Bytes I*8 to I*8+7 as a big-endian number; I is 0 to 3.  Buckets of the log
 * store and incarnations come from words 0 and 1, tags from word 2. */
uint64_t dedup_hash_word (const struct dedup_hash *h, unsigned i);

/* The name on the command line, or NULL; and back: -EINVAL. */
const char *dedup_hash_name (enum dedup_hash_alg alg);
int dedup_hash_parse (const char *name, enum dedup_hash_alg *alg) MUST_CHECK;
/* All names, for messages: "a, b or c". */
#define DEDUP_HASH_NAMES "sha256, sha3-256, skein-256-256 or xxh3-128"

/* May an equal hash stand for equal bytes (verify=off)?  Not if somebody who
 * chooses the bytes could make two that have it. */
bool dedup_hash_is_strong (enum dedup_hash_alg alg);
/* Is it computed with a key? */
bool dedup_hash_is_keyed (enum dedup_hash_alg alg);

/* An algorithm, ready for use; constant after init. */
struct dedup_hasher {
  enum dedup_hash_alg alg;
  uint8_t secret[DEDUP_HASH_SECRET_SIZE];   /* made from the key */
};

/* KEY has no effect on algorithms that are not keyed.  -EINVAL: no such
 * algorithm; -EIO if the library refuses. */
int dedup_hasher_init (struct dedup_hasher *h, enum dedup_hash_alg alg,
                       const uint8_t key[DEDUP_HASH_KEY_SIZE]) MUST_CHECK;
/* Hash LEN bytes.  Thread safe.  -EIO if the library refuses. */
int dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                        size_t len, struct dedup_hash *out) MUST_CHECK;

/* XXH3-64: checksums of journal blocks, pages and unhashed data. */
uint64_t dedup_checksum (const void *data, size_t len);

#endif
