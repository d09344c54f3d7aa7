/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes Skein-256-256 as its specification says (skein.h): the tweakable
 * block cipher Threefish-256, the chaining mode UBI on top of it, and three UBI
 * calls for the configuration, the message and the output.
 *
 * This file has only what a hash of whole bytes needs.  Keys, tree hashing and
 * other sizes are left out.  The result of the configuration's UBI call never
 * changes, so it is a constant here.  All words of Skein are little-endian.
 *
 * The rounds are inline functions with constant arguments, so that all of a
 * block's state stays in registers.
 */
#include "skein.h"

#include <endian.h>
#include <string.h>

#define WORDS 4
#define BLOCK (WORDS * 8)

/* Second word of the tweak (section 3.5.1 of the paper). */
#define FIRST (UINT64_C (1) << 62)
#define FINAL (UINT64_C (1) << 63)
#define TYPE_MSG (UINT64_C (48) << 56)
#define TYPE_OUT (UINT64_C (63) << 56)

#define C240 UINT64_C (0x1bd11bdaa9fc1a22)

/* UBI of the configuration block "SHA3", version 1, 256 bits of output. */
static const uint64_t initial[WORDS] = {
  UINT64_C (0xfc9da860d048b449), UINT64_C (0x2fca66479fa7d833),
  UINT64_C (0xb33bc3896656840f), UINT64_C (0x6a54e920fde8da69),
};

struct schedule {
  uint64_t k[WORDS + 1];        /* key words and their parity */
  uint64_t t[3];                /* tweak words and their parity */
};

/* --- Threefish-256 ------------------------------------------------------- */

static inline void
mix (uint64_t *a, uint64_t *b, unsigned bits)
{
  *a += *b;
  *b = (*b << bits | *b >> (64 - bits)) ^ *a;
}

/* Adds subkey S to the state. */
static inline __attribute__ ((always_inline)) void
add_subkey (uint64_t x[WORDS], const struct schedule *ks, unsigned s)
{
  x[0] += ks->k[s % 5];
  x[1] += ks->k[(s + 1) % 5] + ks->t[s % 3];
  x[2] += ks->k[(s + 2) % 5] + ks->t[(s + 1) % 3];
  x[3] += ks->k[(s + 3) % 5] + s;
}

/* Applies two rounds.  The permutation swaps words 1 and 3, so the second one
 * undoes the first, and neither is carried out. */
static inline __attribute__ ((always_inline)) void
two_rounds (uint64_t x[WORDS], unsigned r00, unsigned r01, unsigned r10,
            unsigned r11)
{
  mix (&x[0], &x[1], r00);
  mix (&x[2], &x[3], r01);
  mix (&x[0], &x[3], r10);
  mix (&x[2], &x[1], r11);
}

/* Applies eight rounds, with subkeys S and S + 1. */
static inline __attribute__ ((always_inline)) void
eight_rounds (uint64_t x[WORDS], const struct schedule *ks, unsigned s)
{
  add_subkey (x, ks, s);
  two_rounds (x, 14, 16, 52, 57);
  two_rounds (x, 23, 40, 5, 37);
  add_subkey (x, ks, s + 1);
  two_rounds (x, 25, 33, 46, 12);
  two_rounds (x, 58, 22, 32, 32);
}

static inline __attribute__ ((always_inline)) void
encrypt (uint64_t x[WORDS], const struct schedule *ks)
{
  eight_rounds (x, ks, 0);
  eight_rounds (x, ks, 2);
  eight_rounds (x, ks, 4);
  eight_rounds (x, ks, 6);
  eight_rounds (x, ks, 8);
  eight_rounds (x, ks, 10);
  eight_rounds (x, ks, 12);
  eight_rounds (x, ks, 14);
  eight_rounds (x, ks, 16);
  add_subkey (x, ks, 18);
}

/* --- UBI ----------------------------------------------------------------- */

/* Takes one block into the chaining value G; POSITION counts the bytes of the
 * message up to the block's end. */
static void
take_block (uint64_t g[WORDS], const uint8_t block[BLOCK], uint64_t position,
            uint64_t flags)
{
  struct schedule ks = { .t = { position, flags, position ^ flags } };
  uint64_t m[WORDS], x[WORDS];
  unsigned i;

  ks.k[WORDS] = C240;
  for (i = 0; i < WORDS; i++) {
    memcpy (&m[i], block + 8 * i, 8);
    x[i] = m[i] = le64toh (m[i]);
    ks.k[i] = g[i];
    ks.k[WORDS] ^= g[i];
  }
  encrypt (x, &ks);
  for (i = 0; i < WORDS; i++)
    g[i] = x[i] ^ m[i];
}

/* Makes one UBI call over LEN bytes.  An empty message is one block of
 * padding. */
static void
ubi (uint64_t g[WORDS], const uint8_t *data, size_t len, uint64_t type)
{
  uint8_t last[BLOCK] = { 0 };
  uint64_t flags = type | FIRST;
  size_t pos = 0;

  for (; len - pos > BLOCK; pos += BLOCK) {
    take_block (g, data + pos, pos + BLOCK, flags);
    flags = type;
  }
  if (len > pos)
    memcpy (last, data + pos, len - pos);
  take_block (g, last, len, flags | FINAL);
}

void
dedup_skein (const void *data, size_t len, uint8_t out[DEDUP_SKEIN_SIZE])
{
  static const uint8_t counter[8];  /* the output's first and only block */
  uint64_t g[WORDS], v;
  unsigned i;

  memcpy (g, initial, sizeof g);
  ubi (g, data, len, TYPE_MSG);
  ubi (g, counter, sizeof counter, TYPE_OUT);
  for (i = 0; i < WORDS; i++) {
    v = htole64 (g[i]);
    memcpy (out + 8 * i, &v, 8);
  }
}
