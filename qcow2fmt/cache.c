/* SPDX-License-Identifier: BSD-3-Clause */
/* The table cache: L2 tables, refcount blocks and the clusters of snapshots'
 * L1 tables, by host offset, as they stand on disk.
 *
 * A table is loading (its reader has the buffer), or loaded; loaded ones may
 * be pinned by transactions, dirty (changed since the last writeback began)
 * and writing (copied into a writeback that has not ended).  Only a table
 * that is none of these is ever evicted: the file lags behind the others, or
 * somebody holds a pointer.  So pinned and changed tables may exceed the
 * budget, and the cache shrinks back as they become clean.  Nothing here
 * writes (law 3): that is for the writeback alone.
 *
 * Eviction is CLOCK with a bounded number of steps a call, so that a cache
 * full of changed tables does not hold up everyone behind the lock; each
 * insertion, and each end of a transaction, tries to evict two tables while
 * the budget is exceeded.
 *
 * Protected by the image's lock.  The one who loads holds a pin, gives up the
 * lock for the read, and finds out afterwards whether a replay created the
 * table in the meantime; those who wait sleep on img->loaded and then look
 * again from the start, because after a failure there is nothing to find.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image.h"

#define MIN_TABLES 16
#define MAX_CLOCK_STEPS 128

int
qcow2_cache_init (struct qcow2_image *img, size_t budget_bytes)
{
  struct qcow2_cache *c = &img->cache;
  size_t each = img->header.geo.cluster_size + sizeof (struct qcow2_table);

  memset (c, 0, sizeof *c);
  c->budget = MAX_OF (budget_bytes / each, MIN_TABLES);
  for (c->nr_chains = 64; c->nr_chains < c->budget; )
    c->nr_chains *= 2;
  c->max_clock = c->budget + 64;
  c->chains = calloc (c->nr_chains, sizeof *c->chains);
  c->clock = calloc (c->max_clock, sizeof *c->clock);
  if (c->chains && c->clock)
    return 0;
  qcow2_cache_free (img);
  return -ENOMEM;
}

static void
free_table (struct qcow2_table *t)
{
  if (t)
    free (t->data);
  free (t);
}

void
qcow2_cache_free (struct qcow2_image *img)
{
  struct qcow2_cache *c = &img->cache;

  for (size_t i = 0; i < c->nr_tables; ++i)
    free_table (c->clock[i]);
  free (c->chains);
  free (c->clock);
  memset (c, 0, sizeof *c);
}

static struct qcow2_table **
chain_of (struct qcow2_cache *c, uint64_t host_off)
{
  uint64_t h = (host_off >> 9) * UINT64_C (0x9e3779b97f4a7c15) >> 32;

  return &c->chains[h & (c->nr_chains - 1)];
}

static struct qcow2_table *
find (struct qcow2_cache *c, uint64_t host_off)
{
  struct qcow2_table *t = *chain_of (c, host_off);

  while (t && t->host_off != host_off)
    t = t->next;
  return t;
}

static int
insert (struct qcow2_cache *c, struct qcow2_table *t)
{
  struct qcow2_table **chain = chain_of (c, t->host_off), **bigger;

  if (c->nr_tables == c->max_clock) {
    bigger = realloc (c->clock, c->max_clock * 2 * sizeof *c->clock);
    if (!bigger)
      return -ENOMEM;
    c->clock = bigger;
    c->max_clock *= 2;
  }
  t->slot = c->nr_tables++;
  c->clock[t->slot] = t;
  t->next = *chain;
  *chain = t;
  return 0;
}

static void
detach (struct qcow2_cache *c, struct qcow2_table *t)
{
  struct qcow2_table **p = chain_of (c, t->host_off);

  assert (!t->dirty && !t->writing && t->pins == 0);
  while (*p != t)
    p = &(*p)->next;
  *p = t->next;
  c->clock[t->slot] = c->clock[--c->nr_tables];
  c->clock[t->slot]->slot = t->slot;
}

static bool
in_use (const struct qcow2_table *t)
{
  return t->pins > 0 || t->loading || t->dirty || t->writing;
}

/* Detach one table that can go, NULL if none was met. */
static struct qcow2_table *
evict (struct qcow2_cache *c)
{
  struct qcow2_table *t;

  for (unsigned steps = 0; steps < MAX_CLOCK_STEPS; ++steps) {
    if (c->nr_tables == 0)
      return NULL;
    if (c->hand >= c->nr_tables)
      c->hand = 0;
    t = c->clock[c->hand];
    if (!in_use (t) && !t->recently_used) {
      detach (c, t);
      return t;
    }
    t->recently_used = false;
    c->hand++;
  }
  return NULL;
}

