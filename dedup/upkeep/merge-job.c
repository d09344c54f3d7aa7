/* SPDX-License-Identifier: BSD-3-Clause */
/* Does steps of merging the index.
 *
 * A step is started and finished under the maintenance mutex, but nearly all of
 * its work is done without it, so that other maintenance is not held up.  Only
 * one step is under way at a time (u->merging).
 */
#include "upkeep-private.h"

#include <errno.h>

/* Flushes, only with mutations for tests: they omit the sync of a table's
 * pages, which the commit of its area's records must not sync by chance. */
static int
prepare_mutation (struct dedup_upkeep *u)
{
  return mutation (MUTATION_MERGE_NO_SYNC) ||
    mutation (MUTATION_CONVERSION_NO_SYNC) ? dedup_upkeep_flush (u) : 0;
}

/* Plans a step, unless another thread does one: *S is NULL then, or if there is
 * nothing to merge.  Makes room in the journal first, as that may freeze, and a
 * freeze may merge.  Maintenance. */
static int
start_step (struct dedup_upkeep *u, unsigned flags,
            struct dedup_index_step **s)
{
  int r = dedup_gate_failed (&u->s->gate);

  *s = NULL;
  if (r == 0 && !u->merging)
    r = dedup_journal_extend (u);
  if (r == 0 && !u->merging)
    r = dedup_index_step_start (u->s->index, flags, s);
  u->merging = u->merging || *s != NULL;
  return MIN_OF (r, 0);
}

/* Does the bulk of a step, without the mutex. */
static int
work (struct dedup_upkeep *u, struct dedup_index_step *s)
{
  int r = prepare_mutation (u);

  return r == 0 ? dedup_index_step_work (s) : r;
}

/* Ends a step whose work had the result R.  Maintenance. */
static int
finish_step (struct dedup_upkeep *u, struct dedup_index_step *s, int r)
{
  u->merging = false;
  pthread_cond_broadcast (&u->merged);
  r = dedup_index_step_finish (s, r);
  return r == -EINTR ? 0 : r;
}

/* Does one step; *CONVERTED tells whether it was a conversion. */
static int
do_step (struct dedup_upkeep *u, unsigned flags, bool *converted)
{
  struct dedup_index_step *s;
  int r;

  pthread_mutex_lock (&u->maintenance);
  r = start_step (u, flags, &s);
  pthread_mutex_unlock (&u->maintenance);
  *converted = s != NULL && dedup_index_step_converts (s);
  if (s == NULL)
    return r;
  r = work (u, s);
  pthread_mutex_lock (&u->maintenance);
  r = finish_step (u, s, r);
  pthread_mutex_unlock (&u->maintenance);
  return r;
}

/* Asks the index what is to be merged next. */
static void
look (struct dedup_upkeep *u, bool failed_at_rest)
{
  pthread_mutex_lock (&u->maintenance);
  dedup_index_look (u->s->index, failed_at_rest);
  pthread_mutex_unlock (&u->maintenance);
}

int
dedup_merge_step (struct dedup_upkeep *u, bool idle)
{
  const unsigned flags = idle ? DEDUP_STEP_IDLE : 0;
  bool converted;
  int r = do_step (u, flags, &converted), r2;

  /* A merge may make the space that a conversion lacked. */
  if (r < 0 && converted && dedup_gate_failed (&u->s->gate) == 0) {
    r2 = do_step (u, flags | DEDUP_STEP_NO_CONVERSION, &converted);
    r = r2 < 0 ? r2 : r;
  }
  look (u, idle && r < 0);
  return r;
}
