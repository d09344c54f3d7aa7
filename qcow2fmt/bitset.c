/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements a sparse set of bits, one bit per host cluster.
 *
 * It has three levels: an array of chunk pointers with a "not empty" bit for
 * each, and in each chunk 512 words of bits with a "not zero" bit for each
 * word.  So the next set bit is found in a few steps even where free clusters
 * are rare.  A chunk exists only while one of its bits is set: memory is in
 * proportion to the places where bits are set, and has a limit (bitset.h).
 *
 * It has no lock of its own: the image's lock protects it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"

#define WORDS (QCOW2_BITSET_CHUNK / 64)

struct chunk {
  uint32_t nr_set;
  uint64_t summary[WORDS / 64];
  uint64_t w[WORDS];
};

struct qcow2_bitset {
  struct chunk **top;
  uint64_t *nonempty;          /* a bit per top entry */
  uint64_t nr_top;             /* a multiple of 64 */
  size_t nr_chunks;
  uint64_t nr_set;
};

struct qcow2_bitset *
qcow2_bitset_new (void)
{
  return calloc (1, sizeof (struct qcow2_bitset));
}

void
qcow2_bitset_free (struct qcow2_bitset *b)
{
  if (!b)
    return;
  for (uint64_t i = 0; i < b->nr_top; ++i)
    free (b->top[i]);
  free (b->top);
  free (b->nonempty);
  free (b);
}

static void
put_bit (uint64_t *words, uint64_t i, bool on)
{
  if (on)
    words[i / 64] |= UINT64_C (1) << i % 64;
  else
    words[i / 64] &= ~(UINT64_C (1) << i % 64);
}

/* Returns the first set bit at or after FROM among NR words, or
 * QCOW2_BITSET_NONE. */
static uint64_t
next_bit (const uint64_t *words, uint64_t nr, uint64_t from)
{
  uint64_t i = from / 64, w;

  if (i >= nr)
    return QCOW2_BITSET_NONE;
  w = words[i] & ~UINT64_C (0) << from % 64;
  while (w == 0) {
    if (++i >= nr)
      return QCOW2_BITSET_NONE;
    w = words[i];
  }
  return i * 64 + (unsigned) __builtin_ctzll (w);
}

static int
grow_top (struct qcow2_bitset *b, uint64_t ci)
{
  uint64_t nr = b->nr_top ? b->nr_top : 64;
  struct chunk **top;
  uint64_t *nonempty;

  if (ci >= QCOW2_BITSET_MAX_TOP)
    return -ENOMEM;
  while (nr <= ci)
    nr *= 2;
  if (nr == b->nr_top)
    return 0;
  top = realloc (b->top, nr * sizeof *top);
  if (!top)
    return -ENOMEM;
  b->top = top;
  nonempty = realloc (b->nonempty, nr / 8);
  if (!nonempty)
    return -ENOMEM;
  b->nonempty = nonempty;
  memset (top + b->nr_top, 0, (nr - b->nr_top) * sizeof *top);
  memset ((char *) nonempty + b->nr_top / 8, 0, (nr - b->nr_top) / 8);
  b->nr_top = nr;
  return 0;
}

static int
need_chunk (struct qcow2_bitset *b, uint64_t ci)
{
  int r = grow_top (b, ci);

  if (r < 0 || b->top[ci])
    return r;
  if (b->nr_chunks >= QCOW2_BITSET_MAX_CHUNKS)
    return -ENOMEM;
  b->top[ci] = calloc (1, sizeof (struct chunk));
  if (!b->top[ci])
    return -ENOMEM;
  b->nr_chunks++;
  put_bit (b->nonempty, ci, true);
  return 0;
}

static void
drop_chunk_if_empty (struct qcow2_bitset *b, uint64_t ci)
{
  if (b->top[ci]->nr_set > 0)
    return;
  free (b->top[ci]);
  b->top[ci] = NULL;
  b->nr_chunks--;
  put_bit (b->nonempty, ci, false);
}

