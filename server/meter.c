/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts requests by type: how many, bytes, errors, and a histogram of the time that
 * they took.
 *
 * A request costs two looks at the clock and three additions.  So that threads on
 * different processors do not fight for a cache line, there are several copies of
 * all counters (shards), each on lines of its own, and a thread uses that of the
 * processor on which it runs.  A reader adds them up.  A sum is exact once all
 * requests have ended; while some run, the counters of one request may be seen in
 * part.
 *
 * Threads: any, without a lock.
 */
#include "meter.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

#define NR_SHARDS 16            /* power of two */
#define LINE 64                 /* bytes of a cache line */

struct tally {                  /* of one type; all atomic */
  uint64_t bytes, errors, total_ns, max_ns;
  uint64_t latency[SRV_LATENCY_BUCKETS];
};

struct shard {
  _Alignas (LINE) struct tally v[SRV_NR_REQUESTS];
};

struct srv_meter {
  struct shard shards[NR_SHARDS];
};

struct srv_meter *
srv_meter_new (void)
{
  struct srv_meter *m = aligned_alloc (LINE, sizeof *m);

  if (m)
    memset (m, 0, sizeof *m);
  return m;
}

void
srv_meter_free (struct srv_meter *m)
{
  free (m);
}

const char *
srv_request_name (enum srv_request type)
{
  static const char *const names[SRV_NR_REQUESTS] = {
    "read", "write", "flush", "trim", "zero", "cache", "block-status",
  };

  return names[type];
}

/* --- Counting ------------------------------------------------------------- */

static unsigned
bucket_of (uint64_t ns)
{
  const unsigned log2 = 63u - (unsigned) __builtin_clzll (ns | 1);

  return MIN_OF (log2, SRV_LATENCY_BUCKETS - 1);
}

static struct tally *
tally_of (struct srv_meter *m, enum srv_request type)
{
  const int cpu = sched_getcpu ();      /* -1 where it is not known */

  return &m->shards[(unsigned) cpu % NR_SHARDS].v[type];
}

static void
note_max (uint64_t *max, uint64_t ns)
{
  uint64_t seen = __atomic_load_n (max, __ATOMIC_RELAXED);

  while (ns > seen &&
         !__atomic_compare_exchange_n (max, &seen, ns, true, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED))
    ;
}

void
srv_meter_count (struct srv_meter *m, enum srv_request type, uint64_t bytes,
                 uint64_t ns, int r)
{
  struct tally *t = tally_of (m, type);

  __atomic_fetch_add (&t->latency[bucket_of (ns)], 1, __ATOMIC_RELAXED);
  __atomic_fetch_add (&t->total_ns, ns, __ATOMIC_RELAXED);
  if (r < 0)
    __atomic_fetch_add (&t->errors, 1, __ATOMIC_RELAXED);
  else
    __atomic_fetch_add (&t->bytes, bytes, __ATOMIC_RELAXED);
  note_max (&t->max_ns, ns);
}

/* --- Sums ----------------------------------------------------------------- */

static uint64_t
load (const uint64_t *n)
{
  return __atomic_load_n (n, __ATOMIC_RELAXED);
}

static void
add_tally (struct srv_request_stats *sum, const struct tally *t)
{
  unsigned i;

  for (i = 0; i < SRV_LATENCY_BUCKETS; i++) {
    const uint64_t nr = load (&t->latency[i]);

    sum->latency[i] += nr;
    sum->count.nr += nr;
  }
  sum->count.bytes += load (&t->bytes);
  sum->count.errors += load (&t->errors);
  sum->total_ns += load (&t->total_ns);
  sum->max_ns = MAX_OF (sum->max_ns, load (&t->max_ns));
}

void
srv_meter_sum (const struct srv_meter *m,
               struct srv_request_stats out[SRV_NR_REQUESTS])
{
  unsigned shard, type;

  memset (out, 0, SRV_NR_REQUESTS * sizeof *out);
  for (shard = 0; shard < NR_SHARDS; shard++)
    for (type = 0; type < SRV_NR_REQUESTS; type++)
      add_tally (&out[type], &m->shards[shard].v[type]);
}

void
srv_counters_add (struct srv_counters *sum, const struct srv_counters *c)
{
  unsigned i;

  for (i = 0; i < SRV_NR_REQUESTS; i++) {
    sum->v[i].nr += load (&c->v[i].nr);
    sum->v[i].errors += load (&c->v[i].errors);
    sum->v[i].bytes += load (&c->v[i].bytes);
  }
}
