/* SPDX-License-Identifier: BSD-3-Clause */
/* Owns nothing: names for hash algorithms, and calls into GnuTLS and xxHash.
 *
 * The content hash says that two clusters may be equal and with verify=off
 * that they are, so it is a cryptographic one.  The checksum only tells whole
 * blocks from torn or stale ones; it does not defend against an attacker, who
 * could write a matching checksum anyway.
 *
 * No state, so any thread may call.  GnuTLS initializes itself when it is
 * loaded.
 */
#include "hash.h"

#include <assert.h>
#include <errno.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <xxhash.h>

#include "wire.h"

static const struct {
  const char *name;
  gnutls_digest_algorithm_t digest;
} algs[] = {
  [DEDUP_HASH_SHA256] = { "sha256", GNUTLS_DIG_SHA256 },
};

#define NR_ALGS (sizeof algs / sizeof algs[0])

uint64_t
dedup_hash_word (const struct dedup_hash *h, unsigned i)
{
  be64 v;

  assert (i < sizeof h->b / sizeof v);
  memcpy (&v, h->b + i * sizeof v, sizeof v);
  return be64_load (v);
}

const char *
dedup_hash_name (enum dedup_hash_alg alg)
{
  /* ALG may be any byte of a header extension. */
  return (size_t) alg < NR_ALGS ? algs[alg].name : NULL;
}

int
dedup_hash_parse (const char *name, enum dedup_hash_alg *alg)
{
  size_t i;

  for (i = 0; i < NR_ALGS; ++i) {
    if (algs[i].name && strcmp (name, algs[i].name) == 0) {
      *alg = (enum dedup_hash_alg) i;
      return 0;
    }
  }
  return -EINVAL;
}

#if TEST_HASH_BITS
/* For tests: only so many bits count, so that different data has equal
 * hashes all the time.  The rest is made from them, because buckets and tags
 * are taken from all over the hash. */
static void
cut (struct dedup_hash *h)
{
  uint64_t seed = dedup_hash_word (h, 0) >> (64 - TEST_HASH_BITS), v;
  size_t i;

  for (i = 0; i < sizeof h->b / sizeof v; ++i) {
    v = XXH3_64bits_withSeed (&seed, sizeof seed, i);
    memcpy (h->b + i * sizeof v, &v, sizeof v);
  }
}
#endif

int
dedup_hash_compute (enum dedup_hash_alg alg, const void *data, size_t len,
                    struct dedup_hash *out)
{
  if (dedup_hash_name (alg) == NULL ||
      gnutls_hash_fast (algs[alg].digest, data, len, out->b) < 0)
    return -EIO;
#if TEST_HASH_BITS
  cut (out);
#endif
  return 0;
}

uint64_t
dedup_checksum (const void *data, size_t len)
{
  return XXH3_64bits (data, len);
}