/* Sets or clears bits [i, i + n) of one chunk. */
static void
change_chunk (struct qcow2_bitset *b, struct chunk *c, uint64_t i,
              uint64_t n, bool on)
{
  uint64_t len, mask, *w;
  uint32_t before;

  for (; n > 0; i += len, n -= len) {
    len = MIN_OF (n, 64 - i % 64);
    mask = (len == 64 ? ~UINT64_C (0) : (UINT64_C (1) << len) - 1) << i % 64;
    w = &c->w[i / 64];
    before = (uint32_t) __builtin_popcountll (*w);
    *w = on ? *w | mask : *w & ~mask;
    c->nr_set += (uint32_t) __builtin_popcountll (*w) - before;
    b->nr_set += (uint64_t) __builtin_popcountll (*w) - before;
    put_bit (c->summary, i / 64, *w != 0);
  }
}

int
qcow2_bitset_set (struct qcow2_bitset *b, uint64_t idx, uint64_t count)
{
  uint64_t ci, i, n;
  int r;

  for (; count > 0; idx += n, count -= n) {
    ci = idx / QCOW2_BITSET_CHUNK;
    i = idx % QCOW2_BITSET_CHUNK;
    n = MIN_OF (count, QCOW2_BITSET_CHUNK - i);
    r = need_chunk (b, ci);
    if (r < 0)
      return r;
    change_chunk (b, b->top[ci], i, n, true);
  }
  return 0;
}

void
qcow2_bitset_clear (struct qcow2_bitset *b, uint64_t idx, uint64_t count)
{
  uint64_t ci, i, n;

  for (; count > 0; idx += n, count -= n) {
    ci = idx / QCOW2_BITSET_CHUNK;
    i = idx % QCOW2_BITSET_CHUNK;
    n = MIN_OF (count, QCOW2_BITSET_CHUNK - i);
    if (ci >= b->nr_top)
      return;
    if (!b->top[ci])
      continue;
    change_chunk (b, b->top[ci], i, n, false);
    drop_chunk_if_empty (b, ci);
  }
}

bool
qcow2_bitset_test (const struct qcow2_bitset *b, uint64_t idx)
{
  uint64_t ci = idx / QCOW2_BITSET_CHUNK, i = idx % QCOW2_BITSET_CHUNK;

  return ci < b->nr_top && b->top[ci] &&
    (b->top[ci]->w[i / 64] >> i % 64 & 1);
}

static uint64_t
next_in_chunk (const struct chunk *c, uint64_t i)
{
  uint64_t w = c->w[i / 64] & ~UINT64_C (0) << i % 64;
  uint64_t j = i / 64;

  if (w == 0) {
    j = next_bit (c->summary, WORDS / 64, j + 1);
    if (j == QCOW2_BITSET_NONE)
      return QCOW2_BITSET_NONE;
    w = c->w[j];
  }
  return j * 64 + (unsigned) __builtin_ctzll (w);
}

uint64_t
qcow2_bitset_next (const struct qcow2_bitset *b, uint64_t from)
{
  uint64_t ci = from / QCOW2_BITSET_CHUNK, i;

  if (ci < b->nr_top && b->top[ci]) {
    i = next_in_chunk (b->top[ci], from % QCOW2_BITSET_CHUNK);
    if (i != QCOW2_BITSET_NONE)
      return ci * QCOW2_BITSET_CHUNK + i;
  }
  ci = next_bit (b->nonempty, b->nr_top / 64, ci + 1);
  if (ci == QCOW2_BITSET_NONE)
    return QCOW2_BITSET_NONE;
  /* A chunk that exists is never empty. */
  return ci * QCOW2_BITSET_CHUNK + next_in_chunk (b->top[ci], 0);
}

uint64_t
qcow2_bitset_run (const struct qcow2_bitset *b, uint64_t from, uint64_t max)
{
  uint64_t n = 0, ci, i, w, len;

  while (n < max) {
    ci = (from + n) / QCOW2_BITSET_CHUNK;
    i = (from + n) % QCOW2_BITSET_CHUNK;
    if (ci >= b->nr_top || !b->top[ci])
      break;
    w = ~(b->top[ci]->w[i / 64] >> i % 64);
    len = w == 0 ? 64 : (uint64_t) __builtin_ctzll (w);
    n += len;
    if (len < 64 - i % 64)
      break;
  }
  return MIN_OF (n, max);
}

uint64_t
qcow2_bitset_count (const struct qcow2_bitset *b)
{
  return b->nr_set;
}

size_t
qcow2_bitset_memory (const struct qcow2_bitset *b)
{
  return sizeof *b + b->nr_top * sizeof *b->top + b->nr_top / 8 +
    b->nr_chunks * sizeof (struct chunk);
}
