/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares log lines, and the sink for them that the consumer (plugin, tool,
 * test) passes. */
#ifndef DEDUP_LOG_H
#define DEDUP_LOG_H

enum log_level {
  LOG_ERROR,  /* the administrator must know: printed always */
  LOG_INFO,   /* one line about something done: printed by default */
  LOG_DEBUG,  /* printed only when asked */
};

struct log_sink {
  void (*write) (void *opaque, enum log_level level, const char *line);
  void *opaque;
};

/* Formats one line and passes it to SINK; a NULL sink drops it. */
void log_line (const struct log_sink *sink, enum log_level level,
               const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

#endif
