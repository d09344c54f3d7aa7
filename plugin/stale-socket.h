/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_STALE_SOCKET_H
#define DEDUP_STALE_SOCKET_H

#include <stdbool.h>

/* Removes PATH if it is a Unix socket on which nobody listens.  True if it did
 * so; false, and nothing has changed, in all other cases. */
bool remove_stale_socket (const char *path);

/* Removes the socket on which this nbdkit listens, and its directory, if nbdkit
 * made them for -U - or --run and would remove them at its own end. */
void remove_temporary_socket (void);

#endif
