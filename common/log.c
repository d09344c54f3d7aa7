/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes log lines, which report problems that no caller can be given as an
 * error.
 *
 * Formats a line and passes it to the consumer's sink.  Promises never to fail:
 * a line that is too long is truncated.  It may be called from any thread, and
 * so must the sink.
 */
#include "fault.h"
#include "log.h"

#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

void
log_line (const struct log_sink *sink, enum log_level level,
          const char *fmt, ...)
{
  char line[PATH_MAX + 512];    /* the image's path, and what is to be said */
  va_list args;

  if (sink == NULL || sink->write == NULL)
    return;
  va_start (args, fmt);
  vsnprintf (line, sizeof line, fmt, args);
  va_end (args);
  fault_make_printable (line);
  sink->write (sink->opaque, level, line);
}
