/* SPDX-License-Identifier: BSD-3-Clause */
/* Says in the log, in one line each, that the host has no space left for the
 * image, and that it has space again (space.c). */
#ifndef DEDUP_SPACE_H
#define DEDUP_SPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "log.h"

struct srv_space {              /* all zero is fine: it writes no lines */
  /* Constant: */
  const char *path;             /* for messages */
  const struct log_sink *log;
  uint64_t (*now_ns) (void);    /* NULL: CLOCK_MONOTONIC */

  bool gone;                    /* atomic; changed under mutex */

  pthread_mutex_t mutex;        /* all zero is an unlocked one */

  /* Protected by mutex: */
  uint64_t refused_ns;          /* when something last found no space */
  uint64_t back_ns;             /* when gone last became false; 0: never */
  uint64_t quiet_ns;            /* see srv_space_note */
};

/* Is R an error that says that there is no space? */
bool srv_is_no_space (int r);

/* Note R, the result of something that may need space on the host: 0 or more
 * where it succeeded, -errno.  Writes a line at the first error for lack of
 * space, and one at the first success after QUIET_NS without such an error.
 * QUIET_NS is 3 s; each time that space is gone again soon after, it doubles,
 * up to 10 minutes: on a full disk some writes need no space and succeed.  Any
 * thread. */
void srv_space_note (struct srv_space *s, int r);

#endif
