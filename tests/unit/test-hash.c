/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests content hashes: known answers of every algorithm, and what the index
 * needs of their bits.
 *
 * The vectors of Skein-256-256 are those of the specification's appendix C and
 * of the file skein_golden_kat.txt that was submitted with it; SHA-256 and
 * SHA3-256 are FIPS 180-4's and FIPS 202's examples.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hash.h"
#include "skein.h"

static const uint8_t no_key[DEDUP_HASH_KEY_SIZE];

static void
hex_of (const uint8_t *b, size_t len, char *out)
{
  size_t i;

  for (i = 0; i < len; ++i)
    sprintf (out + 2 * i, "%02x", b[i]);
}

static struct dedup_hasher
hasher (enum dedup_hash_alg alg, const uint8_t *key)
{
  struct dedup_hasher h;

  assert_int_equal (dedup_hasher_init (&h, alg, key), 0);
  return h;
}

static struct dedup_hash
hash_of (const struct dedup_hasher *h, const void *data, size_t len)
{
  struct dedup_hash out;

  assert_int_equal (dedup_hash_compute (h, data, len, &out), 0);
  return out;
}

/* --- Known answers ------------------------------------------------------------ */

static void
must_give (enum dedup_hash_alg alg, const uint8_t *data, size_t len,
           const char *want)
{
  const struct dedup_hasher h = hasher (alg, no_key);
  const struct dedup_hash got = hash_of (&h, data, len);
  char hex[65];

  hex_of (got.b, sizeof got.b, hex);
  assert_string_equal (hex, want);
}

static void
sha_gives_the_answers_of_the_standards (void **state)
{
  const uint8_t *abc = (const uint8_t *) "abc";

  must_give (DEDUP_HASH_SHA256, abc, 3, "ba7816bf8f01cfea414140de5dae2223"
             "b00361a396177a9cb410ff61f20015ad");
  must_give (DEDUP_HASH_SHA256, abc, 0, "e3b0c44298fc1c149afbf4c8996fb924"
             "27ae41e4649b934ca495991b7852b855");
  must_give (DEDUP_HASH_SHA3_256, abc, 3, "3a985da74fe225b2045c172d6bd390bd"
             "855f086e3e9d525b46bfe24511431532");
  must_give (DEDUP_HASH_SHA3_256, abc, 0, "a7ffc6f8bf1ed76651c14756a061d662"
             "f580ff4de43b49fa82d80a4b80f8434a");
}

struct vector {
  size_t len;                   /* of the message */
  const char *want;
};

/* Messages of zeroes. */
static const struct vector zeroes[] = {
  { 0, "c8877087da56e072870daa843f176e9453115929094c3a40c463a196c29bf7ba" },
  { 1, "34e2b65bf0be667ca5deba82c37cb253eb9f8474f3426ba622a25219fd182433" },
  { 4, "6960426d85f4f10daa23213de5add2101f4c1b790b530bf7aa66f0930bb6b906" },
  { 8, "76e48cfde0177ec9b118e7df8f0c63e66039b76994646d327f7adb6ceea4d0e3" },
  { 16, "73ec7807dde987d69600d138255e4af0585c6ca90a6c7a4adf8bc025a2fac394" },
  { 24, "cbc26de4c8212b6c7bc4e0ca43790a55fb19a6e47c64a77d8f8fb324db126841" },
  { 32, "0fed47ef57b61379e4a406a8fa3f8fb9d380dafada318ff1491d1108d6600a50" },
  { 48, "fbf567b14234f140c06454eb26b83968df8a8cfcce69afde33a232eb2226137c" },
  { 64, "3e0ca29e4863e8be4d9f28777a7fdc676032c4d9f6904b1cb6aabb029f33741a" },
  { 96, "8b0913fe583af838e745ec9011978482fb83a3c58eda5fa04ff70832b1ac639a" },
  { 128, "35da44b91bfb020e6e85592e3310a6e6d8939a64c778913003a61bc13583edaf" },
  { 256, "e00fa9cb56046cc2d2556e2adf24e92f681ae3fe9bd8c2103780c29938d64ffe" },
};

