/* SPDX-License-Identifier: BSD-3-Clause */
/* Content hashes, which identify a block's bytes, and cheap checksums.
 *
 * Choose an algorithm, by name with dedup_hash_parse or by its number on disk;
 * make a hasher of it once with dedup_hasher_init; then any number of threads
 * may hash blocks with dedup_hash_compute.  Whatever the algorithm, a hash has
 * 32 bytes that look random, so tables may take their bits from all of them.
 * The checksum needs no preparation, and tells torn or stale bytes from whole
 * ones; an attacker can forge it.
 */
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

/* Returns bytes I*8 to I*8+7 as a big-endian number; I is 0 to 3.  Buckets of
 * the log store and of incarnations come from words 0 and 1, tags from word 2,
 * and the order of runs from word 0. */
uint64_t dedup_hash_word (const struct dedup_hash *h, unsigned i);

/* Returns the name that ALG has on the command line, or NULL if there is no
 * such algorithm: ALG may be any byte of a header extension. */
const char *dedup_hash_name (enum dedup_hash_alg alg);
/* Finds the algorithm that has this name.  -EINVAL: there is none. */
int dedup_hash_parse (const char *name, enum dedup_hash_alg *alg) MUST_CHECK;
/* Names all algorithms, for messages: "a, b or c". */
#define DEDUP_HASH_NAMES "sha256, sha3-256, skein-256-256 or xxh3-128"

/* Returns true if equal hashes may stand for equal bytes (verify=off), because
 * nobody who chooses the bytes can make two blocks with one hash. */
bool dedup_hash_is_strong (enum dedup_hash_alg alg);
/* Returns true if the hash is computed with a key. */
bool dedup_hash_is_keyed (enum dedup_hash_alg alg);

/* An algorithm that is ready for use; constant after init.  It owns nothing. */
struct dedup_hasher {
  enum dedup_hash_alg alg;
  uint8_t secret[DEDUP_HASH_SECRET_SIZE];   /* made from the key */
};

/* Prepares H for ALG.  KEY has no effect on algorithms that are not keyed.
 * -EINVAL: there is no such algorithm; -EIO: the crypto library refused. */
int dedup_hasher_init (struct dedup_hasher *h, enum dedup_hash_alg alg,
                       const uint8_t key[DEDUP_HASH_KEY_SIZE]) MUST_CHECK;
/* Hashes LEN bytes.  Thread safe.  -EIO: the crypto library refused. */
int dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                        size_t len, struct dedup_hash *out) MUST_CHECK;

/* Returns the XXH3-64 of LEN bytes: the checksum of journal blocks, of pages
 * and of data that is not hashed.  Thread safe. */
uint64_t dedup_checksum (const void *data, size_t len);

#endif
