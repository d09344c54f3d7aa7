/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts latencies in constant memory.  Adding one takes a few instructions and
 * never allocates, so that it can be done in the timed part.  Not thread safe:
 * each connection has its own histogram, and they are merged in the end.
 */
#include "histogram.h"

#define SUB (1u << HISTOGRAM_SUB_BITS)

static unsigned
bucket_of (uint64_t ns)
{
  unsigned shift;

  if (ns < SUB)
    return (unsigned) ns;
  shift = 63 - (unsigned) __builtin_clzll (ns) - HISTOGRAM_SUB_BITS;
  return ((shift + 1) << HISTOGRAM_SUB_BITS) + (unsigned) (ns >> shift) - SUB;
}

static uint64_t
bucket_last_ns (unsigned bucket)
{
  unsigned shift;

  if (bucket < SUB)
    return bucket;
  shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
  return (((uint64_t) (bucket % SUB) + SUB + 1) << shift) - 1;
}

void
histogram_add (struct histogram *h, uint64_t ns)
{
  h->buckets[bucket_of (ns)]++;
  h->count++;
  if (ns > h->max_ns)
    h->max_ns = ns;
}

void
histogram_merge (struct histogram *into, const struct histogram *from)
{
  unsigned i;

  for (i = 0; i < HISTOGRAM_BUCKETS; i++)
    into->buckets[i] += from->buckets[i];
  into->count += from->count;
  if (from->max_ns > into->max_ns)
    into->max_ns = from->max_ns;
}

uint64_t
histogram_quantile_ns (const struct histogram *h, double part)
{
  uint64_t wanted = (uint64_t) ((double) h->count * part), seen = 0, ns;
  unsigned i;

  for (i = 0; i < HISTOGRAM_BUCKETS && h->count > 0; i++) {
    seen += h->buckets[i];
    if (seen > wanted || seen == h->count) {
      ns = bucket_last_ns (i);
      return ns < h->max_ns ? ns : h->max_ns;
    }
  }
  return 0;
}
