/* SPDX-License-Identifier: BSD-3-Clause */
/* Names the hash algorithms, and computes them by GnuTLS, xxHash and our own
 * Skein.  This file owns nothing.
 *
 * Equal content hashes tell that two clusters may be equal, and with verify=off
 * that they are; then the hash must be a cryptographic one.  The checksum only
 * tells whole blocks from torn or stale ones.  It is no defence against an
 * attacker, who could write a matching checksum anyway.
 *
 * XXH3-128 is computed with a secret of each store, so that a client who knows
 * the algorithm still does not know which blocks collide.  For XXH3-128 that
 * costs nothing; the others have no secret (docs/on-disk.md 1.1 says why).
 *
 * Hashing changes no state, so any thread may call.  gnutls_hash_fast (3.7)
 * takes no lock and allocates nothing; a handle for each thread measures the
 * same.  GnuTLS initializes itself when it is loaded.
 */
#include "hash.h"

#include <assert.h>
#include <errno.h>

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>    /* the same names, as fast as the CPU can */
#endif

#include "lock.h"
#include "skein.h"
#include "wire.h"

static const struct {
  const char *name;
  gnutls_digest_algorithm_t digest;   /* GnuTLS's number, or 0 */
  bool weak, keyed;
} algs[] = {
  [DEDUP_HASH_SHA256] = { "sha256", GNUTLS_DIG_SHA256 },
  [DEDUP_HASH_SHA3_256] = { "sha3-256", GNUTLS_DIG_SHA3_256 },
  [DEDUP_HASH_SKEIN_256_256] = { "skein-256-256" },
  [DEDUP_HASH_XXH3_128] = { "xxh3-128", .weak = true, .keyed = true },
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
/* Reduces H to its first TEST_HASH_BITS bits, for tests in which different data
 * must have equal hashes often.  The rest of the hash is computed from these
 * bits, because buckets and tags are taken from all 32 bytes. */
static void
keep_test_bits (struct dedup_hash *h)
{
  uint64_t seed = dedup_hash_word (h, 0) >> (64 - TEST_HASH_BITS), v;
  size_t i;

  for (i = 0; i < sizeof h->b / sizeof v; ++i) {
    v = XXH3_64bits_withSeed (&seed, sizeof seed, i);
    memcpy (h->b + i * sizeof v, &v, sizeof v);
  }
}
#endif

/* --- Algorithms ---------------------------------------------------------- */

bool
dedup_hash_is_strong (enum dedup_hash_alg alg)
{
  return dedup_hash_name (alg) != NULL && !algs[alg].weak;
}

bool
dedup_hash_is_keyed (enum dedup_hash_alg alg)
{
  return dedup_hash_name (alg) != NULL && algs[alg].keyed;
}

/* Fills the secret with SHA-256 hashes of the key and a number, which counts up
 * from 0. */
static int
make_secret (struct dedup_hasher *h, const uint8_t key[DEDUP_HASH_KEY_SIZE])
{
  uint8_t in[DEDUP_HASH_KEY_SIZE + 1];
  size_t i;

  memcpy (in, key, DEDUP_HASH_KEY_SIZE);
  for (i = 0; i < sizeof h->secret / 32; ++i) {
    in[DEDUP_HASH_KEY_SIZE] = (uint8_t) i;
    if (gnutls_hash_fast (GNUTLS_DIG_SHA256, in, sizeof in,
                          h->secret + 32 * i) < 0)
      return -EIO;
  }
  return 0;
}

int
dedup_hasher_init (struct dedup_hasher *h, enum dedup_hash_alg alg,
                   const uint8_t key[DEDUP_HASH_KEY_SIZE])
{
  if (dedup_hash_name (alg) == NULL)
    return -EINVAL;
  memset (h, 0, sizeof *h);
  h->alg = alg;
  return algs[alg].keyed ? make_secret (h, key) : 0;
}

/* Writes the 16 bytes of the hash, and behind them the hash of these 16 bytes,
 * so that buckets, tags and pages may take their bits from all 32. */
static void
xxh3_128 (const struct dedup_hasher *h, const void *data, size_t len,
          uint8_t out[32])
{
  XXH128_hash_t v;

  v = XXH3_128bits_withSecret (data, len, h->secret, sizeof h->secret);
  XXH128_canonicalFromHash ((XXH128_canonical_t *) out, v);
  v = XXH3_128bits (out, 16);
  XXH128_canonicalFromHash ((XXH128_canonical_t *) (out + 16), v);
}

int
dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                    size_t len, struct dedup_hash *out)
{
  WORK_WITHOUT_LOCK (HASH);
  switch (h->alg) {
  case DEDUP_HASH_SHA256:
  case DEDUP_HASH_SHA3_256:
    if (gnutls_hash_fast (algs[h->alg].digest, data, len, out->b) < 0)
      return -EIO;
    break;
  case DEDUP_HASH_SKEIN_256_256:
    dedup_skein (data, len, out->b);
    break;
  case DEDUP_HASH_XXH3_128:
    xxh3_128 (h, data, len, out->b);
    break;
  }
#if TEST_HASH_BITS
  keep_test_bits (out);
#endif
  return 0;
}

uint64_t
dedup_checksum (const void *data, size_t len)
{
  WORK_WITHOUT_LOCK (HASH);
  return XXH3_64bits (data, len);
}
