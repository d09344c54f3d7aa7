/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a line of information to syslog.
 *
 * This is a file of its own because syslog.h and log.h both define LOG_INFO.
 * syslog puts the name of the process in front of the line, as in nbdkit's own
 * messages.
 */
#include <syslog.h>

#include "syslog-info.h"

void
syslog_info (const char *line)
{
  syslog (LOG_DAEMON | LOG_INFO, "dedup: %s", line);
}
