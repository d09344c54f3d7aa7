/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads histograms of times whose buckets are powers of two.
 *
 * A quantile is exact to its bucket, a factor of two, and interpolated inside.  No
 * state.
 */
#include "latency.h"

#include "checked.h"

uint64_t
latency_count (const struct latency *l)
{
  uint64_t nr = 0;

  for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
    nr += l->v[i];
  return nr;
}

void
latency_subtract (struct latency *l, const struct latency *before)
{
  for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
    l->v[i] -= MIN_OF (l->v[i], before->v[i]);
}

uint64_t
latency_quantile (const struct latency *l, double q, uint64_t max_ns)
{
  const double wanted = q * (double) latency_count (l);
  double below = 0;

  for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
    const double nr = (double) l->v[i];
    const double start = (double) (UINT64_C (1) << i);

    if (nr > 0 && below + nr >= wanted)
      return MIN_OF (max_ns, (uint64_t) (start + start * (wanted - below) / nr));
    below += nr;
  }
  return 0;
}
