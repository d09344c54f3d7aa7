/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_STALE_SOCKET_H
#define DEDUP_STALE_SOCKET_H

#include <stdbool.h>

/* Removes PATH if it is a Unix socket on which no process listens.  Returns
 * true if it was removed; otherwise nothing has changed. */
bool remove_stale_socket (const char *path);

/* Removes the socket on which this nbdkit listens, and its directory, if nbdkit
 * created them for -U - or --run, which it removes itself when it exits. */
void remove_temporary_socket (void);

#endif
