/* SPDX-License-Identifier: BSD-3-Clause */
/* Caches tables: L2 tables, refcount blocks and the clusters of snapshots' L1
 * tables.  It keeps them in slices (QCOW2_SLICE_BYTES) by host offset, encoded
 * as on disk.  A slice is independent of the others of its table, except that
 * creation makes all of them or none, and that the table's cluster is freed as
 * a whole.
 *
 * A slice is loading (its reader has the buffer) or loaded; within one hold of
 * the lock, while a table is made, it may also be loading and have a buffer.
 * A loaded one may be pinned by transactions, dirty (changed since the last
 * writeback began) and writing (copied into a writeback that has not ended).
 * Only a slice that is none of these is ever evicted: of the others the file
 * has older bytes, or somebody holds a pointer.  So pinned and changed slices
 * may exceed the budget, and the cache shrinks back as they become clean.
 * Nothing here writes (law 3): only the writeback does.
 *
 * Eviction is CLOCK with a bounded number of steps a call, so that a cache
 * full of changed slices does not delay all threads that wait for the lock.
 * Each insertion, and each end of a transaction, tries to evict two slices
 * while the budget is exceeded.
 *
 * The image's lock protects it.  A thread that loads holds a pin, releases the
 * lock for the read, and checks afterwards whether a replay created the slice
 * in the meantime.  Threads that wait for it sleep on img->loaded and then
 * search again from the start, because after a failure the slice is not there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "image.h"

#define MIN_SLICES 16
#define MAX_CLOCK_STEPS 128

int
qcow2_cache_init (struct qcow2_image *img, size_t budget_bytes)
{
  struct qcow2_cache *c = &img->cache;
  size_t each = qcow2_slice_size (&img->header.geo) +
    sizeof (struct qcow2_slice);

  memset (c, 0, sizeof *c);
  c->budget = MAX_OF (budget_bytes / each, MIN_SLICES);
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
free_slice (struct qcow2_slice *t)
{
  if (t)
    free (t->data);
  free (t);
}

void
qcow2_cache_free (struct qcow2_image *img)
{
  struct qcow2_cache *c = &img->cache;

  for (size_t i = 0; i < c->nr_slices; ++i)
    free_slice (c->clock[i]);
  free (c->chains);
  free (c->clock);
  memset (c, 0, sizeof *c);
}

static struct qcow2_slice **
chain_of (struct qcow2_cache *c, uint64_t host_off)
{
  uint64_t h = (host_off >> 9) * UINT64_C (0x9e3779b97f4a7c15) >> 32;

  return &c->chains[h & (c->nr_chains - 1)];
}

static struct qcow2_slice *
find (struct qcow2_cache *c, uint64_t host_off)
{
  struct qcow2_slice *t = *chain_of (c, host_off);

  while (t && t->host_off != host_off)
    t = t->next;
  return t;
}

static int
insert (struct qcow2_cache *c, struct qcow2_slice *t)
{
  struct qcow2_slice **chain = chain_of (c, t->host_off), **bigger;

  if (c->nr_slices == c->max_clock) {
    bigger = realloc (c->clock, c->max_clock * 2 * sizeof *c->clock);
    if (!bigger)
      return -ENOMEM;
    c->clock = bigger;
    c->max_clock *= 2;
  }
  t->slot = c->nr_slices++;
  c->clock[t->slot] = t;
  t->next = *chain;
  *chain = t;
  return 0;
}

static void
detach (struct qcow2_cache *c, struct qcow2_slice *t)
{
  struct qcow2_slice **p = chain_of (c, t->host_off);

  assert (!t->dirty && !t->writing && t->pins == 0);
  while (*p != t)
    p = &(*p)->next;
  *p = t->next;
  c->clock[t->slot] = c->clock[--c->nr_slices];
  c->clock[t->slot]->slot = t->slot;
}

static bool
in_use (const struct qcow2_slice *t)
{
  return t->pins > 0 || t->loading || t->dirty || t->writing;
}

/* Detaches and returns one slice that may be evicted; NULL if MAX_CLOCK_STEPS
 * steps found none. */
