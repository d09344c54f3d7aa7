/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes contents and a random order, instead of storing them.
 *
 * The benchmark must not measure the making of data.  So all units share the
 * same random bytes; only five words, at the start, in the middle and at the
 * end, identify the unit.  A server that hashes or compares whole blocks has as
 * much to do as with any other data, and no two units that should differ are
 * equal, because each holds its name.  It would not be fair to a server that
 * looks for similar blocks or compresses across them; none of those measured
 * does.
 *
 * The functions depend on their arguments only; any thread may call them.
 */
#include "content.h"

#include <string.h>

#define WORDS (CONTENT_UNIT / sizeof (uint64_t))

struct name {
  uint64_t gen, number;
};

/* Maps 64-bit words one to one, so that every output bit depends on all input
 * bits (the finalizer of splitmix64). */
static uint64_t
mix (uint64_t x)
{
  x += UINT64_C (0x9e3779b97f4a7c15);
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* --- Contents ---------------------------------------------------------- */

static struct name
source_name (const struct content *c, uint64_t unit)
{
  return (struct name) { c->source_gen, c->source_unit + unit };
}

/* Returns the name of UNIT, which counts from the start of the region, with
 * DUP_SCATTER. */
static struct name
scattered_name (const struct content *c, uint64_t unit)
{
  uint64_t nr_runs = c->nr_units / c->run_units;
  uint64_t run = permute (unit / c->run_units, nr_runs, c->gen);

  return source_name (c, run * c->run_units + unit % c->run_units);
}

static bool
coin (const struct content *c, uint64_t unit)
{
  return mix (unit / c->run_units) & 1;
}

static struct name
name_of (const struct content *c, uint64_t guest_unit)
{
  const uint64_t unit = guest_unit - c->first_unit;

  if (c->dup == DUP_SCATTER)
    return scattered_name (c, unit);
  if (c->dup == DUP_ALL || (c->dup == DUP_HALF && coin (c, unit)))
    return source_name (c, unit);
  return (struct name) { c->gen, guest_unit };
}

static void
prepare_unit (uint64_t *words)
{
  size_t i;

  for (i = 0; i < WORDS; i++)
    words[i] = mix (i);
}

static void
stamp_unit (uint64_t *words, struct name n)
{
  uint64_t check = mix (n.number ^ mix (n.gen));

  words[0] = check;
  words[1] = n.number;
  words[2] = n.gen;
  words[WORDS / 2] = ~check;
  words[WORDS - 1] = check + 1;
}

void
content_prepare (void *buf, size_t len)
{
  size_t i;

  for (i = 0; i < len; i += CONTENT_UNIT)
    prepare_unit ((uint64_t *) ((char *) buf + i));
}

void
content_stamp (const struct content *c, void *buf, uint64_t guest_off,
               size_t len)
{
  size_t i;

  for (i = 0; i < len; i += CONTENT_UNIT)
    stamp_unit ((uint64_t *) ((char *) buf + i),
                name_of (c, (guest_off + i) / CONTENT_UNIT));
}

bool
content_matches (const struct content *c, const void *buf, uint64_t guest_off,
                 size_t len, uint64_t *bad_off)
{
  uint64_t want[WORDS];
  size_t i;

  prepare_unit (want);
  for (i = 0; i < len; i += CONTENT_UNIT) {
    stamp_unit (want, name_of (c, (guest_off + i) / CONTENT_UNIT));
    if (memcmp (want, (const char *) buf + i, CONTENT_UNIT) != 0) {
      *bad_off = guest_off + i;
      return false;
    }
  }
  return true;
}

/* --- Order ------------------------------------------------------------- */

/* Permutes the numbers of 2 * half_bits bits by four Feistel rounds. */
static uint64_t
feistel (uint64_t x, unsigned half_bits, uint64_t key)
{
  const uint64_t mask = (UINT64_C (1) << half_bits) - 1;
  uint64_t left = x >> half_bits, right = x & mask, next;
  unsigned round;

  for (round = 0; round < 4; round++) {
    next = left ^ (mix (right ^ mix (key + round)) & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

/* Repeats feistel until the result is in the range.  The power of four at or
 * above n is less than 4 n, so that it takes fewer than four steps on
 * average. */
uint64_t
permute (uint64_t i, uint64_t n, uint64_t key)
{
  unsigned bits = n > 1 ? 64 - (unsigned) __builtin_clzll (n - 1) : 0;

  do
    i = feistel (i, (bits + 1) / 2, key);
  while (i >= n);
  return i;
}
