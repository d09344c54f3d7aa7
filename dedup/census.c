/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts live and dead entries of the index.  Live are those that a lookup of
 * their hash finds, and that lead to a cluster which is anchored, has a guest
 * reference, and holds data with that hash.  All others are dead: hidden by a
 * younger entry or tombstone of their hash, outside of what their segment still
 * answers for, or left behind by a cluster that is free or has other contents by
 * now.
 *
 * Only the data itself tells the last, so each entry costs a read of its cluster.
 * Of a large index a sample is taken (index/sample.c).
 *
 * One thread, and nobody changes the disk meanwhile.
 */
#include "aligned.h"
#include "disk.h"

#include <errno.h>

struct census {
  struct dedup_disk *d;
  uint8_t *cluster;              /* scratch */
  struct dedup_census *res;
};

/* --- One entry ----------------------------------------------------------- */

static bool
has_guest (struct census *c, uint64_t host_idx)
{
  struct dedup_disk *d = c->d;
  struct qcow2_txn txn;
  uint64_t refcount;
  bool anchored;
  int r;

  qcow2_txn_begin (d->img, &txn);
  do {
    lock_acquire (d->lock);
    r = qcow2_get_refcount_locked (&txn, host_idx, &refcount, &anchored);
    lock_release (d->lock);
    if (r == -EAGAIN && qcow2_txn_load (&txn) < 0)
      r = -EIO;
  } while (r == -EAGAIN);
  qcow2_txn_end (&txn);
  return r == 0 && anchored && refcount >= 2;
}

static bool
holds_data (struct census *c, const struct dedup_entry *e)
{
  struct dedup_disk *d = c->d;
  struct dedup_hash h;

  return io_pread (d->io, c->cluster, d->cluster_size,
                   e->value << d->cluster_bits) == 0 &&
    dedup_hash_compute (&d->hasher, c->cluster, d->cluster_size, &h) == 0 &&
    dedup_hash_equal (&h, &e->hash);
}

static void
count_entry (void *opaque, const struct dedup_entry *e, bool hidden)
{
  struct census *c = opaque;
  bool live;

  if (e->value == DEDUP_DELETED)
    return;
  live = !hidden && has_guest (c, e->value) && holds_data (c, e);
  c->res->live += live;
  c->res->dead += !live;
  c->res->looked_at++;
}

/* --- All ----------------------------------------------------------------- */

/* What was not looked at is as what was. */
static void
extend (struct dedup_census *res, uint64_t all)
{
  if (res->looked_at == 0 || res->looked_at >= all)
    return;
  res->live = (uint64_t) ((double) res->live / (double) res->looked_at *
                          (double) all + 0.5);
  res->dead = all - MIN_OF (res->live, all);
}

int
dedup_take_census (struct dedup_disk *d, struct dedup_census *res)
{
  CLEANUP_FREE uint8_t *cluster = aligned_new (d->cluster_size);
  struct census c = { .d = d, .cluster = cluster, .res = res };
  struct dedup_stats s;
  uint64_t max;
  int r;

  memset (res, 0, sizeof *res);
  if (cluster == NULL)
    return -ENOMEM;
  dedup_get_stats (d, &s);
  if (!s.has_store || s.index_entries == 0)
    return 0;
  max = MIN_OF (DEDUP_CENSUS_ENTRIES, DEDUP_CENSUS_BYTES >> d->cluster_bits);
  r = dedup_index_sample (d->index, div_round_up (s.index_entries, max),
                          count_entry, &c);
  if (r < 0)
    return r;
  extend (res, s.index_entries);
  return 0;
}
