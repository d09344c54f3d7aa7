/* SPDX-License-Identifier: BSD-3-Clause */
/* One line to syslog that is no error. */
#ifndef DEDUP_SYSLOG_INFO_H
#define DEDUP_SYSLOG_INFO_H

void syslog_info (const char *line);

#endif
