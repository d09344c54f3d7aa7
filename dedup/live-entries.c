/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts live and dead entries of the index.
 *
 * An entry is live if a lookup of its hash finds it, and it leads to data with that
 * hash, in clusters that are anchored and have a guest reference.  All
 * others are dead: hidden by a younger entry or tombstone of the same hash,
 * outside of the range that their segment still answers for, or left behind by
 * a cluster that is free or has other contents by now.
 *
 * Only the data itself tells the last, so each entry costs a read of its
 * cluster.  Of a large index a sample is taken (index/sample.c).
 *
 * One thread, and nobody changes the image meanwhile.
 */
#include "aligned.h"
#include "pool.h"
#include "value.h"

#include <errno.h>

struct counting {
  const struct dedup_base *b;
  uint8_t *cluster;              /* scratch */
  struct dedup_live_entries *out;
};

/* --- One entry ---------------------------------------------------------- */

struct references {
  uint64_t host_idx;
  uint64_t refcount;             /* the anchor's reference included */
  bool anchored;
};

/* A qcow2_step: fills in the struct references OPAQUE. */
static int
count_references_locked (struct qcow2_txn *txn, void *opaque)
{
  struct references *x = opaque;

  return qcow2_get_refcount_locked (txn, x->host_idx, &x->refcount,
                                    &x->anchored);
}

/* Returns whether the cluster is anchored and a guest refers to it as well. */
static bool
has_guest (const struct dedup_base *b, uint64_t host_idx)
{
  struct references x = { .host_idx = host_idx };

  return qcow2_txn_run (b->img, count_references_locked, &x) == 0 &&
    x.anchored && x.refcount >= 2;
}

/* Returns whether that is so for all clusters that the data at VALUE touches. */
static bool
all_have_guests (const struct dedup_base *b, uint64_t value)
{
  uint64_t first, count, i;

  dedup_value_clusters (b, value, &first, &count);
  for (i = 0; i < count && has_guest (b, first + i); i++)
    ;
  return i == count;
}

static bool
read_data (const struct counting *c, uint64_t value)
{
  const struct dedup_base *b = c->b;

  if (dedup_value_is_compressed (value))
    return qcow2_compressed_read (b->img, value, c->cluster) == 0;
  return io_pread (b->io, c->cluster, b->cluster_size,
                   value << b->cluster_bits) == 0;
}

/* Returns whether the entry leads to data with its hash. */
static bool
holds_data (const struct counting *c, const struct dedup_entry *e)
{
  const struct dedup_base *b = c->b;
  struct dedup_hash h;

  return read_data (c, e->value) &&
    dedup_hash_compute (&b->hasher, c->cluster, b->cluster_size, &h) == 0 &&
    dedup_hash_equal (&h, &e->hash);
}

static void
count_entry (void *opaque, const struct dedup_entry *e, bool hidden)
{
  const struct counting *c = opaque;
  bool live;

  if (e->value == DEDUP_DELETED)
    return;
  live = !hidden && all_have_guests (c->b, e->value) && holds_data (c, e);
  c->out->live += live;
  c->out->dead += !live;
  c->out->looked_at++;
}

/* --- All ---------------------------------------------------------------- */

/* Extends the counts of a sample to ALL entries, in the same proportion. */
static void
extend (struct dedup_live_entries *out, uint64_t all)
{
  if (out->looked_at == 0 || out->looked_at >= all)
    return;
  out->live = (uint64_t) ((double) out->live / (double) out->looked_at *
                          (double) all + 0.5);
  out->dead = all - MIN_OF (out->live, all);
}

int
dedup_count_live_entries (struct dedup_pool *pool,
                          struct dedup_live_entries *out)
{
  CLEANUP_FREE uint8_t *cluster = aligned_new (pool->base.cluster_size);
  struct counting c = { .b = &pool->base, .cluster = cluster, .out = out };
  struct dedup_stats s;
  uint64_t max;
  int r;

  memset (out, 0, sizeof *out);
  if (cluster == NULL)
    return -ENOMEM;
  dedup_get_stats (pool, &s);
  if (!s.has_store || s.index_entries == 0)
    return 0;
  max = MIN_OF (DEDUP_SAMPLE_ENTRIES,
                DEDUP_SAMPLE_BYTES >> pool->base.cluster_bits);
  r = dedup_index_sample (pool->store.index,
                          div_round_up (s.index_entries, max), count_entry,
                          &c);
  if (r < 0)
    return r;
  extend (out, s.index_entries);
  return 0;
}
