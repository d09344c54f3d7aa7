/* SPDX-License-Identifier: BSD-3-Clause */
/* Which entries of the index are live?  Those that a lookup of their hash
 * finds, and that lead to a cluster which is anchored, has a guest reference,
 * and holds data with that hash.  All others are dead: hidden by a younger
 * entry or tombstone of their hash, outside of what their segment still
 * answers for, or left behind by a cluster that is free or has other contents
 * by now.
 *
 * Only the data itself tells the last, so each entry costs a read of its
 * cluster.  Of an index with more entries than shall be looked at, every so
 * many-th page is taken: hashes are uniform, so a page is as good a sample as
 * any, whatever kind of table it is in.
 *
 * One thread, and nobody changes the disk meanwhile.
 */
#include "aligned.h"
#include "disk.h"

#include <errno.h>

struct census {
  struct dedup_disk *d;
  struct dedup_incarnations *set;
  uint64_t every;                /* page, or entry of a log store, counts */
  uint64_t passed;
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
                   e->host_idx << d->cluster_bits) == 0 &&
    dedup_hash_compute (&d->hasher, c->cluster, d->cluster_size, &h) == 0 &&
    dedup_hash_equal (&h, &e->hash);
}

static void
count_entry (struct census *c, const struct dedup_entry *e, bool hidden)
{
  bool live;

  if (e->host_idx == DEDUP_DELETED)
    return;
  live = !hidden && has_guest (c, e->host_idx) && holds_data (c, e);
  c->res->live += live;
  c->res->dead += !live;
  c->res->looked_at++;
}

static bool
is_chosen (struct census *c)
{
  return c->passed++ % c->every == 0;
}

/* --- Log stores ---------------------------------------------------------- */

static void
count_log_store (struct census *c, const struct dedup_log_store *ls,
                 const struct dedup_log_store *younger)
{
  struct dedup_entry e;
  size_t i, slots;
  uint64_t at;

  if (ls == NULL)
    return;
  slots = (size_t) DEDUP_BUCKET_SLOTS << dedup_log_store_order (ls);
  for (i = 0; i < slots; i++)
    if (dedup_log_store_slot (ls, i, &e.hash, &e.host_idx) && is_chosen (c))
      count_entry (c, &e, younger &&
                   dedup_log_store_lookup (younger, &e.hash, &at));
}

static void
count_log_stores (struct census *c)
{
  const struct dedup_index *x = &c->d->index;
  size_t i;

  for (i = 0; i < x->nr_spilled; i++)
    if (is_chosen (c))
      count_entry (c, &(struct dedup_entry) { x->spilled[i].hash,
                                              x->spilled[i].host_idx }, false);
  count_log_store (c, x->current, NULL);
  count_log_store (c, x->frozen, x->current);
}

/* --- Tables -------------------------------------------------------------- */

static bool
in_log_store (struct census *c, const struct dedup_hash *h)
{
  enum dedup_found found;
  uint64_t at;

  LOCK_FOR_SCOPE (c->d->lock);
  found = dedup_index_lookup_locked (c->d, h, &at);
  return found != DEDUP_PROBE;   /* there are tables */
}

static void
count_page (struct census *c, size_t table, const struct dedup_range *range,
            const struct dedup_entry *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    const uint32_t prefix = dedup_hash_prefix (&v[i].hash);

    count_entry (c, &v[i], prefix < range->lo || prefix > range->hi ||
                 in_log_store (c, &v[i].hash) ||
                 dedup_index_hidden (c->set, table, &v[i].hash));
  }
}

static void
count_incarnation (struct census *c, size_t table,
                   struct dedup_incarnation *inc)
{
  static const struct dedup_range all = { 0, UINT32_MAX };
  struct dedup_entry v[DEDUP_PAGE_ENTRIES];
  uint64_t i;
  size_t nr;

  for (i = 0; i < dedup_incarnation_pages (inc); i++)
    if (is_chosen (c) && dedup_incarnation_read (inc, i, v, &nr) == 0)
      count_page (c, table, &all, v, nr);
}

static void
count_segment (struct census *c, size_t table, size_t i)
{
  struct dedup_segment *s = c->set->segments[i];
  struct dedup_entry v[DEDUP_PAGE_ENTRIES];
  uint64_t page;
  size_t nr;

  for (page = 0; page < dedup_segment_pages (s); page++)
    if (is_chosen (c) && dedup_segment_read (s, page, v, &nr) == 0)
      count_page (c, table, &c->set->ranges[i], v, nr);
}

static void
count_tables (struct census *c)
{
  size_t t, i;

  for (t = 0; t < c->set->nr_tables; t++) {
    const struct dedup_table *table = &c->set->tables[t];

    if (table->inc)
      count_incarnation (c, t, table->inc);
    for (i = 0; i < table->nr; i++)
      count_segment (c, t, table->first + i);
  }
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

  memset (res, 0, sizeof *res);
  if (cluster == NULL)
    return -ENOMEM;
  dedup_get_stats (d, &s);
  if (!s.has_store || s.index_entries == 0)
    return 0;
  max = MIN_OF (DEDUP_CENSUS_ENTRIES, DEDUP_CENSUS_BYTES >> d->cluster_bits);
  c.every = div_round_up (s.index_entries, max);
  lock_acquire (d->lock);
  c.set = dedup_index_set_locked (d);
  lock_release (d->lock);
  count_log_stores (&c);
  count_tables (&c);
  dedup_incarnations_put (c.set);
  extend (res, s.index_entries);
  return 0;
}