static struct qcow2_slice *
evict (struct qcow2_cache *c)
{
  struct qcow2_slice *t;

  for (unsigned steps = 0; steps < MAX_CLOCK_STEPS; ++steps) {
    if (c->nr_slices == 0)
      return NULL;
    if (c->hand >= c->nr_slices)
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

/* Adds a slice for HOST_OFF without contents.  It has the buffer of an evicted
 * slice if one was evicted, else none.  Returns NULL if there is no memory. */
static struct qcow2_slice *
add_slice (struct qcow2_cache *c, uint64_t host_off)
{
  struct qcow2_slice *t = NULL;
  uint8_t *data = NULL;

  if (c->nr_slices > c->budget)
    free_slice (evict (c));
  if (c->nr_slices >= c->budget)
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
  free_slice (t);
  return NULL;
}

void
qcow2_cache_trim_locked (struct qcow2_image *img)
{
  struct qcow2_cache *c = &img->cache;

  assert (lock_held (&img->lock));
  /* A search is not worth its time if nearly all slices are changed. */
  if (c->nr_slices > c->budget && c->nr_dirty < c->nr_slices / 4 * 3) {
    free_slice (evict (c));
    if (c->nr_slices > c->budget)
      free_slice (evict (c));
  }
}

static bool
can_be_table (const struct qcow2_image *img, uint64_t host_off)
{
  const struct qcow2_geometry *geo = &img->header.geo;

  return host_off != 0 && host_off % geo->cluster_size == 0 &&
    host_off >> geo->cluster_bits < qcow2_tables_end_locked (img);
}

struct qcow2_slice *
qcow2_cache_get_locked (struct qcow2_txn *txn, uint64_t host_off,
                        size_t within, int *err)
{
  struct qcow2_image *img = txn->img;
  const uint64_t off = host_off +
    (within & ~((size_t) qcow2_slice_size (&img->header.geo) - 1));
  struct qcow2_slice *t;

  assert (lock_held (&img->lock));
  assert (within < img->header.geo.cluster_size);
  *err = 0;
  if (!can_be_table (img, host_off)) {
    *err = -EIO;
    return NULL;
  }
  t = qcow2_txn_find_locked (txn, off);
  if (t)
    return t;
  t = find (&img->cache, off);
  if (!t || t->loading)
    *err = qcow2_txn_missing_locked (txn, QCOW2_MISSING_SLICE, off);
  else
    *err = qcow2_txn_pin_locked (txn, t);
  return *err < 0 ? NULL : t;
}

int
qcow2_cache_get_whole_locked (struct qcow2_txn *txn, uint64_t host_off)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  size_t at;
  int r = 0;

  for (at = 0; at < g->cluster_size && r == 0; at += qcow2_slice_size (g))
    (void) qcow2_cache_get_locked (txn, host_off, at, &r);
  return r == -EAGAIN ?
    qcow2_txn_missing_locked (txn, QCOW2_MISSING_TABLE, host_off) : r;
}

/* Ends a load whose read into BUF returned R: pins the slice in TXN, or removes
 * it if the read failed. */
static int
finish_load (struct qcow2_txn *txn, struct qcow2_slice *t, uint8_t *buf,
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
  free_slice (t);
  img->read_failed = img->read_failed || r != -ENOMEM;
  return r == -ENOMEM ? r : -EIO;
}

static int
load_new (struct qcow2_txn *txn, uint64_t host_off)
{
  struct qcow2_image *img = txn->img;
  size_t size = qcow2_slice_size (&img->header.geo);
  struct qcow2_slice *t = add_slice (&img->cache, host_off);
  uint8_t *buf;
  int r = -ENOMEM;

  if (!t)
    return -ENOMEM;
  img->cache.nr_loads++;
  t->loading = true;
  t->pins++;
  buf = t->data;
  t->data = NULL;
  lock_release (&img->lock);
  if (!buf)
    buf = aligned_new (size);
  if (buf)
    r = io_pread (img->io, buf, size, host_off);
  lock_acquire (&img->lock);
  return finish_load (txn, t, buf, r);
}

static int
load_slice (struct qcow2_txn *txn, uint64_t slice_off)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *t;

  for (;;) {
    t = find (&img->cache, slice_off);
    if (!t)
      return load_new (txn, slice_off);
    if (!t->loading)
      return qcow2_txn_pin_locked (txn, t);
    lock_wait (&img->lock, &img->loaded);
  }
}

int
qcow2_cache_load_locked (struct qcow2_txn *txn, uint64_t host_off, size_t len)
{
  const size_t size = qcow2_slice_size (&txn->img->header.geo);
  size_t at;
  int r = 0;

  assert (lock_held (&txn->img->lock));
  for (at = 0; at < len && r == 0; at += size)
    r = load_slice (txn, host_off + at);
  return r;
}

/* Makes sure that the cache has a slice at OFF with a buffer that nobody else
 * uses.  One that is new is loading, and has no contents. */
static int
get_blank (struct qcow2_txn *txn, uint64_t off)
{
  struct qcow2_cache *c = &txn->img->cache;
  struct qcow2_slice *t = find (c, off);

  if (t && !t->loading)
    return qcow2_txn_pin_locked (txn, t);
  if (!t) {
    t = add_slice (c, off);
    if (!t)
      return -ENOMEM;
    t->loading = true;
  }
  if (!t->data)
    t->data = aligned_new (qcow2_slice_size (&txn->img->header.geo));
  return t->data ? 0 : -ENOMEM;
}

/* Undoes get_blank, if that did something. */
static void
drop_blank (struct qcow2_cache *c, uint64_t off)
{
  struct qcow2_slice *t = find (c, off);

  if (!t || !t->loading)
    return;
  if (t->pins > 0) {            /* a thread reads it, into another buffer */
    free (t->data);
    t->data = NULL;
    return;
  }
  detach (c, t);
  free_slice (t);
}

