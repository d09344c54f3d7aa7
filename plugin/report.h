/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages to the administrator: on standard error, with priorities where that
 * is the systemd journal, or to syslog once nbdkit is in the background
 * (report.c). */
#ifndef DEDUP_REPORT_H
#define DEDUP_REPORT_H

#include "log.h"

/* The sink for all rooms below; its lines name the image. */
extern const struct log_sink report_sink;

/* The process has forked, or will not: standard error may have changed. */
void report_after_fork (void);

/* One line: an error, or something that was done. */
void report_error (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));
void report_info (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* As report_error, for a request of a client that failed: at most
 * REPORT_REQUESTS_MAX lines in REPORT_REQUESTS_S seconds.  The next line after
 * some that were left out says how many. */
#define REPORT_REQUESTS_MAX 10
#define REPORT_REQUESTS_S 60
void report_request (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

#endif
