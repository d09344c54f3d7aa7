/* SPDX-License-Identifier: BSD-3-Clause */
/* Slows down a long job of the index that is not urgent. */
#ifndef DEDUP_INDEX_PACE_H
#define DEDUP_INDEX_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

/* One job's pace; the job sets RESTING, and all else to zeroes. */
struct index_pace {
  bool resting;                    /* false: the job is urgent, never sleep */
  size_t nr;                       /* entries since the last sleep */
  struct timespec last;            /* when the first of them came */
};

/* Counts one entry.  If P is RESTING, sleeps after every 25,000 of them for as
 * long as they took, or not at all if that was a second or more. */
void index_pace (struct index_pace *p);

#endif