/* Messages of the bytes ff, fe, fd and so on. */
static const struct vector falling[] = {
  { 1, "0b98dcd198ea0e50a7a244c444e25c23da30c10fc9a1f270a6637f1f34e67ed2" },
  { 4, "afb92d1e32fa99493de9276c6ca528cb6b33ff0ad200f339c0781002a13734bf" },
  { 8, "0b5ca56712ac0d9450bd8398479e28246c329647138d2bdb45e163778f8308d4" },
  { 16, "53403b16a293104a517bcccdd136ff71f584f7ffb057a849133af3d25002a01d" },
  { 24, "167d17e8c206ec9a30d3b709cc51ad33d0ce4f8d0a3434e602a83f62121028f4" },
  { 32, "8d0fa4ef777fd759dfd4044e6f6a5ac3c774aec943dcfc07927b723b5dbf408b" },
  { 48, "8a4842d9c1e9f24e3886fc0b107555f9eda8197707749cecc7772402b2fea0c5" },
  { 64, "df28e916630d0b44c4a849dc9a02f07a07cb30f732318256b15d865ac4ae162f" },
  { 96, "66d5c6ca0f70845ef601eccf193d1eccc2284d03b4d24610928521448e6c4a1b" },
  { 128, "180de106a70401ba38f2597c25cbefc736dfd88d90f2d3352e0eb255afb6db63" },
  { 256, "a088eac7a7256df7255eb5733779267b5dd7f864320bab3ab961da5bee23cb35" },
};

static void
skein_gives_the_answers_of_its_specification (void **state)
{
  uint8_t msg[256] = { 0 };
  size_t i;

  for (i = 0; i < sizeof zeroes / sizeof zeroes[0]; ++i)
    must_give (DEDUP_HASH_SKEIN_256_256, msg, zeroes[i].len, zeroes[i].want);
  for (i = 0; i < sizeof msg; ++i)
    msg[i] = (uint8_t) (255 - i);
  for (i = 0; i < sizeof falling / sizeof falling[0]; ++i)
    must_give (DEDUP_HASH_SKEIN_256_256, msg, falling[i].len,
               falling[i].want);
}

/* It reads words at any alignment, and not a byte outside. */
static void
skein_reads_what_it_is_given (void **state)
{
  uint8_t a[32], b[32], *msg, *copy;
  size_t len, i;

  for (len = 1; len < 100; ++len) {
    msg = malloc (len);
    copy = malloc (len + 1);
    for (i = 0; i < len; ++i)
      copy[i + 1] = msg[i] = (uint8_t) (i * 7 + len);
    dedup_skein (msg, len, a);
    dedup_skein (copy + 1, len, b);
    assert_memory_equal (a, b, sizeof a);
    msg[len - 1] ^= 1;
    dedup_skein (msg, len, b);
    assert_memory_not_equal (a, b, sizeof a);
    free (msg);
    free (copy);
  }
}

/* The key's way into the hash is part of the format: docs/on-disk.md 1.1. */
static void
xxh3_depends_on_its_key (void **state)
{
  static const uint8_t key[DEDUP_HASH_KEY_SIZE] = "0123456789abcde";
  const struct dedup_hasher keyed = hasher (DEDUP_HASH_XXH3_128, key);
  const struct dedup_hasher other = hasher (DEDUP_HASH_XXH3_128, no_key);
  uint8_t data[4096];
  struct dedup_hash a, b;
  char hex[65];
  size_t i;

  for (i = 0; i < sizeof data; ++i)
    data[i] = (uint8_t) (i * i >> 3);
  a = hash_of (&keyed, data, sizeof data);
  b = hash_of (&other, data, sizeof data);
  assert_false (dedup_hash_equal (&a, &b));
  hex_of (a.b, sizeof a.b, hex);
  assert_string_equal (hex, "2787065f648f381448f6d5e990dba234"
                       "502c4ae9332ba9b7067ae2a06f0d2b9d");
  data[4095] ^= 0x80;
  b = hash_of (&keyed, data, sizeof data);
  assert_false (dedup_hash_equal (&a, &b));
}

