/* SPDX-License-Identifier: BSD-3-Clause */
/* Owns nothing: fills a caller's struct fault.  The first fault stands, so
 * that the cause is reported and not what followed from it.  No threads, no
 * allocation: usable when memory is what ran out.
 */
#include "fault.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

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
  return -err;
}
