/* SPDX-License-Identifier: BSD-3-Clause */
/* Slows the work on disks down while clients use the image.
 *
 * A client waits for the image lock while a table is worked on, and where
 * processors are few, for a processor as well.  Therefore the work rests behind
 * each table, for nine times as long as the table took, so that it has a tenth of
 * the time.  A rest only now and then, behind many tables, would leave the same
 * share of the time, but in pieces for which clients wait: a mutex that is taken
 * again at once often stays with its owner, and a thread that runs for long is more
 * often put off its processor while it holds the lock.
 *
 * Requests set a flag, and the work looks at it behind each table and clears it.
 * So a request writes to the flag's cache line only once for each table.  A client
 * counts as busy for a second after its last request that was seen.
 *
 * dedup_disks_note_request: any thread; all else is for the thread that works.
 */
#include <time.h>

#include "clock.h"
#include "disks-private.h"

#define REST_FACTOR 9
#define MIN_REST_NS (UINT64_C (500) * 1000)
#define MAX_REST_NS (UINT64_C (8) * 1000 * 1000)
#define BUSY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

void
dedup_disks_note_request (struct dedup_disks *d)
{
  if (!__atomic_load_n (&d->pace.used, __ATOMIC_RELAXED))
    __atomic_store_n (&d->pace.used, true, __ATOMIC_RELAXED);
}

void
dedup_pace_begin (struct dedup_disks *d)
{
  __atomic_store_n (&d->pace.used, false, __ATOMIC_RELAXED);
}

static bool
clients_are_busy (struct dedup_disks *d, uint64_t now)
{
  if (__atomic_exchange_n (&d->pace.used, false, __ATOMIC_RELAXED))
    d->pace.used_ns = now;
  return lock_wanted (d->b->lock) ||
    (d->pace.used_ns != 0 && now - d->pace.used_ns < BUSY_NS);
}

uint64_t
dedup_pace (struct dedup_disks *d, uint64_t since_ns)
{
  const uint64_t now = clock_now_ns ();
  struct timespec rest = {
    .tv_nsec = (long) MIN_OF (MAX_OF (REST_FACTOR * (now - since_ns), MIN_REST_NS),
                             MAX_REST_NS),
  };

  if (__atomic_load_n (&d->u->stop, __ATOMIC_RELAXED) ||
      !clients_are_busy (d, now))
    return now;
  nanosleep (&rest, NULL);
  return clock_now_ns ();
}
