/* SPDX-License-Identifier: BSD-3-Clause */
/* Fills the errors that replies carry.  A text that is too long is cut between two
 * characters, so that a reply is valid UTF-8 if the text is.  The result is always -EINVAL,
 * so that a command can end with the call.
 *
 * Functions of their arguments: any thread may call them.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "control.h"

/* Removes the rest of a character whose first bytes end S, of LEN bytes. */
static void
cut_between_characters (char *s, size_t len)
{
  while (len > 0 && (s[len - 1] & 0xc0) == 0x80)
    len--;
  if (len > 0 && s[len - 1] & 0x80)
    len--;
  s[len] = '\0';
}

static int __attribute__ ((__format__ (__printf__, 3, 0)))
set (struct qmp_error *e, const char *class, const char *fmt, va_list args)
{
  int len = vsnprintf (e->desc, sizeof e->desc, fmt, args);

  if (len >= (int) sizeof e->desc)
    cut_between_characters (e->desc, sizeof e->desc - 1);
  snprintf (e->class, sizeof e->class, "%s", class);
  return -EINVAL;
}

int
qmp_error_set (struct qmp_error *e, const char *fmt, ...)
{
  va_list args;
  int r;

  va_start (args, fmt);
  r = set (e, "GenericError", fmt, args);
  va_end (args);
  return r;
}

int
qmp_error_class (struct qmp_error *e, const char *class, const char *fmt, ...)
{
  va_list args;
  int r;

  va_start (args, fmt);
  r = set (e, class, fmt, args);
  va_end (args);
  return r;
}
