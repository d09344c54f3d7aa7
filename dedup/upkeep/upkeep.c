/* SPDX-License-Identifier: BSD-3-Clause */
/* Initializes and destroys the upkeep of an image: its mutex and conditions,
 * and the pointers of its parts to base and store.
 *
 * Nothing is done to the image here, and no thread is started: the jobs are run by the
 * background loop, or by a writer that lacks room (make-room.c), which calls them under
 * the maintenance mutex.
 */
#include "upkeep.h"

void
dedup_upkeep_init (struct dedup_upkeep *u, const struct dedup_base *b,
                   struct dedup_store *s)
{
  u->b = u->reserve.b = u->prewrite.b = u->give.b = b;
  u->s = u->reserve.s = u->prewrite.s = s;
  pthread_mutex_init (&u->maintenance, NULL);
  pthread_cond_init (&u->merged, NULL);
  pthread_cond_init (&u->give.changed, NULL);
}

void
dedup_upkeep_destroy (struct dedup_upkeep *u)
{
  pthread_cond_destroy (&u->give.changed);
  pthread_cond_destroy (&u->merged);
  pthread_mutex_destroy (&u->maintenance);
}
