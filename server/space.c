/* SPDX-License-Identifier: BSD-3-Clause */
/* One line when the host has no space left, and one when it has space again.
 *
 * Every writer of a full disk gets ENOSPC, thousands of times; the
 * administrator needs to know twice.  So requests and jobs report their
 * results here, and their own errors for lack of space are not logged.
 *
 * Threads: any.  A request that succeeds while there is space reads one flag;
 * all others take the mutex, under which the lines are written, too, so that
 * they are in order.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "space.h"

#define SECOND_NS UINT64_C (1000000000)
#define QUIET_MIN_NS (3 * SECOND_NS)
#define QUIET_MAX_NS (600 * SECOND_NS)
#define SOON 10                 /* times QUIET_NS */

static uint64_t
now_ns (const struct srv_space *s)
{
  struct timespec t;

  if (s->now_ns)
    return s->now_ns ();
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * SECOND_NS + (uint64_t) t.tv_nsec;
}

bool
srv_is_no_space (int r)
{
  return r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
}

static void
note_refused_locked (struct srv_space *s, int r)
{
  const uint64_t now = now_ns (s);

  s->refused_ns = now;
  if (__atomic_exchange_n (&s->gone, true, __ATOMIC_RELAXED))
    return;
  s->quiet_ns = s->back_ns != 0 && now - s->back_ns < SOON * s->quiet_ns ?
    MIN_OF (2 * s->quiet_ns, QUIET_MAX_NS) : QUIET_MIN_NS;
  log_line (s->log, LOG_ERROR, "%s: no space left on the host (%s): what needs "
            "some fails, until there is some", s->path, strerror (-r));
}

static void
note_success_locked (struct srv_space *s)
{
  const uint64_t now = now_ns (s);

  if (now - s->refused_ns < s->quiet_ns)
    return;
  if (!__atomic_exchange_n (&s->gone, false, __ATOMIC_RELAXED))
    return;
  s->back_ns = now;
  log_line (s->log, LOG_INFO, "%s: there is space on the host again", s->path);
}

void
srv_space_note (struct srv_space *s, int r)
{
  const bool refused = srv_is_no_space (r);

  if (!refused && (r < 0 || !__atomic_load_n (&s->gone, __ATOMIC_RELAXED)))
    return;
  pthread_mutex_lock (&s->mutex);
  if (refused)
    note_refused_locked (s, r);
  else
    note_success_locked (s);
  pthread_mutex_unlock (&s->mutex);
}
