/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_SYSLOG_INFO_H
#define DEDUP_SYSLOG_INFO_H

/* Writes LINE to syslog, with the priority of information. */
void syslog_info (const char *line);

#endif
