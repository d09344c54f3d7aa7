/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_STALE_SOCKET_H
#define DEDUP_STALE_SOCKET_H

#include <stdbool.h>

/* Removes PATH if it is a Unix socket on which nobody listens.  True if it did
 * so; false, and nothing has changed, in all other cases. */
bool remove_stale_socket (const char *path);

#endif
