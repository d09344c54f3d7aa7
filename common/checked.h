/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines overflow-checked arithmetic for values that an image or a client
 * chose, and rounding. */
#ifndef DEDUP_CHECKED_H
#define DEDUP_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

/* Add, multiply.  Each returns false, with *r undefined, if the result does not
 * fit. */
static inline bool __attribute__ ((__warn_unused_result__))
add_u64 (uint64_t a, uint64_t b, uint64_t *r)
{
  return !__builtin_add_overflow (a, b, r);
}

static inline bool __attribute__ ((__warn_unused_result__))
mul_u64 (uint64_t a, uint64_t b, uint64_t *r)
{
  return !__builtin_mul_overflow (a, b, r);
}

static inline uint64_t
div_round_up (uint64_t n, uint64_t d)
{
  return n / d + (n % d != 0);
}

/* Round to a multiple of POW2, a power of two.  For rounding up the caller has
 * checked that N is at most UINT64_MAX - POW2. */
static inline uint64_t
round_up_pow2 (uint64_t n, uint64_t pow2)
{
  return (n + pow2 - 1) & ~(pow2 - 1);
}

static inline uint64_t
round_down_pow2 (uint64_t n, uint64_t pow2)
{
  return n & ~(pow2 - 1);
}

static inline bool
is_pow2 (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))

#endif
