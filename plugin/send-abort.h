/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells an assertion of nbdkit 1.32's from everything else that aborts
 * (send-abort.c). */
#ifndef DEDUP_SEND_ABORT_H
#define DEDUP_SEND_ABORT_H

#include <stdbool.h>

/* Once, before send_abort_is_it. */
void send_abort_init (void);

/* Called by a handler of SIGABRT: does the process abort since nbdkit sent an
 * answer to a client that had hung up?  Takes no lock and allocates nothing. */
bool send_abort_is_it (void);

#endif
