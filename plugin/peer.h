/* SPDX-License-Identifier: BSD-3-Clause */
/* Says who is at the other end of the current connection (peer.c). */
#ifndef DEDUP_PEER_H
#define DEDUP_PEER_H

#include <stddef.h>

/* Writes to BUF, at most LEN bytes, a name for people: "192.0.2.7:51234",
 * "[2001:db8::7]:51234", "unix:pid=4711,uid=107", "vsock:3:1024", or "unknown".
 * Called in the thread of a connection.  Returns BUF. */
const char *peer_name (char *buf, size_t len);

#endif
