/* SPDX-License-Identifier: BSD-3-Clause */
/* Freezes the log store that was set aside: writes it as a table of the index.
 *
 * A freeze that finds the list of tables full has to merge first, and only one
 * merge step may be under way.  While merge-job.c does one without the mutex,
 * such a freeze is refused.  Who takes the mutex for something that may freeze
 * waits for the step's end first (dedup_maintenance_begin), so it is refused
 * only to a caller that has filled the list itself, under the same hold of the
 * mutex.
 *
 * Maintenance only.
 */
#include "upkeep-private.h"

#include <errno.h>

/* Returns true if a freeze would have to merge while another thread does. */
static bool
must_wait (const struct dedup_upkeep *u)
{
  return u->merging && dedup_index_must_merge (u->s->index);
}

void
dedup_maintenance_begin (struct dedup_upkeep *u)
{
  pthread_mutex_lock (&u->maintenance);
  while (must_wait (u))
    pthread_cond_wait (&u->merged, &u->maintenance);
}

void
dedup_maintenance_end (struct dedup_upkeep *u)
{
  pthread_mutex_unlock (&u->maintenance);
}

int
dedup_freeze (struct dedup_upkeep *u)
{
  return must_wait (u) ? -EBUSY : dedup_index_freeze (u->s->index);
}
