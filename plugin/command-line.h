/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_COMMAND_LINE_H
#define DEDUP_COMMAND_LINE_H

#include <stdbool.h>

/* Returns the command-line argument of this nbdkit that makes all connections
 * to the plugin read-only, as a constant string: "-r", or a filter such as
 * "--filter=cow".  NULL: there is none, so clients may get write access. */
const char *command_line_readonly (void);

/* Returns the path of the Unix socket that nbdkit will create (-U), which the
 * caller frees.  NULL: it creates none, or chooses the path itself (-U -). */
char *command_line_socket (void);

/* Returns whether nbdkit serves one client, on stdin and stdout (-s). */
bool command_line_on_stdin (void);

#endif
