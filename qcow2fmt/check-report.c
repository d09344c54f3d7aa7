/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what the checker finds, of three kinds, and hands a line for each to the
 * caller's callback; and tells progress. */
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
