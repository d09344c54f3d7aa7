/* SPDX-License-Identifier: BSD-3-Clause */
/* Slows down a long job that is not urgent (a merge, a conversion), so that it
 * takes at most half of one core and half of the storage's time.
 *
 * After each PACE_ENTRIES entries the job sleeps for as long as these took.
 * Where they took a second or more, the machine was busy with other things,
 * and the job does not sleep: so no sleep is longer than a second, and a stop
 * (index.h) is noticed soon.
 *
 * One thread for each struct index_pace; no locks, and no I/O of its own.  Left
 * out: the decision which job is urgent, which merge-plan.c makes.
 */
#include "pace.h"

#define PACE_ENTRIES 25000       /* about 1 MiB */

void
index_pace (struct index_pace *p)
{
  struct timespec now, t;

  if (!p->resting)
    return;
  if (p->nr == 0)
    clock_gettime (CLOCK_MONOTONIC, &p->last);
  if (++p->nr < PACE_ENTRIES)
    return;
  p->nr = 0;
  clock_gettime (CLOCK_MONOTONIC, &now);
  t.tv_sec = now.tv_sec - p->last.tv_sec;
  t.tv_nsec = now.tv_nsec - p->last.tv_nsec;
  if (t.tv_nsec < 0) {
    t.tv_sec--;
    t.tv_nsec += 1000000000;
  }
  if (t.tv_sec == 0)             /* else the machine was busy */
    nanosleep (&t, NULL);
}
