/* SPDX-License-Identifier: BSD-3-Clause */
/* Reports what the checker finds, and its progress, to the caller.
 *
 * Each finding is a corruption, a leak, or an error that kept a part from being
 * checked.  It is counted in the result and passed as one printable line to the
 * caller's callback, in the order of discovery; the first error's errno is
 * kept in struct check.  The callbacks run in the checker's thread.  There is
 * no limit on the number of lines: the caller, who prints them, sets one.
 */
#include <stdarg.h>
#include <stdio.h>

#include "check.h"
#include "checked.h"

static void
report (struct check *c, bool is_leak, const char *fmt, va_list ap)
{
  char line[320];

  if (c->p->problem) {
    vsnprintf (line, sizeof line, fmt, ap);
    fault_make_printable (line);
    c->p->problem (c->p->opaque, is_leak, line);
  }
}

void
check_corrupt (struct check *c, const char *fmt, ...)
{
  va_list ap;

  c->r->corruptions++;
  va_start (ap, fmt);
  report (c, false, fmt, ap);
  va_end (ap);
}

void
check_leak (struct check *c, const char *fmt, ...)
{
  va_list ap;

  c->r->leaks++;
  va_start (ap, fmt);
  report (c, true, fmt, ap);
  va_end (ap);
}

void
check_error (struct check *c, int err, const char *fmt, ...)
{
  va_list ap;

  c->r->errors++;
  if (c->err == 0)
    c->err = err;
  va_start (ap, fmt);
  report (c, false, fmt, ap);
  va_end (ap);
}

void
check_step (struct check *c)
{
  c->done++;
  if (c->p->progress)
    c->p->progress (c->p->opaque, MIN_OF (c->done, c->total), c->total);
}
