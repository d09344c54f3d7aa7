/* SPDX-License-Identifier: BSD-3-Clause */
/* The index alone: the real store on a real file, with its background loop,
 * without guest data and NBD (bench/README.md).
 *
 *   dedup-index FILE ENTRIES [--check]
 *
 * Keys are the output of SplitMix64 over a counter: 256 bits each, as random as
 * SHA-256's.  Entries are logged as INDEX records, in groups of 16, as a
 * request of 64 KiB makes them.  No cluster is there, so none counts as dead.
 * FILE must not exist, and is left behind.
 *
 * Times are of the clock, and of the CPU, which says more on a machine that
 * others use.  --check: fail where a figure that does not depend on the size
 * or the machine is not what it should be.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"
#include "loop.h"
#include "malloc-limits.h"

#define GROUP 16
#define BATCH 64

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

static void
must (int r, const char *what)
{
  if (r >= 0)
    return;
  fprintf (stderr, "dedup-index: %s: %s\n", what, strerror (-r));
  exit (1);
}

static uint64_t
splitmix (uint64_t x)
{
  x += UINT64_C (0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

static struct dedup_hash
key (uint64_t i)
{
  struct dedup_hash h;
  unsigned k;

  for (k = 0; k < 4; k++) {
    uint64_t w = splitmix (splitmix (i) + k);

    memcpy (h.b + 8 * k, &w, sizeof w);
  }
  return h;
}

static double
seconds (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

struct timer {
  double wall, thread, process;
};

static struct timer
now (void)
{
  return (struct timer) { seconds (CLOCK_MONOTONIC),
                          seconds (CLOCK_THREAD_CPUTIME_ID),
                          seconds (CLOCK_PROCESS_CPUTIME_ID) };
}

static struct timer
since (struct timer t)
{
  struct timer n = now ();

  return (struct timer) { n.wall - t.wall, n.thread - t.thread,
                          n.process - t.process };
}

/* --- The disk ---------------------------------------------------------------- */

struct bench {
  struct io_store *io;
  struct dedup_disk *d;
  struct srv_loop *loop;
  uint64_t last_change_ns;
  uint64_t nr;                           /* entries made */
};

static void
wake (void *opaque)
{
  struct bench *b = opaque;

  if (b->loop)
    srv_loop_wake (b->loop);
}

static void
open_disk (struct bench *b, bool with_loop)
{
  struct dedup_open_params p = { .path = "index", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 64 << 20, .wake = wake, .opaque = b };
  struct srv_loop_params lp = { .path = "index", .commit_interval_ms = 5000,
                                .last_change_ns = &b->last_change_ns };
  struct fault f = { 0 };
  int r = dedup_open (b->io, &p, &b->d, &f);

  must (r, f.msg);
  b->d->is_dead = NULL;
  lp.disk = b->d;
  if (with_loop)
    must (srv_loop_start (&lp, &b->loop), "loop");
}

static void
stop_loop (struct bench *b)
{
  struct srv_loop *l = b->loop;

  b->loop = NULL;
  srv_loop_stop (l);
}

static void
create (struct bench *b, const char *path, uint64_t nr)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = MAX_OF (nr << 12, UINT64_C (1) << 30),
               .cluster_bits = 12, .refcount_order = 4 },
  };
  struct io_store *file;
  struct fault f = { 0 };

  must (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE, IO_LOCK_WRITE,
                      &file, &f), f.msg);
  must (io_faulty_new (file, count_cb, NULL, &b->io), "store");
  must (dedup_create (b->io, &p, &f), f.msg);
  open_disk (b, true);
}

/* --- Making entries ------------------------------------------------------------ */

/* As the server does for each request: an idle disk is brought to its clean
 * state. */
static void
say_busy (struct bench *b)
{
  __atomic_store_n (&b->last_change_ns,
                    (uint64_t) (seconds (CLOCK_MONOTONIC) * 1e9),
                    __ATOMIC_RELAXED);
}

static void
insert (struct bench *b, size_t nr)
{
  struct dedup_disk *d = b->d;
  struct dedup_hash h[GROUP];
  size_t i;

  for (i = 0; i < nr; i++)
    h[i] = key (b->nr + i);
  say_busy (b);
  must (dedup_change_begin (d), "insertion");
  lock_acquire (d->lock);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (d, &h[i]);
  while (!dedup_room_locked (d, nr, nr)) {
    lock_release (d->lock);
    must (dedup_make_room (d), "room");
    lock_acquire (d->lock);
  }
  for (i = 0; i < nr; i++)
    dedup_index_log_locked (d, &h[i], b->nr + i + 1);
  dedup_journal_end_locked (d->journal);
  lock_release (d->lock);
  dedup_change_end (d);
  b->nr += nr;
}

