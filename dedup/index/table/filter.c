/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests keys in ribbon filters (filter.h).  filter-build.c builds the filters.
 *
 * A key has a row of 128 coefficients that starts at slot S; each slot of the
 * solution has BITS bits, and the exclusive or of those slots whose
 * coefficient is 1 is the key's fingerprint.  64 slots are a block of BITS
 * words, word C with bit C of each slot: so a test takes three words for each
 * bit.  Four bits exclude 15 of 16 hashes that are not in the filter; for three
 * blocks they are 96 bytes in a row, two lines of the cache.
 *
 * Slots follow hash order: a key's slot is its place in the range of hashes,
 * scaled.  A filter that is built does not change: any thread may test.
 */
#include "filter.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "filter-slots.h"
#include "large-pages.h"

static uint64_t
mix (uint64_t x)
{
  x ^= x >> 32;
  x *= UINT64_C (0xd6e8feb86659fd93);
  x ^= x >> 32;
  x *= UINT64_C (0xd6e8feb86659fd93);
  return x ^ x >> 32;
}

/* Coefficients and fingerprint come from words 1 to 3 together, because a hash
 * algorithm of 128 bits may leave words 2 and 3 without information. */
void
dedup_filter_key (const struct dedup_hash *h, struct dedup_filter_key *k)
{
  uint64_t w[4];

  memcpy (w, h->b, sizeof w);
  k->pos = dedup_hash_word (h, 0);
  k->lo = mix (w[1] ^ w[2] * UINT64_C (0x9e3779b97f4a7c15));
  k->hi = mix (k->lo + w[3] + UINT64_C (0x632be59bd9b4e019));
  k->fingerprint = (uint32_t) (mix (k->hi + w[1]) >> 32);
}

uint32_t
dedup_filter_shards (uint64_t nr_entries)
{
  return (uint32_t) MAX_OF (1, (nr_entries + DEDUP_FILTER_SHARD / 2) /
                            DEDUP_FILTER_SHARD);
}

void
dedup_filter_init (struct dedup_filter *f)
{
  uint64_t width = (uint64_t) f->hi - f->lo + 1;

  assert (f->lo <= f->hi);
  f->inverse = UINT64_MAX / width;
}

static unsigned
head_columns (unsigned bits)
{
  return MIN_OF (bits, DEDUP_FILTER_HEAD);
}

int
dedup_filter_alloc (struct dedup_filter *f)
{
  static const uint64_t padding[DEDUP_FILTER_MAX_BITS];
  const uint64_t blocks = f->shards[f->nr_shards].first_block;
  const uint64_t size = (blocks + 1) * f->bits * sizeof *f->head;
  const size_t align = size >= LARGE_PAGE ? LARGE_PAGE : 64;

  f->head = aligned_alloc (align, round_up_pow2 (size, align));
  if (f->head == NULL)
    return -ENOMEM;
  large_pages_advise (f->head, size);
  f->tail = f->head + (blocks + 1) * head_columns (f->bits);
  dedup_filter_put (f, blocks, padding);
  return 0;
}

void
dedup_filter_put (struct dedup_filter *f, uint64_t block, const uint64_t *words)
{
  const unsigned head = head_columns (f->bits), tail = f->bits - head;

  memcpy (f->head + block * head, words, head * sizeof *words);
  memcpy (f->tail + block * tail, words + head, tail * sizeof *words);
}

void
dedup_filter_get (const struct dedup_filter *f, uint64_t block, uint64_t *words)
{
  const unsigned head = head_columns (f->bits), tail = f->bits - head;

  memcpy (words, f->head + block * head, head * sizeof *words);
  memcpy (words + head, f->tail + block * tail, tail * sizeof *words);
}

void
dedup_filter_free (struct dedup_filter *f)
{
  free (f->shards);
  free (f->head);
  memset (f, 0, sizeof *f);
}

size_t
dedup_filter_memory (const struct dedup_filter *f)
{
  return (f->nr_shards + 1) * sizeof f->shards[0] +
    (dedup_filter_words (f) + f->bits) * sizeof f->head[0];
}

