/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts latencies in buckets whose width is 1/64 of their value. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 6
/* 64 exact values, then 64 buckets for each further power of two. */
#define HISTOGRAM_BUCKETS ((65 - HISTOGRAM_SUB_BITS) << HISTOGRAM_SUB_BITS)

struct histogram {
  uint64_t buckets[HISTOGRAM_BUCKETS];
  uint64_t count;
  uint64_t max_ns;
};

void histogram_add (struct histogram *h, uint64_t ns);
void histogram_merge (struct histogram *into, const struct histogram *from);

/* Returns the latency that the given part (0 to 1) of all stayed at or below,
 * at most 1.6 % too high; 0 if there are none. */
uint64_t histogram_quantile_ns (const struct histogram *h, double part);

#endif
