/* SPDX-License-Identifier: BSD-3-Clause */
/* Contents of clusters that compression makes smaller. */
#ifndef DEDUP_THIRD_RANDOM_H
#define DEDUP_THIRD_RANDOM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "splitmix.h"

/* Fills LEN bytes, a multiple of 8, with the content ID: a third of it is random; from
 * 2^32 on, all.  0: zeroes. */
static inline void
fill_third_random (uint8_t *p, size_t len, uint64_t id)
{
  uint64_t x = id, v;
  size_t i;

  for (i = 0; i < len / 8; i++) {
    v = !id ? 0 : i % 3 == 0 || id >> 32 ? splitmix64 (&x) : id;
    memcpy (p + 8 * i, &v, 8);
  }
}

#endif