/* Makes the slice of get_blank a part of the table, with the bytes of SOURCE or
 * zeroes.  A thread that was loading it discards its own buffer later. */
static void
fill_blank (struct qcow2_txn *txn, uint64_t off,
            const struct qcow2_slice *source, bool is_refblock)
{
  struct qcow2_image *img = txn->img;
  struct qcow2_slice *t = find (&img->cache, off);
  size_t size = qcow2_slice_size (&img->header.geo);
  int r = qcow2_txn_pin_locked (txn, t);

  assert (r == 0);              /* reserved */
  (void) r;
  t->loading = t->forgotten = false;
  t->is_refblock = is_refblock;
  if (source)
    memcpy (t->data, source->data, size);
  else
    memset (t->data, 0, size);
  qcow2_cache_dirty_locked (img, t);
}

int
qcow2_cache_create_locked (struct qcow2_txn *txn, uint64_t host_off,
                           uint64_t source_off, bool is_refblock)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  const size_t size = qcow2_slice_size (g);
  size_t at, done = 0;
  int r = 0;

  assert (lock_held (&img->lock));
  assert (source_off != host_off);
  if (source_off != 0)
    r = qcow2_cache_get_whole_locked (txn, source_off);
  if (r == 0)
    r = qcow2_txn_reserve_locked (txn, g->cluster_size / size);
  for (; done < g->cluster_size && r == 0; done += size)
    r = get_blank (txn, host_off + done);
  for (at = 0; at < done; at += size) {
    if (r < 0)
      drop_blank (&img->cache, host_off + at);
    else
      fill_blank (txn, host_off + at, source_off == 0 ? NULL :
                  qcow2_txn_find_locked (txn, source_off + at), is_refblock);
  }
  pthread_cond_broadcast (&img->loaded);
  return r;
}

static void
forget_slice (struct qcow2_image *img, struct qcow2_slice *t)
{
  /* It must not be written over the next content of the cluster.  A pinned one
   * is evicted later. */
  qcow2_cache_clean_locked (img, t);
  t->forgotten = true;
  if (in_use (t))
    return;
  detach (&img->cache, t);
  free_slice (t);
}

void
qcow2_cache_forget_locked (struct qcow2_image *img, uint64_t host_idx,
                           uint64_t count)
{
  const struct qcow2_geometry *g = &img->header.geo;
  const uint64_t size = qcow2_slice_size (g);
  const uint64_t first = host_idx << g->cluster_bits;
  const uint64_t end = (host_idx + count) << g->cluster_bits;
  struct qcow2_cache *c = &img->cache;
  struct qcow2_slice *t;

  assert (lock_held (&img->lock));
  if ((end - first) / size < c->nr_slices) {
    for (uint64_t off = first; off < end; off += size)
      if ((t = find (c, off)))
        forget_slice (img, t);
    return;
  }
  for (size_t i = c->nr_slices; i-- > 0; ) {   /* detach moves the last one */
    t = c->clock[i];
    if (t->host_off >= first && t->host_off < end)
      forget_slice (img, t);
  }
}

int
qcow2_cache_settle_locked (struct qcow2_txn *txn, uint64_t host_off,
                           uint64_t len)
{
  const unsigned size = qcow2_slice_size (&txn->img->header.geo);
  const struct qcow2_slice *t;

  assert (lock_held (&txn->img->lock));
  for (uint64_t at = 0; at < len; at += size) {
    t = find (&txn->img->cache, host_off + at);
    if (t && t->loading)
      return qcow2_txn_missing_locked (txn, QCOW2_MISSING_SLICE, host_off + at);
  }
  return 0;
}

void
qcow2_cache_overwrite_locked (struct qcow2_image *img, uint64_t host_off,
                              const uint8_t *bytes, uint64_t len)
{
  const unsigned size = qcow2_slice_size (&img->header.geo);
  struct qcow2_slice *t;

  assert (lock_held (&img->lock));
  for (uint64_t at = 0; at < len; at += size) {
    t = find (&img->cache, host_off + at);
    if (!t)
      continue;
    assert (!t->loading && !t->dirty && !t->writing);
    memcpy (t->data, bytes + at, size);
    t->forgotten = t->is_refblock = false;
  }
}

const struct qcow2_slice *
qcow2_cache_unwritten_locked (struct qcow2_image *img, uint64_t host_off)
{
  const struct qcow2_slice *t = find (&img->cache, host_off);

  assert (lock_held (&img->lock));
  return t && !t->loading && (t->dirty || t->writing) ? t : NULL;
}

void
qcow2_cache_dirty_locked (struct qcow2_image *img, struct qcow2_slice *t)
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
qcow2_cache_clean_locked (struct qcow2_image *img, struct qcow2_slice *t)
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

  return c->nr_slices * (qcow2_slice_size (&img->header.geo) +
                         sizeof (struct qcow2_slice)) +
    c->max_clock * sizeof *c->clock + c->nr_chains * sizeof *c->chains;
}
