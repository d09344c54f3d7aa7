/* SPDX-License-Identifier: BSD-3-Clause */
/* How the server ends on SIGTERM, SIGINT, SIGHUP and SIGQUIT (stop.c).
 *
 * On such a signal requests that are in the plugin are finished, later ones
 * are held back for ever, the image is closed, and the process ends.  No
 * client is waited for.
 */
#ifndef DEDUP_STOP_H
#define DEDUP_STOP_H

#include "cleanup.h"

/* Take the signals over from nbdkit.  CLOSE_IMAGE is called once, by a thread
 * of its own, when no thread is between stop_enter and stop_leave.  Called
 * after the fork.  -errno: the signals are still nbdkit's. */
int stop_init (void (*close_image) (void)) MUST_CHECK;

/* Wait for a close that is under way, and end the thread.  Fine without
 * stop_init.  Called when no connection is left. */
void stop_finish (void);

/* Count this thread as one that serves a connection, until it ends.  Does not
 * return once the server stops. */
void stop_count_connection (void);

/* Everything that uses the image happens between these two.  stop_enter does
 * not return once the server stops. */
void stop_enter (void);
void stop_leave (void);

/* From here to the end of the block. */
#define STOP_SCOPE                                                       \
  __attribute__ ((cleanup (stop_leave_scope), unused)) int stop_scope_ = \
    (stop_enter (), 0)

static inline void
stop_leave_scope (int *unused)
{
  stop_leave ();
}

#endif
