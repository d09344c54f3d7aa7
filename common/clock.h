/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the time for measuring how long something takes: it counts from some moment
 * before the process began, and nobody can set it. */
#ifndef DEDUP_CLOCK_H
#define DEDUP_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Returns nanoseconds of CLOCK_MONOTONIC. */
static inline uint64_t
clock_now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

#endif
