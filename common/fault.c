/* SPDX-License-Identifier: BSD-3-Clause */
/* Formats errors for users: one line that names the problem and its place.
 *
 * Owns nothing: fills a caller's struct fault.  The first fault stands, so
 * that the cause is reported and not its consequences.  It has no threads and
 * allocates nothing, so that it can report that memory ran out.
 */
#include "fault.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

/* Replaces control characters.  Messages quote names from images, and no
 * control character of those must reach a terminal or start a line in a log.
 * U+0080 to U+009F are two bytes, of which the first is always 0xc2. */
void
fault_make_printable (char *s)
{
  unsigned char *p = (unsigned char *) s;

  for (; *p; p++)
    if (*p < ' ' || *p == 0x7f)
      *p = '?';
    else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
      p[0] = p[1] = '?';
}

int
fault_set (struct fault *f, enum fault_kind kind, int err, uint64_t off,
           const char *fmt, ...)
{
  va_list args;

  assert (err > 0);
  if (f == NULL || f->kind != FAULT_NONE)
    return -err;
  f->kind = kind;
  f->err = err;
  f->off = off;
  va_start (args, fmt);
  vsnprintf (f->msg, sizeof f->msg, fmt, args);
  va_end (args);
  fault_make_printable (f->msg);
  return -err;
}
