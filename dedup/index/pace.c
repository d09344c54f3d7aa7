/* SPDX-License-Identifier: BSD-3-Clause */
/* Rests in the course of a long job that is in no hurry, so that it takes half of
 * one core and of the storage's time at the most. */
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
  if (t.tv_sec == 0)             /* else the machine was busy anyway */
    nanosleep (&t, NULL);
}