/* An empty table for HOST_OFF, with the buffer of an evicted one if there
 * was one to evict, else none. */
static struct qcow2_table *
add_table (struct qcow2_cache *c, uint64_t host_off)
{
  struct qcow2_table *t = NULL;
  uint8_t *data = NULL;

  if (c->nr_tables > c->budget)
    free_table (evict (c));
  if (c->nr_tables >= c->budget)
    t = evict (c);
  if (t)
    data = t->data;
  else
    t = malloc (sizeof *t);
  if (!t)
    return NULL;
  memset (t, 0, sizeof *t);
  t->host_off = host_off;
  t->data = data;
  if (insert (c, t) == 0)
    return t;
  free_table (t);
  return NULL;
}

void
qcow2_cache_trim_locked (struct qcow2_image *img)
{
  struct qcow2_cache *c = &img->cache;

  assert (lock_held (&img->lock));
  /* Not worth a search where nearly all are changed. */
  if (c->nr_tables > c->budget && c->nr_dirty < c->nr_tables / 4 * 3) {
    free_table (evict (c));
    if (c->nr_tables > c->budget)
      free_table (evict (c));
  }
}

uint64_t
qcow2_tables_end_locked (const struct qcow2_image *img)
{
  /* The crash may have cut off a table that the file names already. */
  return MAX_OF (img->alloc.frontier, img->replaying ?
                 qcow2_refcount_coverage (img) : 0);
}

static bool
can_be_table (const struct qcow2_image *img, uint64_t host_off)
{
  const struct qcow2_geometry *geo = &img->header.geo;

  return host_off != 0 && host_off % geo->cluster_size == 0 &&
    host_off >> geo->cluster_bits < qcow2_tables_end_locked (img);
}

struct qcow2_table *
qcow2_cache_get_locked (struct qcow2_txn *txn, uint64_t host_off, int *err)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_table *t;

  assert (lock_held (&img->lock));
  *err = 0;
  t = qcow2_txn_find_locked (txn, host_off);
  if (t)
    return t;
  if (!can_be_table (img, host_off)) {
    *err = -EIO;
    return NULL;
  }
  t = find (&img->cache, host_off);
  if (!t || t->loading)
    *err = qcow2_txn_missing_locked (txn, QCOW2_MISSING_TABLE, host_off);
  else
    *err = qcow2_txn_pin_locked (txn, t);
  return *err < 0 ? NULL : t;
}

/* The read is over, with result R, and BUF holds what it gave. */
static int
finish_load (struct qcow2_txn *txn, struct qcow2_table *t, uint8_t *buf,
             int r)
{
  struct qcow2_image *img = txn->img;

  t->pins--;
  pthread_cond_broadcast (&img->loaded);
  if (!t->loading) {
    free (buf);                /* created meanwhile: the file is older */
    return qcow2_txn_pin_locked (txn, t);
  }
  t->loading = false;
  if (r == 0) {
    t->data = buf;
    return qcow2_txn_pin_locked (txn, t);
  }
  free (buf);
  detach (&img->cache, t);
  free_table (t);
  img->read_failed = img->read_failed || r != -ENOMEM;
  return r == -ENOMEM ? r : -EIO;
}

static int
load_new (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_image *img = txn->img;
  size_t size = img->header.geo.cluster_size;
  struct qcow2_table *t = add_table (&img->cache, host_off);
  uint8_t *buf;
  int r = -ENOMEM;

  if (!t)
    return -ENOMEM;
  t->loading = true;
  t->pins++;
  buf = t->data;
  t->data = NULL;
  lock_release (&img->lock);
  if (!buf)
    buf = malloc (size);
  if (buf)
    r = io_pread (img->io, buf, size, host_off);
  lock_acquire (&img->lock);
  return finish_load (txn, t, buf, r);
}

