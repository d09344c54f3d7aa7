/* SPDX-License-Identifier: BSD-3-Clause */
/* Logs one line when the space on the host becomes low, one when there is none left,
 * and one when there is some again; each change is an event as well.
 *
 * Every writer of a full disk gets ENOSPC, thousands of times, but the
 * administrator needs two lines.  So requests and jobs report their results
 * here, and do not log errors for lack of space themselves.  How much there is left
 * is measured by others (watch.c).  What clients met counts more than what was
 * measured, as a host may refuse space of which it says that it has it: quotas and
 * thin devices do.
 *
 * Threads: any.  A request that succeeds while there is space only reads a
 * flag.  All others take the mutex, and lines are logged under it, so that they
 * are in order.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "clock.h"
#include "space.h"

#define SECOND_NS UINT64_C (1000000000)
#define QUIET_MIN_NS (3 * SECOND_NS)
#define QUIET_MAX_NS (600 * SECOND_NS)
#define SOON 10                 /* soon is within so many times quiet_ns */

static uint64_t
now_ns (const struct srv_space *s)
{
  return s->now_ns ? s->now_ns () : clock_now_ns ();
}

bool
srv_is_no_space (int r)
{
  return r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
}

/* --- Status --------------------------------------------------------------- */

static const char *
status_locked (const struct srv_space *s)
{
  return __atomic_load_n (&s->gone, __ATOMIC_RELAXED) ? "gone"
    : s->is_low ? "low" : "ok";
}

/* Tells the listener if the status is another one than it was told. */
static void
tell_locked (struct srv_space *s)
{
  const struct srv_event e = {
    .kind = SRV_EVENT_SPACE, .status = status_locked (s),
    .bytes = s->is_measured ? s->available_bytes : UINT64_MAX,
  };

  if (strcmp (e.status, s->told ? s->told : "ok") == 0)
    return;
  s->told = e.status;
  srv_notify (s->listener, &e);
}

const char *
srv_space_status (struct srv_space *s)
{
  const char *status;

  pthread_mutex_lock (&s->mutex);
  status = status_locked (s);
  pthread_mutex_unlock (&s->mutex);
  return status;
}

/* --- What was measured ---------------------------------------------------- */

static void
log_low_locked (struct srv_space *s, uint64_t low)
{
  const uint64_t mib = UINT64_C (1) << 20;

  if (s->is_low)
    log_line (s->log, LOG_INFO, "%s: space on the host is low: %" PRIu64
              " MiB are left (less than %" PRIu64 " MiB)", s->path,
              s->available_bytes / mib, div_round_up (low, mib));
  else
    log_line (s->log, LOG_INFO, "%s: space on the host is low no longer: %"
              PRIu64 " MiB are left", s->path, s->available_bytes / mib);
}

void
srv_space_measured (struct srv_space *s, uint64_t available, uint64_t low)
{
  uint64_t limit;

  pthread_mutex_lock (&s->mutex);
  limit = low + (s->is_low ? low / 8 : 0);
  s->available_bytes = available;
  s->is_measured = true;
  if (s->is_low != (available < limit)) {
    s->is_low = !s->is_low;
    log_low_locked (s, low);
  }
  tell_locked (s);
  pthread_mutex_unlock (&s->mutex);
}

/* --- What requests and jobs met ------------------------------------------- */

static void
note_refused_locked (struct srv_space *s, int r)
{
  const uint64_t now = now_ns (s);

  s->refused_ns = now;
  if (__atomic_exchange_n (&s->gone, true, __ATOMIC_RELAXED))
    return;
  s->quiet_ns = s->back_ns != 0 && now - s->back_ns < SOON * s->quiet_ns ?
    MIN_OF (2 * s->quiet_ns, QUIET_MAX_NS) : QUIET_MIN_NS;
  log_line (s->log, LOG_ERROR, "%s: no space left on the host (%s): requests "
            "that need space fail until there is some", s->path,
            strerror (-r));
  tell_locked (s);
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
  tell_locked (s);
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
