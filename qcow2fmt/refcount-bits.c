/* SPDX-License-Identifier: BSD-3-Clause */
/* Decodes and encodes the refcounts of a refcount block, of 1 to 64 bits each.
 *
 * The width is a power of two; of widths below 8, the first refcount is in the
 * least significant bits of its byte, and wider ones are big-endian.  A value
 * must fit in its width, which the callers see to, and so must an index in the
 * block.  It works on bytes, owns nothing, and knows no image, no cache and no
 * lock; what a refcount means is left to refcount.c and change.c.
 */
#include <string.h>

#include "image.h"

uint64_t
qcow2_refcount_get (unsigned bits, const uint8_t *block, uint64_t i)
{
  be16 w16;
  be32 w32;
  be64 w64;

  switch (bits) {
  case 8:
    return block[i];
  case 16:
    memcpy (&w16, block + i * 2, 2);
    return be16_load (w16);
  case 32:
    memcpy (&w32, block + i * 4, 4);
    return be32_load (w32);
  case 64:
    memcpy (&w64, block + i * 8, 8);
    return be64_load (w64);
  default:                     /* 1, 2, 4: the first is the least significant */
    return block[i * bits / 8] >> i * bits % 8 & ((1u << bits) - 1);
  }
}

void
qcow2_refcount_put (unsigned bits, uint8_t *block, uint64_t i, uint64_t value)
{
  be16 w16 = be16_make ((uint16_t) value);
  be32 w32 = be32_make ((uint32_t) value);
  be64 w64 = be64_make (value);
  unsigned shift, mask;

  switch (bits) {
  case 8:
    block[i] = (uint8_t) value;
    break;
  case 16:
    memcpy (block + i * 2, &w16, 2);
    break;
  case 32:
    memcpy (block + i * 4, &w32, 4);
    break;
  case 64:
    memcpy (block + i * 8, &w64, 8);
    break;
  default:
    shift = i * bits % 8;
    mask = ((1u << bits) - 1) << shift;
    block += i * bits / 8;
    *block = (uint8_t) ((*block & ~mask) | ((unsigned) value << shift & mask));
  }
}
