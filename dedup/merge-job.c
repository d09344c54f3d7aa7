/* SPDX-License-Identifier: BSD-3-Clause */
/* Steps of merging the index, and freezes that may need one: who holds the
 * maintenance mutex meanwhile.
 *
 * A step is started and finished under the mutex, but nearly all of its work is
 * done without it, so that other maintenance is not held up.  Only one step is
 * under way at a time (d->merging).  A freeze that finds the list of tables full
 * merges itself; it waits until no step is under way.
 */
#include "disk.h"

#include <errno.h>

static void
wait_for_step (struct dedup_disk *d)
{
  while (d->merging)
    pthread_cond_wait (&d->merged, &d->maintenance);
}

int
dedup_freeze (struct dedup_disk *d)
{
  int r;

  if (dedup_index_must_merge (d->index)) {
    wait_for_step (d);          /* first, as anything may change meanwhile */
    r = dedup_failed (d);
    if (r < 0)
      return r;
  }
  return dedup_index_freeze (d->index);
}

/* With the mutation, the sync of the area's records must not sync the table's
 * pages by chance. */
static int
prepare_mutation (struct dedup_disk *d)
{
  return mutation (MUTATION_MERGE_NO_SYNC) ||
    mutation (MUTATION_CONVERSION_NO_SYNC) ? dedup_flush (d) : 0;
}

/* The bulk of a step, without the mutex. */
static int
work (struct dedup_disk *d, struct dedup_index_step *s)
{
  int r;

  d->merging = true;
  pthread_mutex_unlock (&d->maintenance);
  r = prepare_mutation (d);
  if (r == 0)
    r = dedup_index_step_work (s);
  pthread_mutex_lock (&d->maintenance);
  d->merging = false;
  pthread_cond_broadcast (&d->merged);
  return r;
}

/* One step; *CONVERTED: it was a conversion.  Room in the journal is made first:
 * that may freeze, and a freeze may merge or let go of the mutex. */
static int
run_step (struct dedup_disk *d, unsigned flags, bool *converted)
{
  struct dedup_index_step *s;
  int r = dedup_journal_extend (d);

  *converted = false;
  if (r < 0 || d->merging)      /* somebody else does a step */
    return r;
  r = dedup_index_step_start (d->index, flags, &s);
  if (r <= 0)
    return r;
  *converted = dedup_index_step_converts (s);
  r = dedup_index_step_finish (s, work (d, s));
  return r == -EINTR ? 0 : r;
}

static int
step (struct dedup_disk *d, unsigned flags)
{
  bool converted;
  int r, r2;

  if (d->merging)
    return 0;
  r = run_step (d, flags, &converted);
  if (r == 0 || !converted || dedup_failed (d) < 0)
    return r;
  /* A merge may make the space that the conversion lacked. */
  r2 = run_step (d, flags | DEDUP_STEP_NO_CONVERSION, &converted);
  return r2 < 0 ? r2 : r;
}

int
dedup_merge_step (struct dedup_disk *d, bool idle)
{
  int r;

  pthread_mutex_lock (&d->maintenance);
  r = dedup_failed (d);
  if (r == 0)
    r = step (d, idle ? DEDUP_STEP_IDLE : 0);
  dedup_index_look (d->index, idle && r < 0);
  pthread_mutex_unlock (&d->maintenance);
  return r;
}
