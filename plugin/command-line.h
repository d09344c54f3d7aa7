/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_COMMAND_LINE_H
#define DEDUP_COMMAND_LINE_H

/* The argument of this process, an nbdkit, that makes all connections to the
 * plugin read-only, as a constant string: "-r", or a filter such as
 * "--filter=cow".  NULL: there is none, so clients may be given write access. */
const char *command_line_readonly (void);

/* The path of the Unix socket that nbdkit is to make (-U), for the caller to
 * free.  NULL: it makes none, or one with a name of its own (-U -). */
char *command_line_socket (void);

#endif
