/* SPDX-License-Identifier: BSD-3-Clause */
/* Log lines: what goes wrong without an error that a caller could be given.
 *
 * Formats a line for whoever listens.  Promises never to fail: a line that
 * is too long is cut.  Callable from any thread; the sink must be too.
 */
#include "fault.h"
#include "log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

void
log_line (const struct log_sink *sink, enum log_level level,
          const char *fmt, ...)
{
  char line[512];
  va_list args;

  if (sink == NULL || sink->write == NULL)
    return;
  va_start (args, fmt);
  vsnprintf (line, sizeof line, fmt, args);
  va_end (args);
  fault_make_printable (line);
  sink->write (sink->opaque, level, line);
}
