/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the histograms of query-stats (latency.c). */
#ifndef DEDUP_TOOL_LATENCY_H
#define DEDUP_TOOL_LATENCY_H

#include <stdint.h>

#define LATENCY_BUCKETS 32

/* Bucket I counts requests that took 2^I ns or more, and less than 2^(I+1) ns; the
 * last one all slower ones as well. */
struct latency {
  uint64_t v[LATENCY_BUCKETS];
};

uint64_t latency_count (const struct latency *l);
/* Subtracts what BEFORE counted; never below 0. */
void latency_subtract (struct latency *l, const struct latency *before);
/* Returns the time in ns below which the share Q (0 to 1) of the requests stayed, as if
 * the requests of a bucket were spread evenly over it, and at most MAX_NS.  0: none
 * were counted. */
uint64_t latency_quantile (const struct latency *l, double q, uint64_t max_ns);

#endif