void
dedup_filter_find (const struct dedup_filter *f,
                   const struct dedup_filter_key *k,
                   struct dedup_filter_place *p)
{
  const struct dedup_filter_shard *s;
  const uint64_t *at;
  const unsigned bits = f->bits, head = head_columns (bits);
  const uint32_t fingerprint = k->fingerprint;
  struct dedup_filter_key seeded;
  uint64_t fraction, slot, lo, hi;
  uint32_t nr_blocks;
  unsigned shift;

  p->head = NULL;
  if (k->pos >> 32 < f->lo || k->pos >> 32 > f->hi)
    return;
  s = &f->shards[filter_shard_of (f, k->pos, &fraction)];
  nr_blocks = s[1].first_block - s->first_block;
  if (nr_blocks == 0)
    return;
  if (s->seed) {
    seeded = *k;
    filter_seed_key (&seeded, s->seed);
    k = &seeded;
  }
  lo = k->lo | 1;
  hi = k->hi;
  slot = filter_slot_of (fraction, nr_blocks);
  shift = slot % 64;
  at = f->head + (s->first_block + slot / 64) * head;
  __builtin_prefetch (at);
  __builtin_prefetch (at + 3 * head - 1);
  /* 128 bits that start at SHIFT: what leaves a word is shifted twice, as a
   * shift by 64 is none. */
  *p = (struct dedup_filter_place) {
    .head = at, .filter = f, .fingerprint = fingerprint, .bits = bits,
    .c = { lo << shift, hi << shift | lo >> 1 >> (63 - shift),
           hi >> 1 >> (63 - shift) },
  };
}

/* Returns true if the key is not in the filter by NR columns, whose words in
 * three blocks are at W: one of them differs from the fingerprint, whose bits
 * for them begin at bit FIRST. */
static inline __attribute__ ((__always_inline__)) bool
differs (const struct dedup_filter_place *p, const uint64_t *w, unsigned nr,
         unsigned first, bool popcount)
{
  unsigned i, wrong = 0;

#pragma GCC unroll 4
  for (i = 0; i < nr; i++)
    wrong |= filter_parity ((w[i] & p->c[0]) ^ (w[nr + i] & p->c[1]) ^
                            (w[2 * nr + i] & p->c[2]), popcount) ^
      (p->fingerprint >> (first + i) & 1);
  return wrong;
}

/* Returns the columns after the first DEDUP_FILTER_HEAD of the block where P
 * begins. */
static const uint64_t *
tail_of (const struct dedup_filter_place *p)
{
  const struct dedup_filter *f = p->filter;

  return f->tail + (p->head - f->head) / DEDUP_FILTER_HEAD *
    (p->bits - DEDUP_FILTER_HEAD);
}

/* Returns true if the key of P may be in its filter. */
static inline __attribute__ ((__always_inline__)) bool
test_one (const struct dedup_filter_place *p, bool popcount)
{
  const unsigned bits = p->bits;

  if (p->head == NULL)
    return false;
  if (__builtin_expect (bits < DEDUP_FILTER_HEAD, 0))
    return !differs (p, p->head, bits, 0, popcount);
  return !differs (p, p->head, DEDUP_FILTER_HEAD, 0, popcount) &&
    !differs (p, tail_of (p), bits - DEDUP_FILTER_HEAD, DEDUP_FILTER_HEAD,
              popcount);
}

static size_t FILTER_POPCOUNT_TARGET
test_popcount (const struct dedup_filter_place *p, size_t nr, uint16_t *maybe)
{
  size_t i, n = 0;

  for (i = 0; i < nr; i++) {
    maybe[n] = (uint16_t) i;
    n += test_one (&p[i], true);
  }
  return n;
}

static size_t
test_plain (const struct dedup_filter_place *p, size_t nr, uint16_t *maybe)
{
  size_t i, n = 0;

  for (i = 0; i < nr; i++) {
    maybe[n] = (uint16_t) i;
    n += test_one (&p[i], false);
  }
  return n;
}

size_t
dedup_filter_test (const struct dedup_filter_place *p, size_t nr,
                   uint16_t *maybe)
{
  return FILTER_HAS_POPCOUNT ? test_popcount (p, nr, maybe)
    : test_plain (p, nr, maybe);
}
