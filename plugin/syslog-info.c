/* SPDX-License-Identifier: BSD-3-Clause */
/* A file of its own, as syslog.h and log.h both have a LOG_INFO.
 *
 * The name that syslog puts in front of the line is that of the process, as in
 * nbdkit's own messages.
 */
#include <syslog.h>

#include "syslog-info.h"

void
syslog_info (const char *line)
{
  syslog (LOG_DAEMON | LOG_INFO, "dedup: %s", line);
}
