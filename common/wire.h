/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines big-endian integers as they are stored on disk.
 *
 * A wire integer is a struct of bytes: it has no alignment, cannot be used
 * in arithmetic by mistake, and reads the same on every machine.
 */
#ifndef DEDUP_WIRE_H
#define DEDUP_WIRE_H

#include <stdint.h>
#include <string.h>

typedef struct { uint8_t b[2]; } be16;
typedef struct { uint8_t b[4]; } be32;
typedef struct { uint8_t b[8]; } be64;

static inline uint16_t
be16_load (be16 v)
{
  return (uint16_t) (v.b[0] << 8 | v.b[1]);
}

static inline uint32_t
be32_load (be32 v)
{
  uint32_t r;

  memcpy (&r, v.b, sizeof r);
  return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? r : __builtin_bswap32 (r);
}

static inline uint64_t
be64_load (be64 v)
{
  uint64_t r;

  memcpy (&r, v.b, sizeof r);
  return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? r : __builtin_bswap64 (r);
}

static inline be16
be16_make (uint16_t v)
{
  return (be16) { { (uint8_t) (v >> 8), (uint8_t) v } };
}

static inline be32
be32_make (uint32_t v)
{
  be32 r;

  v = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? v : __builtin_bswap32 (v);
  memcpy (r.b, &v, sizeof v);
  return r;
}

static inline be64
be64_make (uint64_t v)
{
  be64 r;

  v = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? v : __builtin_bswap64 (v);
  memcpy (r.b, &v, sizeof v);
  return r;
}

/* Asserts that a field is at the byte where the specification puts it. */
#define WIRE_FIELD_AT(type, field, at)                                  \
  _Static_assert (__builtin_offsetof (type, field) == (at),             \
                  #type "." #field " is not at byte " #at)

#endif