/* --- Names and kinds ------------------------------------------------------------ */

static void
names_and_numbers_belong_together (void **state)
{
  static const struct { const char *name; int number; bool strong; } all[] = {
    { "sha256", 0, true }, { "sha3-256", 1, true },
    { "skein-256-256", 2, true }, { "xxh3-128", 16, false },
  };
  struct dedup_hasher h;
  enum dedup_hash_alg alg;
  unsigned i, known = 0;

  for (i = 0; i < sizeof all / sizeof all[0]; ++i) {
    assert_int_equal (dedup_hash_parse (all[i].name, &alg), 0);
    assert_int_equal (alg, all[i].number);
    assert_string_equal (dedup_hash_name (alg), all[i].name);
    assert_int_equal (dedup_hash_is_strong (alg), all[i].strong);
    assert_non_null (strstr (DEDUP_HASH_NAMES, all[i].name));
  }
  for (i = 0; i < 256; ++i) {
    alg = (enum dedup_hash_alg) i;
    known += dedup_hash_name (alg) != NULL;
    assert_int_equal (dedup_hasher_init (&h, alg, no_key),
                      dedup_hash_name (alg) ? 0 : -EINVAL);
    assert_true (dedup_hash_name (alg) || !dedup_hash_is_strong (alg));
  }
  assert_int_equal (known, sizeof all / sizeof all[0]);
  assert_int_equal (dedup_hash_parse ("md5", &alg), -EINVAL);
  assert_int_equal (dedup_hash_parse ("", &alg), -EINVAL);
}

static void
checksum_is_xxh3_64 (void **state)
{
  /* Of nothing, as xxhsum -H3 prints it. */
  assert_true (dedup_checksum ("", 0) == UINT64_C (0x2d06800538d394c2));
}

/* --- Bits ------------------------------------------------------------------------- */

/* Buckets, tags, chains and pages take bits from all four words: none of them
 * may be constant, nor equal to one of another word. */
static void
all_bits_of_a_hash_are_of_use (void **state)
{
  static const enum dedup_hash_alg algs[] = {
    DEDUP_HASH_SHA256, DEDUP_HASH_SHA3_256, DEDUP_HASH_SKEIN_256_256,
    DEDUP_HASH_XXH3_128,
  };
  enum { N = 4000 };
  size_t a, i, bit;

  for (a = 0; a < sizeof algs / sizeof algs[0]; ++a) {
    const struct dedup_hasher h = hasher (algs[a], no_key);
    unsigned ones[256] = { 0 }, same[3][64] = { { 0 } };

    for (i = 0; i < N; ++i) {
      const struct dedup_hash v = hash_of (&h, &i, sizeof i);

      for (bit = 0; bit < 256; ++bit)
        ones[bit] += v.b[bit / 8] >> bit % 8 & 1;
      for (bit = 0; bit < 192; ++bit)
        same[bit / 64][bit % 64] +=
          !((dedup_hash_word (&v, (unsigned) bit / 64) ^
             dedup_hash_word (&v, (unsigned) bit / 64 + 1)) >> bit % 64 & 1);
    }
    /* 2000 are expected, with a deviation of 32: 8 of them is no chance. */
    for (bit = 0; bit < 256; ++bit)
      assert_in_range (ones[bit], N / 2 - 256, N / 2 + 256);
    for (bit = 0; bit < 192; ++bit)
      assert_in_range (same[bit / 64][bit % 64], N / 2 - 256, N / 2 + 256);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (sha_gives_the_answers_of_the_standards),
    cmocka_unit_test (skein_gives_the_answers_of_its_specification),
    cmocka_unit_test (skein_reads_what_it_is_given),
    cmocka_unit_test (xxh3_depends_on_its_key),
    cmocka_unit_test (names_and_numbers_belong_together),
    cmocka_unit_test (checksum_is_xxh3_64),
    cmocka_unit_test (all_bits_of_a_hash_are_of_use),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
