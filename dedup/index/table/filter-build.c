/* SPDX-License-Identifier: BSD-3-Clause */
/* Builds a ribbon filter, shard by shard, from keys in hash order.
 *
 * A shard's rows are brought to triangular form as they come: since keys come
 * in the order of their slots, a row is reduced by few others, which are in
 * the cache.  Then the slots are solved from the last to the first.  Where
 * rows contradict each other (in few percent of the shards) the shard is built
 * again with other rows, and after four failures with more slots.  That ends,
 * because a shard with many slots nearly always has a solution.
 *
 * One thread.  Memory: about 50 bytes an entry of one shard, and the filter
 * twice.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "filter-slots.h"

#ifndef FILTER_SPARE
#define FILTER_SPARE 30
#endif
#define MAX_TRIES 64

struct dedup_filter_builder {
  struct dedup_filter f;
  uint64_t *words;               /* as they are written */
  uint64_t max_words;            /* allocated */
  uint32_t shard;                /* the one that is being collected */

  struct dedup_filter_key *keys; /* of this shard; pos: the fraction */
  size_t nr_keys, max_keys;

  /* The system: row I has its first coefficient at slot I. */
  size_t max_slots;
  uint64_t *lo, *hi;
  uint16_t *value;
};

int
dedup_filter_builder_new (uint32_t lo, uint32_t hi, uint64_t nr_entries,
                          unsigned bits, struct dedup_filter_builder **out)
{
  struct dedup_filter_builder *b = calloc (1, sizeof *b);

  assert (bits >= 1 && bits <= DEDUP_FILTER_MAX_BITS);
  if (b == NULL)
    return -ENOMEM;
  b->f.lo = lo;
  b->f.hi = hi;
  b->f.bits = bits;
  b->f.nr_shards = dedup_filter_shards (nr_entries);
  dedup_filter_init (&b->f);
  b->f.shards = calloc ((size_t) b->f.nr_shards + 1, sizeof *b->f.shards);
  if (b->f.shards == NULL) {
    free (b);
    return -ENOMEM;
  }
  *out = b;
  return 0;
}

void
dedup_filter_builder_free (struct dedup_filter_builder *b)
{
  if (b == NULL)
    return;
  dedup_filter_free (&b->f);
  free (b->words);
  free (b->keys);
  free (b->lo);
  free (b->hi);
  free (b->value);
  free (b);
}

/* Reallocates the array that P points to, for NR elements of SIZE bytes. */
static int
grow_array (void *p, size_t nr, size_t size)
{
  void **old = p, *new = realloc (*old, nr * size);

  if (new == NULL)
    return -ENOMEM;
  *old = new;
  return 0;
}

/* --- The system ---------------------------------------------------------- */

/* Adds one key's row to the system.  Returns false if it contradicts the rows
 * that are there. */
static bool
add_row (struct dedup_filter_builder *b, const struct dedup_filter_key *k,
         size_t slot, uint32_t value)
{
  uint64_t lo = k->lo | 1, hi = k->hi;
  unsigned zeroes;

  for (;;) {
    if (b->lo[slot] == 0) {        /* the first coefficient is 1: free */
      b->lo[slot] = lo;
      b->hi[slot] = hi;
      b->value[slot] = (uint16_t) value;
      return true;
    }
    lo ^= b->lo[slot];
    hi ^= b->hi[slot];
    value ^= b->value[slot];
    if (lo == 0) {
      if (hi == 0)
        return value == 0;
      lo = hi;
      hi = 0;
      slot += 64;
    }
    zeroes = (unsigned) __builtin_ctzll (lo);
    if (zeroes) {
      lo = lo >> zeroes | hi << (64 - zeroes);
      hi >>= zeroes;
      slot += zeroes;
    }
  }
}

/* Makes the system of all keys of the shard.  Returns false if rows contradict
 * each other. */
static bool
add_rows (struct dedup_filter_builder *b, uint32_t nr_blocks, uint32_t seed)
{
  const uint32_t mask = (1u << b->f.bits) - 1;
  const size_t nr_slots = (size_t) nr_blocks * 64;
  struct dedup_filter_key k;
  size_t i;

  memset (b->lo, 0, nr_slots * sizeof *b->lo);
  memset (b->hi, 0, nr_slots * sizeof *b->hi);
  memset (b->value, 0, nr_slots * sizeof *b->value);
  for (i = 0; i < b->nr_keys; i++) {
    k = b->keys[i];
    if (seed)
      filter_seed_key (&k, seed);
    if (!add_row (b, &k, filter_slot_of (k.pos, nr_blocks),
                  k.fingerprint & mask))
      return false;
  }
  return true;
}

/* Solves the system from the last slot to the first, and writes the words to
 * OUT; a slot without a row is 0. */
