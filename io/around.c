/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides which blocks of a file are read whole, around small parts that were
 * asked for (around.h has the reasons).
 *
 * Owns one bit for each block: set once the block was taken in this period.
 * A period begins with a look at the memory that the page cache may still take,
 * and forgets all bits.  The caller locks, and does the reading: nothing here
 * knows whether a block is in memory.
 */
#include "around.h"

#include <stdlib.h>
#include <time.h>

#include "checked.h"
#include "clock.h"
#include "free-memory.h"

#define WORD_BITS 64

bool
io_around_begin (struct io_around *a, uint64_t size)
{
  const uint64_t now = clock_now_ns (), nr = div_round_up (size, AROUND_BYTES);

  if (a->begun_ns != 0 && now - a->begun_ns < AROUND_PERIOD_NS)
    return a->nr_blocks > 0;
  free (a->taken);
  *a = (struct io_around) { .begun_ns = now };
  if (size > 0 && size <= io_free_memory ("") / 2)
    a->taken = calloc (div_round_up (nr, WORD_BITS), sizeof *a->taken);
  if (a->taken)
    a->nr_blocks = nr;
  return a->nr_blocks > 0;
}

bool
io_around_take (struct io_around *a, uint64_t host_off)
{
  const uint64_t block = host_off / AROUND_BYTES;
  const uint64_t bit = UINT64_C (1) << block % WORD_BITS;

  if (block >= a->nr_blocks || (a->taken[block / WORD_BITS] & bit))
    return false;
  a->taken[block / WORD_BITS] |= bit;
  return true;
}

void
io_around_free (struct io_around *a)
{
  free (a->taken);
}
