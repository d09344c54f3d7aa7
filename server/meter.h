/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the requests of an image, and how long they take (meter.c). */
#ifndef DEDUP_METER_H
#define DEDUP_METER_H

#include <stddef.h>
#include <time.h>

#include "server-stats.h"

struct srv_meter;

/* Returns NULL if there is no memory. */
struct srv_meter *srv_meter_new (void);
void srv_meter_free (struct srv_meter *m);

/* Counts a request that took NS, and had the result R. */
void srv_meter_count (struct srv_meter *m, enum srv_request type,
                      uint64_t bytes, uint64_t ns, int r);
/* Fills OUT with the sums over all threads. */
void srv_meter_sum (const struct srv_meter *m,
                    struct srv_request_stats out[SRV_NR_REQUESTS]);

/* Counts a request in C, which any thread may read. */
static inline void
srv_counters_note (struct srv_counters *c, enum srv_request type,
                   uint64_t bytes, int r)
{
  struct srv_counter *v = &c->v[type];

  __atomic_fetch_add (&v->nr, 1, __ATOMIC_RELAXED);
  if (r < 0)
    __atomic_fetch_add (&v->errors, 1, __ATOMIC_RELAXED);
  else
    __atomic_fetch_add (&v->bytes, bytes, __ATOMIC_RELAXED);
}

/* Adds what C has to SUM. */
void srv_counters_add (struct srv_counters *sum, const struct srv_counters *c);

#endif
