/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading around small parts: see around.h. */
#include "around.h"

#include <stdlib.h>
#include <time.h>

#include "checked.h"
#include "free-memory.h"

#define WORD_BITS 64

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

bool
io_around_begin (struct io_around *a, uint64_t size)
{
  const uint64_t now = now_ns (), nr = div_round_up (size, AROUND_BYTES);

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
