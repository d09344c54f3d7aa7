/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells a certain assertion of nbdkit 1.32's from all other aborts
 * (send-abort.c). */
#ifndef DEDUP_SEND_ABORT_H
#define DEDUP_SEND_ABORT_H

#include <stdbool.h>

/* Called once, before send_abort_is_it. */
void send_abort_init (void);

/* Returns true if the process aborts because nbdkit sent a reply to a client
 * that had hung up.  For a handler of SIGABRT: takes no lock, allocates
 * nothing. */
bool send_abort_is_it (void);

#endif
