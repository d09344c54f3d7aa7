/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the pool of index-disk.h the owner of an index that is measured.  There
 * is one at a time. */
#include "index-owner.h"

#include <errno.h>
#include <stdlib.h>

#include "index-disk.h"

static void
create (void *opaque, const char *path, uint64_t nr)
{
  bench_create (opaque, path, nr);
}

static void
again (void *opaque, const char *path)
{
  bench_again (opaque, path);
}

static void
insert (void *opaque, const struct dedup_hash *h, const uint64_t *values,
        size_t nr)
{
  bench_insert (opaque, h, values, nr);
}

static void
settle (void *opaque)
{
  bench_settle (opaque);
}

static void
close_pool (void *opaque, bool crash)
{
  struct bench *b = opaque;

  if (b->loop)
    bench_stop_loop (b);
  bench_must (crash ? dedup_flush (b->d) : dedup_finish (b->d), "close");
  dedup_free (b->d);
}

static void
open_pool (void *opaque)
{
  bench_open (opaque, false);
}

static void
load_filters (void *opaque)
{
  struct bench *b = opaque;

  while (dedup_index_due (b->d->store.index) & DEDUP_INDEX_LOAD)
    bench_must (dedup_run (b->d, DEDUP_JOB_FILTERS), "filters");
}

static void
end (void *opaque)
{
  struct bench *b = opaque;

  io_close (b->io);
  free (b);
}

static struct lock *
lock_of (void *opaque)
{
  return ((struct bench *) opaque)->d->base.lock;
}

static struct dedup_index *
index_of (void *opaque)
{
  return ((struct bench *) opaque)->d->store.index;
}

static void
figures (void *opaque, struct dedup_index_figures *f)
{
  struct bench *b = opaque;

  pthread_mutex_lock (&b->d->upkeep.maintenance);
  lock_acquire (b->d->base.lock);
  dedup_index_figures_locked (b->d->store.index, f);
  lock_release (b->d->base.lock);
  pthread_mutex_unlock (&b->d->upkeep.maintenance);
}

static uint64_t
nr_waits (void *opaque)
{
  return ((struct bench *) opaque)->nr_waits;
}

void
bench_disk_owner (struct bench_owner *o)
{
  *o = (struct bench_owner) {
    .create = create, .again = again, .insert = insert, .settle = settle,
    .close = close_pool, .open = open_pool, .load_filters = load_filters,
    .end = end, .lock = lock_of, .index = index_of, .figures = figures,
    .nr_waits = nr_waits,
    .opaque = calloc (1, sizeof (struct bench)) };
  bench_must (o->opaque ? 0 : -ENOMEM, "memory");
}