static size_t
count_tables (struct bench *b)
{
  size_t nr;

  lock_acquire (b->d->lock);
  nr = b->d->index.set->nr_tables;
  lock_release (b->d->lock);
  return nr;
}

/* All that only the index needs. */
static uint64_t
memory (struct bench *b)
{
  struct dedup_stats s;

  dedup_get_stats (b->d, &s);
  return s.index_memory_bytes + sizeof b->d->index +
    b->d->index.set->nr_segments * 64;
}

static void
fill (struct bench *b, uint64_t nr)
{
  const uint64_t before = __atomic_load_n (&written, __ATOMIC_RELAXED);
  uint64_t most = 0, steps = nr / GROUP / 64 + 1, i;
  struct timer t = now ();
  size_t tables = 0;

  for (i = 0; b->nr < nr; i++) {
    insert (b, MIN_OF (GROUP, nr - b->nr));
    if (i % steps == 0 && b->nr > nr / 2) {
      most = MAX_OF (most, memory (b) * 1000 / b->nr);
      tables = MAX_OF (tables, count_tables (b));
    }
  }
  t = since (t);
  printf ("insertions          %.0f k/s; CPU: %.0f ns here, %.0f ns behind\n",
          (double) nr / t.wall / 1e3, t.thread * 1e9 / (double) nr,
          (t.process - t.thread) * 1e9 / (double) nr);
  printf ("  written           %.1f bytes an entry so far\n", (double)
          (__atomic_load_n (&written, __ATOMIC_RELAXED) - before) /
          (double) nr);
  printf ("  memory            %.3f bytes an entry at the most since half, "
          "up to %zu tables\n", (double) most / 1000, tables);
}

static void
settle (struct bench *b)
{
  struct timer t = now ();
  unsigned urgent;

  do {
    usleep (10000);
    dedup_due (b->d, &urgent);
  }
  while (urgent & (DEDUP_JOB_MERGE | DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS) ||
         b->d->merging);
  printf ("merges done after   %.1f s more\n", since (t).wall);
}

