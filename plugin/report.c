/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes messages to the administrator.
 *
 * nbdkit has a call for errors, but none for information.  If standard error is
 * the systemd journal, a line may begin with a priority such as <3>
 * (sd-daemon(3)).  nbdkit_error puts "nbdkit:" in front of its message, so
 * lines with a priority are written here.
 *
 *   standard error is   error           info                debug
 *   the journal         <3>, here       <6>, here           nbdkit_debug
 *   /dev/null           nbdkit_error    syslog              nbdkit_debug
 *   anything else       nbdkit_error    standard error      nbdkit_debug
 *
 * Standard error is /dev/null after nbdkit has gone into the background;
 * nbdkit_error writes to syslog then.
 *
 * Each line is written with one write, so that lines of threads do not mix.  It stays one
 * line, whatever names the user gave: control characters in it become '?'.
 */
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "fault.h"
#include "report.h"
#include "syslog-info.h"

#define MAX_LINE (PATH_MAX + 1024)      /* a path, and what is wrong with it */

enum where { UNKNOWN, TO_STDERR, TO_JOURNAL, TO_SYSLOG };

/* Set while there is only one thread: */
static enum where where;

/* Atomic: */
static enum log_level level_wanted = LOG_INFO;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Protected by mutex: */
static struct window {
  time_t start;                 /* CLOCK_MONOTONIC */
  unsigned nr, left_out;        /* lines */
} requests, refusals;

/* --- Destination ---------------------------------------------------------- */

/* Returns true if ST is the journal.  JOURNAL_STREAM is DEVICE:INODE of the
 * stream that systemd made standard error; it may have been replaced since. */
static bool
is_journal (const struct stat *st)
{
  const char *s = getenv ("JOURNAL_STREAM");
  uintmax_t dev, ino;

  return s && sscanf (s, "%" SCNuMAX ":%" SCNuMAX, &dev, &ino) == 2 &&
    dev == (uintmax_t) st->st_dev && ino == (uintmax_t) st->st_ino;
}

static bool
is_dev_null (const struct stat *st)
{
  return S_ISCHR (st->st_mode) && st->st_rdev == makedev (1, 3);
}

static enum where
find_where (bool forked)
{
  struct stat st;

  if (fstat (STDERR_FILENO, &st) < 0)
    return TO_SYSLOG;
  if (is_journal (&st))
    return TO_JOURNAL;
  return forked && is_dev_null (&st) ? TO_SYSLOG : TO_STDERR;
}

void
report_after_fork (void)
{
  where = find_where (true);
}

/* --- Lines ---------------------------------------------------------------- */

static void
write_line (const char *prefix, const char *line)
{
  char buf[MAX_LINE + 64];
  int len = snprintf (buf, sizeof buf, "%snbdkit: dedup: %s\n", prefix, line);
  ssize_t r;

  if (len >= (int) sizeof buf) {
    len = sizeof buf - 1;
    buf[len - 1] = '\n';
  }
  r = write (STDERR_FILENO, buf, (size_t) len);
  (void) r;                     /* an error here cannot be reported */
}

static void
put_error (const char *line)
{
  char error[MAX_LINE + 16];

  if (where == UNKNOWN)
    where = find_where (false);
  if (where != TO_JOURNAL) {
    nbdkit_error ("%s", line);
    return;
  }
  snprintf (error, sizeof error, "error: %s", line);
  write_line ("<3>", error);
}

static void
put_info (const char *line)
{
  if (where == UNKNOWN)
    where = find_where (false);
  switch (where) {
  case TO_SYSLOG:
    syslog_info (line);
    break;
  case TO_JOURNAL:
    write_line ("<6>", line);
    break;
  default:
    write_line ("", line);
  }
}

static void __attribute__ ((__format__ (__printf__, 2, 0)))
format (char line[MAX_LINE], const char *fmt, va_list args)
{
  vsnprintf (line, MAX_LINE, fmt, args);
  fault_make_printable (line);
}

void
report_error (const char *fmt, ...)
{
  char line[MAX_LINE];
  va_list args;

  va_start (args, fmt);
  format (line, fmt, args);
  va_end (args);
  put_error (line);
}

void
report_info (const char *fmt, ...)
{
  char line[MAX_LINE];
  va_list args;

  va_start (args, fmt);
  format (line, fmt, args);
  va_end (args);
  put_info (line);
}

/* Returns true if a line may be written now, in W.  *SKIPPED: the number of lines
 * that were left out before this one. */
static bool
take_place (struct window *w, unsigned *skipped)
{
  struct timespec now;
  bool may;

  clock_gettime (CLOCK_MONOTONIC, &now);
  pthread_mutex_lock (&mutex);
  *skipped = 0;
  if (w->nr == 0 || now.tv_sec - w->start >= REPORT_REQUESTS_S) {
    *skipped = w->left_out;
    *w = (struct window) { .start = now.tv_sec };
  }
  may = w->nr < REPORT_REQUESTS_MAX;
  if (may)
    w->nr++;
  else
    w->left_out++;
  pthread_mutex_unlock (&mutex);
  return may;
}

/* Formats LINE, followed by how many lines of W were left out before it and by WHAT
 * happened to them.  Returns false if no line may be written now. */
static bool __attribute__ ((__format__ (__printf__, 4, 0)))
format_one_of_many (struct window *w, char line[MAX_LINE], const char *what,
                    const char *fmt, va_list args)
{
  unsigned skipped;
  size_t len;

  if (!take_place (w, &skipped))
    return false;
  format (line, fmt, args);
  len = strlen (line);
  if (skipped > 0)
    snprintf (line + len, MAX_LINE - len, " (%u more %s)", skipped, what);
  return true;
}

void
report_request (const char *fmt, ...)
{
  char line[MAX_LINE];
  va_list args;

  va_start (args, fmt);
  if (format_one_of_many (&requests, line, "requests failed before it", fmt, args))
    put_error (line);
  va_end (args);
}

void
report_refused (const char *fmt, ...)
{
  char line[MAX_LINE];
  va_list args;

  va_start (args, fmt);
  if (format_one_of_many (&refusals, line, "were refused before", fmt, args))
    nbdkit_error ("%s", line);
  va_end (args);
}

void
report_set_level (enum log_level new_level)
{
  __atomic_store_n (&level_wanted, new_level, __ATOMIC_RELAXED);
}

static void
log_write (void *opaque, enum log_level level, const char *line)
{
  const bool wanted = level <= __atomic_load_n (&level_wanted,
                                                __ATOMIC_RELAXED);

  if (level == LOG_ERROR)
    put_error (line);
  else if (wanted)
    put_info (line);
  else if (level == LOG_DEBUG)
    nbdkit_debug ("%s", line);
}

const struct log_sink report_sink = { .write = log_write };
