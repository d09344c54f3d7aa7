/* SPDX-License-Identifier: BSD-3-Clause */
/* Says when the space on the host for an image is low, is gone, and is back: in one
 * line of the log and one event each (space.c). */
#ifndef DEDUP_SPACE_H
#define DEDUP_SPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "events.h"
#include "log.h"

struct srv_space {              /* all zero: valid, and logs nothing */
  /* Constant: */
  const char *path;             /* for messages */
  const struct log_sink *log;
  const struct srv_listener *listener;  /* may be NULL */
  uint64_t (*now_ns) (void);    /* NULL: CLOCK_MONOTONIC */

  bool gone;                    /* atomic; changed under mutex */

  pthread_mutex_t mutex;        /* all zero: unlocked */

  /* Protected by mutex: */
  uint64_t refused_ns;          /* time of the last error for lack of space */
  uint64_t back_ns;             /* when gone last became false; 0: never */
  uint64_t quiet_ns;            /* see srv_space_note */
  bool is_low, is_measured;
  uint64_t available_bytes;     /* if it is measured */
  const char *told;             /* the status of the last event; NULL: "ok" */
};

/* Returns true if R is one of the errors for lack of space. */
bool srv_is_no_space (int r);

/* Notes R, the result of an operation that may need space on the host: 0 or
 * more on success, else -errno.  Logs a line at the first error for lack of
 * space, and one at the first success after quiet_ns without such an error.
 * quiet_ns is 3 s, and doubles, up to 10 minutes, each time that space is gone
 * again soon after that: on a full disk some writes need no space and succeed.
 * Any thread. */
void srv_space_note (struct srv_space *s, int r);

/* Notes that AVAILABLE bytes can still be stored.  Space is low below LOW bytes, and
 * no longer so once there is an eighth more than LOW. */
void srv_space_measured (struct srv_space *s, uint64_t available, uint64_t low);

/* Returns "ok", "low" or "gone". */
const char *srv_space_status (struct srv_space *s);

#endif
