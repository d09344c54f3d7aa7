/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes messages to the administrator: to standard error, with priorities if
 * that is the systemd journal, or to syslog once nbdkit is in the background
 * (report.c). */
#ifndef DEDUP_REPORT_H
#define DEDUP_REPORT_H

#include "log.h"

/* The log sink for all rooms below.  Their lines name the image. */
extern const struct log_sink report_sink;

/* Finds out again what standard error is.  Called when the process has forked,
 * or is known not to. */
void report_after_fork (void);

/* Chooses which lines of rooms below are written from now on: errors only, information
 * also (the default), or, as if they were information, those for debugging as well.
 * Any thread. */
void report_set_level (enum log_level level);

/* Write one line: an error, or information. */
void report_error (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));
void report_info (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Writes a line on a request of a client that failed, as report_error does, but
 * at most REPORT_REQUESTS_MAX lines in REPORT_REQUESTS_S seconds.  The line
 * after some that were left out tells their number. */
#define REPORT_REQUESTS_MAX 10
#define REPORT_REQUESTS_S 60
void report_request (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

/* Writes a line on a client that was refused, and as few of these.  They are counted
 * apart, so that nobody who is refused can keep errors of requests out of the log.  nbdkit
 * may send the line to the client. */
void report_refused (const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 1, 2)));

#endif
