/* SPDX-License-Identifier: BSD-3-Clause */
/* Recognizes UTF-8 and control characters in names. */
#ifndef DEDUP_UTF8_H
#define DEDUP_UTF8_H

#include <stdbool.h>

/* Returns the length in bytes of the UTF-8 sequence at P, which ends with a NUL
 * somewhere, or 0 if none is valid there. */
static inline unsigned
utf8_length (const unsigned char *p)
{
  static const unsigned char least[] = { 0, 0, 0xc2, 0xe0, 0xf0 };
  unsigned n = p[0] < 0x80 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

  if (p[0] < least[n] || p[0] > 0xf4)
    return 0;
  for (unsigned i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80)
      return 0;
  if ((p[0] == 0xe0 && p[1] < 0xa0) ||            /* overlong */
      (p[0] == 0xed && p[1] > 0x9f) ||            /* a surrogate */
      (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
    return 0;
  return n;
}

/* Returns whether a control character is at P. */
static inline bool
utf8_is_control (const unsigned char *p)
{
  return p[0] < ' ' || p[0] == 0x7f || (p[0] == 0xc2 && p[1] < 0xa0);
}

#endif