static int
compare_doubles (const void *a, const void *b)
{
  const double *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* One insertion every 5 us; each is late by what held up those before. */
static void
pace (struct bench *b, size_t nr)
{
  double *late = malloc (nr * sizeof *late), start, due;
  size_t i;

  if (late == NULL)
    return;
  start = seconds (CLOCK_MONOTONIC);
  for (i = 0; i < nr; i++) {
    due = start + (double) i * 5e-6;
    while (seconds (CLOCK_MONOTONIC) < due)
      ;
    insert (b, 1);
    late[i] = seconds (CLOCK_MONOTONIC) - due;
  }
  qsort (late, nr, sizeof *late, compare_doubles);
  printf ("at 200 k/s          p50 %.1f us, p99 %.1f us, p99.99 %.3f ms, "
          "slowest %.1f ms\n", late[nr / 2] * 1e6, late[nr / 100 * 99] * 1e6,
          late[nr / 10000 * 9999] * 1e3, late[nr - 1] * 1e3);
  free (late);
}

/* --- Looking up ------------------------------------------------------------------ */

static size_t
look_up (struct bench *b, struct dedup_probe *p, const uint64_t *expected,
         size_t nr)
{
  struct dedup_incarnations *set;
  struct dedup_probe q[BATCH];
  size_t i, idx[BATCH], n = 0, hits = 0;

  lock_acquire (b->d->lock);
  set = dedup_index_set_locked (b->d);
  for (i = 0; i < nr; i++)
    dedup_index_prefetch_locked (b->d, &p[i].hash);
  for (i = 0; i < nr; i++) {
    p[i].found = dedup_index_lookup_locked (b->d, &p[i].hash, &p[i].host_idx);
    if (p[i].found == DEDUP_PROBE) {
      q[n] = p[i];
      idx[n++] = i;
    }
  }
  lock_release (b->d->lock);
  dedup_index_probe_many (set, q, n);
  for (i = 0; i < n; i++)
    p[idx[i]] = q[i];
  for (i = 0; i < nr; i++)
    hits += p[i].found == DEDUP_HIT && p[i].host_idx == expected[i];
  dedup_incarnations_put (set);
  return hits;
}

/* FROM: keys from there on, NR_KEYS of them.  Returns reads a lookup. */
static double
look (struct bench *b, const char *what, uint64_t from, uint64_t nr_keys,
      uint64_t nr, uint64_t *hits)
{
  const uint64_t reads_before = __atomic_load_n (&reads, __ATOMIC_RELAXED);
  struct dedup_probe p[BATCH];
  uint64_t expected[BATCH], i, k, rnd = 1;
  struct timer t = now ();
  double r;

  *hits = 0;
  for (i = 0; i < nr; i += BATCH) {
    for (k = 0; k < BATCH; k++) {
      rnd = splitmix (rnd);
      expected[k] = from + rnd % nr_keys;
      p[k].hash = key (expected[k]++);
    }
    *hits += look_up (b, p, expected, BATCH);
  }
  t = since (t);
  r = (double) (__atomic_load_n (&reads, __ATOMIC_RELAXED) - reads_before) /
    (double) nr;
  printf ("%-19s %.0f k/s, %.0f ns of CPU, %.4f reads a lookup\n", what,
          (double) nr / t.wall / 1e3, t.thread * 1e9 / (double) nr, r);
  return r;
}

/* --- Opening ---------------------------------------------------------------------- */

static void
time_open (struct bench *b, const char *what)
{
  struct dedup_probe p = { .hash = key (b->nr / 2) };
  uint64_t expected = b->nr / 2 + 1;
  struct timer t = now ();
  double usable;

  open_disk (b, false);
  if (look_up (b, &p, &expected, 1) != 1) {
    fprintf (stderr, "dedup-index: an entry is missing after open\n");
    exit (1);
  }
  usable = since (t).wall;
  while (!__atomic_load_n (&b->d->filters_loaded, __ATOMIC_RELAXED))
    must (dedup_run (b->d, DEDUP_JOB_FILTERS), "filters");
  printf ("%-19s %.3f s to the first hit, filters loaded after %.3f s\n", what,
          usable, since (t).wall);
}

static void
reopen (struct bench *b)
{
  uint64_t i;

  stop_loop (b);
  must (dedup_finish (b->d), "close");
  dedup_free (b->d);
  time_open (b, "clean open");
  for (i = 0; i < 200000; i += GROUP)
    insert (b, GROUP);
  must (dedup_flush (b->d), "flush");
  dedup_free (b->d);
  time_open (b, "open after crash");
}

static void
check (bool ok, const char *what)
{
  if (ok)
    return;
  fprintf (stderr, "dedup-index: not as it should be: %s\n", what);
  exit (1);
}

int
main (int argc, char **argv)
{
  const bool checked = argc == 4 && strcmp (argv[3], "--check") == 0;
  uint64_t nr, lookups, hits;
  struct dedup_stats s;
  struct bench b = { 0 };
  double r;

  if (argc < 3 || argc > 4 || (argc == 4 && !checked)) {
    fprintf (stderr, "usage: dedup-index FILE ENTRIES [--check]\n");
    return 2;
  }
  srv_limit_malloc ();
  setvbuf (stdout, NULL, _IOLBF, 0);
  nr = strtoull (argv[2], NULL, 0);
  lookups = MIN_OF (nr, 4000000) / BATCH * BATCH;
  create (&b, argv[1], nr);
  printf ("entries             %" PRIu64 "\n", nr);
  fill (&b, nr);
  settle (&b);
  dedup_get_stats (b.d, &s);
  printf ("written in all      %.1f bytes an entry\n",
          (double) written / (double) nr);
  check (!checked || (double) written / (double) nr < 300, "bytes written");
  printf ("memory at rest      %.3f bytes an entry, %" PRIu64 " runs\n",
          (double) memory (&b) / (double) nr, s.nr_runs);
  r = look (&b, "misses", nr * 2, UINT64_C (1) << 40, lookups, &hits);
  check (!checked || (hits == 0 && r < 0.013), "misses");
  r = look (&b, "hits", 0, nr, lookups / 4, &hits);
  check (hits == lookups / 4 / BATCH * BATCH || hits >= lookups / 4,
         "hits: an entry is missing");
  check (!checked || r < 1.05, "reads for a hit");
  pace (&b, MIN_OF (nr, checked ? 400000 : 2000000));
  settle (&b);
  reopen (&b);
  must (dedup_finish (b.d), "close");
  dedup_free (b.d);
  io_close (b.io);
  return 0;
}
