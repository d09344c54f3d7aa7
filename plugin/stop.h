/* SPDX-License-Identifier: BSD-3-Clause */
/* Ends the server on SIGTERM, SIGINT, SIGHUP and SIGQUIT, or when it is asked to
 * (stop.c).
 *
 * On such a signal requests that are in the plugin are finished, later ones are
 * blocked for ever, the image is closed, and the process ends.  It waits for no
 * client.
 */
#ifndef DEDUP_STOP_H
#define DEDUP_STOP_H

#include <stdbool.h>

#include "cleanup.h"

/* Takes the signals over from nbdkit.  On a signal, CLOSE_IMAGE is called once,
 * by a thread of its own, while no thread is between stop_enter and stop_leave.
 * Called after the fork.  On error the signals are still nbdkit's. */
int stop_init (void (*close_image) (void)) MUST_CHECK;

/* Does what a signal does, on any thread; has no effect without stop_init.  Returns at
 * once. */
void stop_request (void);

/* Waits for a close that is in progress, and ends the thread.  Called when no
 * connection is left; has no effect without stop_init. */
void stop_finish (void);

/* Counts the calling thread as one that serves a connection, until it ends.
 * Does not return once the server stops. */
void stop_count_connection (void);

/* Enclose all code that uses the image.  stop_enter does not return once the
 * server stops. */
void stop_enter (void);
void stop_leave (void);
/* Does the same as stop_enter, but returns false, with nothing entered, once the
 * server stops. */
bool stop_try_enter (void);

/* Calls stop_enter here, and stop_leave at the end of the block. */
#define STOP_SCOPE                                                       \
  __attribute__ ((cleanup (stop_leave_scope), unused)) int stop_scope_ = \
    (stop_enter (), 0)

static inline void
stop_leave_scope (int *unused)
{
  stop_leave ();
}

#endif