static inline __attribute__ ((__always_inline__)) void
solve_with (const struct dedup_filter_builder *b, uint32_t nr_blocks,
            uint64_t *out, bool popcount)
{
  const unsigned bits = b->f.bits;
  uint64_t lo[DEDUP_FILTER_MAX_BITS] = { 0 }, hi[DEDUP_FILTER_MAX_BITS] = { 0 };
  size_t i = (size_t) nr_blocks * 64;
  unsigned c;

  while (i-- > 0) {
    const uint64_t clo = b->lo[i], chi = b->hi[i];
    const unsigned value = b->value[i];

    for (c = 0; c < bits; c++) {
      uint64_t bit;

      hi[c] = hi[c] << 1 | lo[c] >> 63;
      lo[c] <<= 1;
      bit = filter_parity ((clo & lo[c]) ^ (chi & hi[c]), popcount) ^
        (value >> c & 1);
      lo[c] |= bit;
    }
    if (i % 64 == 0)
      memcpy (out + i / 64 * bits, lo, bits * sizeof *lo);
  }
}

static void FILTER_POPCOUNT_TARGET
solve_popcount (const struct dedup_filter_builder *b, uint32_t nr_blocks,
                uint64_t *out)
{
  solve_with (b, nr_blocks, out, true);
}

static void
solve (const struct dedup_filter_builder *b, uint32_t nr_blocks, uint64_t *out)
{
  if (FILTER_HAS_POPCOUNT)
    solve_popcount (b, nr_blocks, out);
  else
    solve_with (b, nr_blocks, out, false);
}

/* --- Shards -------------------------------------------------------------- */

/* Makes room for the system and the words of a shard of NR_BLOCKS blocks. */
static int
reserve_shard (struct dedup_filter_builder *b, uint32_t nr_blocks)
{
  const size_t slots = (size_t) nr_blocks * 64;
  const uint64_t words = dedup_filter_words (&b->f) +
    nr_blocks * (uint64_t) b->f.bits;
  int r;

  if (slots > b->max_slots) {
    if ((r = grow_array (&b->lo, slots, sizeof *b->lo)) < 0 ||
        (r = grow_array (&b->hi, slots, sizeof *b->hi)) < 0 ||
        (r = grow_array (&b->value, slots, sizeof *b->value)) < 0)
      return r;
    b->max_slots = slots;
  }
  if (words > b->max_words) {
    const uint64_t max = MAX_OF (words, b->max_words * 5 / 4);

    if ((r = grow_array (&b->words, max, sizeof *b->words)) < 0)
      return r;
    b->max_words = max;
  }
  return 0;
}

/* Returns the number of blocks for NR entries after TRIES failures: 3 % more
 * slots than entries, and one row's width. */
static uint32_t
blocks_for (size_t nr, unsigned tries)
{
  size_t slots = nr + nr * FILTER_SPARE / 1000 + FILTER_WIDTH - 1;

  slots += slots / 64 * (tries / 4);     /* 1.6 % more after four failures */
  return (uint32_t) div_round_up (slots, 64);
}

/* Builds the shard whose keys were collected.  -EINVAL, -ENOMEM. */
static int
finish_shard (struct dedup_filter_builder *b)
{
  struct dedup_filter_shard *s = &b->f.shards[b->shard];
  const uint32_t first = b->f.shards[b->f.nr_shards].first_block;
  uint32_t nr_blocks = 0;
  unsigned tries;
  int r;

  s->first_block = first;
  for (tries = 0; b->nr_keys > 0; tries++) {
    if (tries == MAX_TRIES)
      return -EINVAL;                    /* these are no uniform hashes */
    nr_blocks = blocks_for (b->nr_keys, tries);
    r = reserve_shard (b, nr_blocks);
    if (r < 0)
      return r;
    if (add_rows (b, nr_blocks, tries))
      break;
  }
  s->seed = b->nr_keys ? tries : 0;
  if (nr_blocks)
    solve (b, nr_blocks, b->words + (uint64_t) first * b->f.bits);
  b->f.shards[b->f.nr_shards].first_block = first + nr_blocks;
  b->shard++;
  b->nr_keys = 0;
  return 0;
}

int
dedup_filter_builder_add (struct dedup_filter_builder *b,
                          const struct dedup_hash *h)
{
  struct dedup_filter_key k;
  uint32_t shard;
  uint64_t fraction;
  int r;

  dedup_filter_key (h, &k);
  assert (k.pos >> 32 >= b->f.lo && k.pos >> 32 <= b->f.hi);
  shard = filter_shard_of (&b->f, k.pos, &fraction);
  assert (shard >= b->shard);            /* in hash order */
  while (b->shard < shard)
    if ((r = finish_shard (b)) < 0)
      return r;
  if (b->nr_keys == b->max_keys) {
    const size_t max = MAX_OF (1024, b->max_keys * 5 / 4);

    if ((r = grow_array (&b->keys, max, sizeof *b->keys)) < 0)
      return r;
    b->max_keys = max;
  }
  k.pos = fraction;
  b->keys[b->nr_keys++] = k;
  return 0;
}

int
dedup_filter_builder_finish (struct dedup_filter_builder *b,
                             struct dedup_filter *out)
{
  uint64_t nr, i;
  int r;

  while (b->shard < b->f.nr_shards)
    if ((r = finish_shard (b)) < 0)
      return r;
  r = dedup_filter_alloc (&b->f);
  if (r < 0)
    return r;
  nr = b->f.shards[b->f.nr_shards].first_block;
  for (i = 0; i < nr; i++)
    dedup_filter_put (&b->f, i, b->words + i * b->f.bits);
  *out = b->f;
  memset (&b->f, 0, sizeof b->f);
  return 0;
}
