/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_INDEX_PACE_H
#define DEDUP_INDEX_PACE_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

/* Starts as zeroes but for RESTING. */
struct index_pace {
  bool resting;
  size_t nr;
  struct timespec last;
};

/* Called for each entry; if P is RESTING, sleeps now and then for as long as the
 * entries since the last time took. */
void index_pace (struct index_pace *p);

#endif
