/* SPDX-License-Identifier: BSD-3-Clause */
/* Where messages go: the consumer (plugin, tool, test) passes a sink. */
#ifndef DEDUP_LOG_H
#define DEDUP_LOG_H

enum log_level {
  LOG_ERROR,  /* the sysadmin must know: printed always */
  LOG_INFO,   /* one line about something done: printed by default */
  LOG_DEBUG,  /* printed only when asked */
};

struct log_sink {
  void (*write) (void *opaque, enum log_level level, const char *line);
  void *opaque;
};

/* Format one line and hand it to SINK; a NULL sink drops it. */
void log_line (const struct log_sink *sink, enum log_level level,
               const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

#endif
