/* SPDX-License-Identifier: BSD-3-Clause */
/* The index under measurement: see index-disk.h. */
#include "index-disk.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"

static uint64_t written, reads;          /* bytes; calls.  Atomic */

static int
count_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  if (call == IO_PWRITE)
    __atomic_add_fetch (&written, len, __ATOMIC_RELAXED);
  if (call == IO_PREAD)
    __atomic_add_fetch (&reads, 1, __ATOMIC_RELAXED);
  return 0;
}

uint64_t
bench_written (void)
{
  return __atomic_load_n (&written, __ATOMIC_RELAXED);
}

uint64_t
bench_reads (void)
{
  return __atomic_load_n (&reads, __ATOMIC_RELAXED);
}

void
bench_must (int r, const char *what)
{
  if (r >= 0)
    return;
  fprintf (stderr, "dedup-index: %s: %s\n", what, strerror (-r));
  exit (1);
}

uint64_t
bench_splitmix (uint64_t x)
{
  x += UINT64_C (0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

struct dedup_hash
bench_key (uint64_t i)
{
  struct dedup_hash h;
  unsigned k;

  for (k = 0; k < 4; k++) {
    uint64_t w = bench_splitmix (bench_splitmix (i) + k);

    memcpy (h.b + 8 * k, &w, sizeof w);
  }
  return h;
}

double
bench_seconds (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

struct bench_timer
bench_now (void)
{
  return (struct bench_timer) { bench_seconds (CLOCK_MONOTONIC),
                          bench_seconds (CLOCK_THREAD_CPUTIME_ID),
                          bench_seconds (CLOCK_PROCESS_CPUTIME_ID) };
}

struct bench_timer
bench_since (struct bench_timer t)
{
  struct bench_timer n = bench_now ();

  return (struct bench_timer) { n.wall - t.wall, n.thread - t.thread,
                          n.process - t.process };
}

/* --- The disk ---------------------------------------------------------------- */

static void
wake (void *opaque)
{
  struct bench *b = opaque;

  if (b->loop)
    srv_loop_wake (b->loop);
}

void
bench_open (struct bench *b, bool with_loop)
{
  struct dedup_open_params p = { .path = "index", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 64 << 20, .index_memory = b->index_memory,
    .wake = wake, .opaque = b };
  struct srv_loop_params lp = { .path = "index", .commit_interval_ms = 5000,
                                .last_change_ns = &b->last_change_ns };
  struct fault f = { 0 };
  int r = dedup_open (b->io, &p, &b->d, &f);

  bench_must (r, f.msg);
  b->d->index->values.find_dead = b->is_dead;
  lp.disk = b->d;
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
  bench_must (io_faulty_new (file, count_cb, NULL, &b->io), "store");
}

/* Until nothing of JOBS is to be done at once, and no merge even when idle. */
static void
wait_for_rest (struct bench *b, unsigned jobs)
{
  unsigned due, urgent;

  do {
    usleep (10000);
    due = dedup_due (b->d, &urgent);
  }
  while (urgent & jobs || due & DEDUP_JOB_MERGE_IDLE || b->d->merging);
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
  lock_acquire (b->d->lock);
  r = qcow2_reserve_area_locked (b->d->img, nr, &b->first);
  lock_release (b->d->lock);
  bench_must (r, "clusters");
}

/* --- Making entries ------------------------------------------------------------ */

/* As the server does for each request: an idle disk is brought to its clean
 * state. */
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
  struct dedup_disk *d = b->d;
  size_t i;

  say_busy (b);
  bench_must (dedup_change_begin (d), "insertion");
  lock_acquire (d->lock);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (d->index, &h[i]);
  while (!dedup_room_locked (d, nr, nr)) {
    lock_release (d->lock);
    b->nr_waits++;
    bench_must (dedup_make_room (d), "room");
    lock_acquire (d->lock);
  }
  for (i = 0; i < nr; i++)
    dedup_entry_locked (d, &h[i], host_idx[i]);
  dedup_journal_end_locked (d->journal);
  lock_release (d->lock);
  dedup_change_end (d);
}

size_t
bench_tables (struct bench *b)
{
  size_t nr;

  lock_acquire (b->d->lock);
  nr = b->d->index->view->nr_tables;
  lock_release (b->d->lock);
  return nr;
}

/* All that only the index needs. */
uint64_t
bench_memory (struct bench *b)
{
  struct dedup_stats s;

  dedup_get_stats (b->d, &s);
  return s.index_memory_bytes + sizeof b->d->index +
    b->d->index->view->nr_segments * 64;
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
  struct dedup_index_view *set;
  struct dedup_probe q[BATCH];
  size_t i, idx[BATCH], n = 0, hits = 0;

  lock_acquire (b->d->lock);
  set = dedup_index_view_locked (b->d->index);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (b->d->index, &p[i].hash);
  for (i = 0; i < nr; i++) {
    p[i].found = dedup_index_lookup_locked (b->d->index, &p[i].hash, &p[i].value);
    if (p[i].found == DEDUP_PROBE) {
      q[n] = p[i];
      idx[n++] = i;
    }
  }
  lock_release (b->d->lock);
  dedup_index_probe (set, q, n);
  for (i = 0; i < n; i++)
    p[idx[i]] = q[i];
  for (i = 0; i < nr; i++)
    hits += p[i].found == DEDUP_HIT && p[i].value == expected[i];
  dedup_index_view_put (b->d->index, set);
  return hits;
}

