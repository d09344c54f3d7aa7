/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes, fills and asks the index of a disk (index-disk.h).  One thread calls
 * these functions, beside the background loop; what is in the files is not
 * checked here. */
#include "index-disk.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"

/* --- The disk ---------------------------------------------------------------- */

static void
wake (void *opaque)
{
  struct bench *b = opaque;

  if (b->loop)
    srv_loop_wake (b->loop);
}

static uint64_t
last_change (const void *opaque)
{
  const struct bench *b = opaque;

  return __atomic_load_n (&b->last_change_ns, __ATOMIC_RELAXED);
}

void
bench_open (struct bench *b, bool with_loop)
{
  struct dedup_open_params p = { .path = "index", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 64 << 20, .index_memory = b->index_memory,
    .wake = wake, .opaque = b };
  struct srv_loop_params lp = { .path = "index", .commit_interval_ms = 5000,
                                .last_change_ns = last_change, .activity = b };
  struct fault f = { 0 };
  int r = dedup_open (b->io, &p, &b->d, &f);

  bench_must (r, f.msg);
  b->d->store.index->values.find_dead = b->is_dead;
  lp.pool = b->d;
  if (with_loop)
    bench_must (srv_loop_start (&lp, &b->loop), "loop");
}

void
bench_stop_loop (struct bench *b)
{
  struct srv_loop *l = b->loop;

  b->loop = NULL;
  srv_loop_stop (l);
}

static void
open_file (struct bench *b, const char *path, unsigned flags)
{
  struct io_store *file;
  struct fault f = { 0 };

  bench_must (io_file_open (path, flags, IO_LOCK_WRITE, &file, &f), f.msg);
  b->io = bench_counted (file);
}

/* Waits until none of JOBS is urgent, and no merge is due even when idle. */
static void
wait_for_rest (struct bench *b, unsigned jobs)
{
  unsigned due, urgent;

  do {
    usleep (10000);
    due = dedup_due (b->d, &urgent);
  }
  while (urgent & jobs || due & DEDUP_JOB_MERGE_IDLE || b->d->upkeep.merging);
}

void
bench_again (struct bench *b, const char *path)
{
  struct bench_timer t = bench_now ();

  open_file (b, path, IO_FILE_WRITE);
  bench_open (b, true);
  wait_for_rest (b, ~0u);
  printf ("at rest             %.1f s after it was opened\n",
          bench_since (t).wall);
}

void
bench_create (struct bench *b, const char *path, uint64_t nr)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = MAX_OF (nr << 12, UINT64_C (1) << 30),
               .cluster_bits = 12, .refcount_order = 4 },
    .order = b->order,
  };
  struct fault f = { 0 };
  int r;

  open_file (b, path, IO_FILE_WRITE | IO_FILE_CREATE);
  bench_must (dedup_create (b->io, &p, &f), f.msg);
  bench_open (b, true);
  lock_acquire (b->d->base.lock);
  r = qcow2_reserve_area_locked (b->d->base.img, nr, &b->first);
  lock_release (b->d->base.lock);
  bench_must (r, "clusters");
}

/* --- Making entries ------------------------------------------------------------ */

/* Marks the disk as busy, as the server does for each request: an idle disk is
 * brought to its clean state. */
static void
say_busy (struct bench *b)
{
  __atomic_store_n (&b->last_change_ns,
                    (uint64_t) (bench_seconds (CLOCK_MONOTONIC) * 1e9),
                    __ATOMIC_RELAXED);
}

void
bench_insert (struct bench *b, const struct dedup_hash *h,
              const uint64_t *host_idx, size_t nr)
{
  struct dedup_pool *d = b->d;
  size_t i;

  say_busy (b);
  bench_must (dedup_enter (&d->store.gate), "insertion");
  lock_acquire (d->base.lock);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (d->store.index, &h[i]);
  while (!dedup_room_locked (&d->upkeep, nr, nr)) {
    lock_release (d->base.lock);
    b->nr_waits++;
    bench_must (dedup_make_room (&d->upkeep), "room");
    lock_acquire (d->base.lock);
  }
  for (i = 0; i < nr; i++)
    dedup_entry_locked (&d->store, &h[i], host_idx[i]);
  dedup_journal_end_locked (d->store.journal);
  lock_release (d->base.lock);
  dedup_leave (&d->store.gate);
}

uint64_t
bench_memory (struct bench *b)
{
  struct dedup_stats s;

  dedup_get_stats (b->d, &s);
  return s.index_memory_bytes + sizeof b->d->store.index +
    b->d->store.index->view->nr_segments * 64;
}

void
bench_settle (struct bench *b)
{
  struct bench_timer t = bench_now ();

  wait_for_rest (b, DEDUP_JOB_MERGE | DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS);
  printf ("merges done after   %.1f s more\n", bench_since (t).wall);
}

size_t
bench_look_up (struct bench *b, struct dedup_probe *p, const uint64_t *expected,
               size_t nr)
{
  return bench_find (b->d->base.lock, b->d->store.index, p, expected, nr);
}
