/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts, times and asks for the programs that measure an index
 * (index-measure.h).  Bytes and calls are counted by a store around the file, of
 * all threads; everything else is for one thread. */
#include "index-measure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "index-private.h"

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

struct io_store *
bench_counted (struct io_store *s)
{
  struct io_store *counted;

  bench_must (io_faulty_new (s, count_cb, NULL, &counted), "store");
  return counted;
}

/* --- Looking up ---------------------------------------------------------------- */

size_t
bench_find (struct lock *lock, struct dedup_index *x, struct dedup_probe *p,
            const uint64_t *expected, size_t nr)
{
  struct dedup_index_view *set;
  struct dedup_probe q[BATCH];
  size_t i, idx[BATCH], n = 0, hits = 0;

  lock_acquire (lock);
  set = dedup_index_view_locked (x);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (x, &p[i].hash);
  for (i = 0; i < nr; i++) {
    p[i].found = dedup_index_lookup_locked (x, &p[i].hash, &p[i].value);
    if (p[i].found == DEDUP_PROBE) {
      q[n] = p[i];
      idx[n++] = i;
    }
  }
  lock_release (lock);
  dedup_index_probe (set, q, n);
  for (i = 0; i < n; i++)
    p[idx[i]] = q[i];
  for (i = 0; i < nr; i++)
    hits += p[i].found == DEDUP_HIT && p[i].value == expected[i];
  dedup_index_view_put (x, set);
  return hits;
}

size_t
bench_nr_tables (struct lock *lock, struct dedup_index *x)
{
  size_t nr;

  lock_acquire (lock);
  nr = x->view->nr_tables;
  lock_release (lock);
  return nr;
}