int
qcow2_cache_load_locked (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_table *t;

  assert (lock_held (&img->lock));
  for (;;) {
    t = find (&img->cache, host_off);
    if (!t)
      return load_new (txn, host_off);
    if (!t->loading)
      return qcow2_txn_pin_locked (txn, t);
    lock_wait (&img->lock, &img->loaded);
  }
}

/* A table at HOST_OFF, pinned, whose buffer nobody else uses.  Where it was
 * being loaded, the reader will find its own buffer unwanted. */
static struct qcow2_table *
get_blank (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_cache *c = &txn->img->cache;
  struct qcow2_table *t = find (c, host_off);
  bool added = t == NULL;
  uint8_t *buf;

  if (t)
    t->forgotten = t->is_refblock = false;
  if (t && t->data)
    return qcow2_txn_pin_locked (txn, t) < 0 ? NULL : t;
  buf = malloc (txn->img->header.geo.cluster_size);
  if (buf && added)
    t = add_table (c, host_off);
  if (!buf || !t || qcow2_txn_pin_locked (txn, t) < 0) {
    free (buf);
    if (added && t) {
      detach (c, t);
      free_table (t);
    }
    return NULL;
  }
  free (t->data);
  t->data = buf;
  t->loading = false;
  pthread_cond_broadcast (&txn->img->loaded);
  return t;
}

int
qcow2_cache_create_locked (struct qcow2_txn *txn, uint64_t host_off,
                           const struct qcow2_table *source,
                           struct qcow2_table **out)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_table *t;

  assert (lock_held (&img->lock));
  assert (!source || source->host_off != host_off);
  t = get_blank (txn, host_off);
  if (!t)
    return -ENOMEM;
  if (source)
    memcpy (t->data, source->data, img->header.geo.cluster_size);
  else
    memset (t->data, 0, img->header.geo.cluster_size);
  qcow2_cache_dirty_locked (img, t);
  *out = t;
  return 0;
}

void
qcow2_cache_forget_locked (struct qcow2_image *img, uint64_t host_off)
{
  struct qcow2_table *t = find (&img->cache, host_off);

  assert (lock_held (&img->lock));
  if (!t)
    return;
  /* It must not be written over what the cluster becomes next; a pinned one
   * goes later, by eviction. */
  qcow2_cache_clean_locked (img, t);
  t->forgotten = true;
  if (in_use (t))
    return;
  detach (&img->cache, t);
  free_table (t);
}

void
qcow2_cache_dirty_locked (struct qcow2_image *img, struct qcow2_table *t)
{
  struct qcow2_cache *c = &img->cache;

  assert (lock_held (&img->lock));
  if (t->dirty)
    return;
  t->dirty = true;
  t->dirty_prev = NULL;
  t->dirty_next = c->dirty;
  if (c->dirty)
    c->dirty->dirty_prev = t;
  else
    c->dirty_last = t;
  c->dirty = t;
  c->nr_dirty++;
}

void
qcow2_cache_clean_locked (struct qcow2_image *img, struct qcow2_table *t)
{
  struct qcow2_cache *c = &img->cache;

  assert (lock_held (&img->lock));
  if (!t->dirty)
    return;
  t->dirty = false;
  if (t->dirty_prev)
    t->dirty_prev->dirty_next = t->dirty_next;
  else
    c->dirty = t->dirty_next;
  if (t->dirty_next)
    t->dirty_next->dirty_prev = t->dirty_prev;
  else
    c->dirty_last = t->dirty_prev;
  c->nr_dirty--;
}

size_t
qcow2_cache_memory (const struct qcow2_image *img)
{
  const struct qcow2_cache *c = &img->cache;

  return c->nr_tables * (img->header.geo.cluster_size +
                         sizeof (struct qcow2_table)) +
    c->max_clock * sizeof *c->clock + c->nr_chains * sizeof *c->chains;
}
