/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells whether memory holds only zeroes. */
#ifndef DEDUP_ZERO_H
#define DEDUP_ZERO_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Returns true if all LEN bytes at P are zero.  If the first byte is, and each
 * byte equals the one after it, all are: so memcmp does the work. */
static inline bool
all_zero (const uint8_t *p, size_t len)
{
  return len == 0 || (p[0] == 0 && memcmp (p, p + 1, len - 1) == 0);
}

#endif
