/* SPDX-License-Identifier: BSD-3-Clause */
/* The index alone: the real store on a real file, with its background loop,
 * without guest data and NBD (bench/README.md).
 *
 *   dedup-index FILE ENTRIES [--check]
 *
 * Keys are the output of SplitMix64 over a counter: 256 bits each, as random as
 * SHA-256's.  Entries are logged as INDEX records, in groups of 16, as a
 * request of 64 KiB makes them.  No cluster is there, so none counts as dead.
 * FILE is left behind; one that exists already, with so many entries, is measured
 * again (not with --check).
 *
 * Times are of the clock, and of the CPU, which says more on a machine that
 * others use.  --check: fail where a figure that does not depend on the size
 * or the machine is not what it should be.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "index-disk.h"
#include "malloc-limits.h"

#define GROUP 16

static uint64_t nr_made;               /* entries: keys 0 and up */

static void
insert (struct bench *b, size_t nr)
{
  struct dedup_hash h[GROUP];
  uint64_t host_idx[GROUP];
  size_t i;

  for (i = 0; i < nr; i++) {
    h[i] = bench_key (nr_made + i);
    host_idx[i] = nr_made + i + 1;
  }
  bench_insert (b, h, host_idx, nr);
  nr_made += nr;
}

static void
fill (struct bench *b, uint64_t nr)
{
  const uint64_t before = bench_written ();
  uint64_t most = 0, steps = nr / GROUP / 64 + 1, i;
  struct bench_timer t = bench_now ();
  size_t tables = 0;

  for (i = 0; nr_made < nr; i++) {
    insert (b, MIN_OF (GROUP, nr - nr_made));
    if (i % steps == 0 && nr_made > nr / 2) {
      most = MAX_OF (most, bench_memory (b) * 1000 / nr_made);
      tables = MAX_OF (tables, bench_tables (b));
    }
  }
  t = bench_since (t);
  printf ("insertions          %.0f k/s; CPU: %.0f ns here, %.0f ns behind\n",
          (double) nr / t.wall / 1e3, t.thread * 1e9 / (double) nr,
          (t.process - t.thread) * 1e9 / (double) nr);
  printf ("  written           %.1f bytes an entry so far\n", (double)
          (bench_written () - before) /
          (double) nr);
  printf ("  memory            %.3f bytes an entry at the most since half, "
          "up to %zu tables\n", (double) most / 1000, tables);
}

static int
compare_doubles (const void *a, const void *b)
{
  const double *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* This thread on the first CPU and all others elsewhere (APART), or all
 * anywhere.  Advice. */
static void
place_threads (bool apart)
{
  const pid_t self = (pid_t) syscall (SYS_gettid);
  DIR *dir = opendir ("/proc/self/task");
  const struct dirent *e;
  cpu_set_t first, rest;
  pid_t tid;
  int i;

  CPU_ZERO (&first);
  CPU_SET (0, &first);
  CPU_ZERO (&rest);
  for (i = 1; i < CPU_SETSIZE; i++)
    CPU_SET (i, &rest);
  if (!apart) {
    CPU_OR (&first, &first, &rest);
    rest = first;
  }
  while (dir && (e = readdir (dir)) != NULL)
    if ((tid = (pid_t) atoi (e->d_name)) > 0)
      (void) sched_setaffinity (tid, sizeof rest, tid == self ? &first : &rest);
  if (dir)
    closedir (dir);
}

/* How often the thread gave the CPU up of itself: to wait. */
static long
sleeps (void)
{
  struct rusage u;

  getrusage (RUSAGE_THREAD, &u);
  return u.ru_nvcsw;
}

/* The CPU that the host gave to others, of all CPUs; -1: not known.  Seconds;
 * see proc(5). */
static double
stolen (void)
{
  FILE *f = fopen ("/proc/stat", "r");
  unsigned long long ticks = 0;
  int n = 0;

  if (f) {
    n = fscanf (f, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &ticks);
    fclose (f);
  }
  return n == 1 ? (double) ticks / (double) sysconf (_SC_CLK_TCK) : -1;
}

/* LATE: of every 5 us, how late what is due then was done: an insertion, or
 * nothing at all; and TOOK, how long it took itself.  Returns how many
 * insertions slept, and took over 1 ms. */
static size_t
tick (struct bench *b, double *late, double *took, size_t nr,
      bool with_insertions)
{
  double start = bench_seconds (CLOCK_MONOTONIC), due, begun, done;
  long before = sleeps (), now;
  size_t i, slept = 0;

  for (i = 0; i < nr; i++) {
    due = start + (double) i * 5e-6;
    do
      begun = bench_seconds (CLOCK_MONOTONIC);
    while (begun < due);
    if (with_insertions)
      insert (b, 1);
    done = bench_seconds (CLOCK_MONOTONIC);
    late[i] = done - due;
    took[i] = done - begun;
    if (took[i] > 1e-3) {
      now = sleeps ();
      slept += now > before;
      before = now;
    }
  }
  return slept;
}

static void
print_times (const char *what, double *v, size_t nr)
{
  qsort (v, nr, sizeof *v, compare_doubles);
  printf ("%-19s p50 %.1f us, p99 %.1f us, p99.99 %.3f ms, slowest %.1f ms\n",
          what, v[nr / 2] * 1e6, v[nr / 100 * 99] * 1e6,
          v[nr / 10000 * 9999] * 1e3, v[nr - 1] * 1e3);
}

/* Insertions at 200 k/s; each is late by what held up those before.  The
 * inserting thread has a core to itself, so far as the kernel and the host let
 * it: how late nothing at all is tells how far. */
static void
pace (struct bench *b, size_t nr)
{
  double *late = malloc (nr * sizeof *late), *took = malloc (nr * sizeof *took);
  uint64_t waits;
  size_t slept;
  double taken;

  if (late == NULL || took == NULL)
    bench_must (-ENOMEM, "times");
  place_threads (true);
  taken = stolen ();
  tick (b, late, took, nr, false);
  printf ("200 k/s             the host took %.2f s of CPU\n",
          stolen () - taken);
  print_times ("  nothing, late", late, nr);
  print_times ("  nothing, itself", took, nr);
  waits = b->nr_waits;
  taken = stolen ();
  slept = tick (b, late, took, nr, true);
  place_threads (false);
  printf ("insertions, 200 k/s the host took %.2f s of CPU\n",
          stolen () - taken);
  print_times ("  late", late, nr);
  print_times ("  itself", took, nr);
  printf ("  of %zu            %" PRIu64 " found no room, %zu slept for over "
          "1 ms\n", nr, b->nr_waits - waits, slept);
  free (late);
  free (took);
}

/* --- Looking up ------------------------------------------------------------------ */

/* FROM: keys from there on, NR_KEYS of them.  Returns reads a lookup. */
static double
look (struct bench *b, const char *what, uint64_t from, uint64_t nr_keys,
      uint64_t nr, uint64_t *hits)
{
  const uint64_t reads_before = bench_reads ();
  struct dedup_probe p[BATCH];
  uint64_t expected[BATCH], i, k, rnd = 1;
  struct bench_timer t = bench_now ();
  double r;

  *hits = 0;
  for (i = 0; i < nr; i += BATCH) {
    for (k = 0; k < BATCH; k++) {
      rnd = bench_splitmix (rnd);
      expected[k] = from + rnd % nr_keys;
      p[k].hash = bench_key (expected[k]++);
    }
    *hits += bench_look_up (b, p, expected, BATCH);
  }
  t = bench_since (t);
  r = (double) (bench_reads () - reads_before) /
    (double) nr;
  printf ("%-19s %.0f k/s, %.0f ns of CPU, %.4f reads a lookup\n", what,
          (double) nr / t.wall / 1e3, t.thread * 1e9 / (double) nr, r);
  return r;
}

/* --- Opening ---------------------------------------------------------------------- */

static void
time_open (struct bench *b, const char *what)
{
  struct dedup_probe p = { .hash = bench_key (nr_made / 2) };
  uint64_t expected = nr_made / 2 + 1;
  struct bench_timer t = bench_now ();
  double usable;

  bench_open (b, false);
  if (bench_look_up (b, &p, &expected, 1) != 1) {
    fprintf (stderr, "dedup-index: an entry is missing after open\n");
    exit (1);
  }
  usable = bench_since (t).wall;
  while (!__atomic_load_n (&b->d->index->filters_loaded, __ATOMIC_RELAXED))
    bench_must (dedup_run (b->d, DEDUP_JOB_FILTERS), "filters");
  printf ("%-19s %.3f s to the first hit, filters loaded after %.3f s\n", what,
          usable, bench_since (t).wall);
}

static void
reopen (struct bench *b)
{
  uint64_t i;

  bench_stop_loop (b);
  bench_must (dedup_finish (b->d), "close");
  dedup_free (b->d);
  time_open (b, "clean open");
  for (i = 0; i < 200000; i += GROUP)
    insert (b, GROUP);
  bench_must (dedup_flush (b->d), "flush");
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
  printf ("entries             %" PRIu64 "\n", nr);
  if (!checked && access (argv[1], F_OK) == 0) {
    bench_again (&b, argv[1]);
    nr_made = nr;
  }
  else {
    bench_create (&b, argv[1], nr);
    fill (&b, nr);
    bench_settle (&b);
    printf ("written in all      %.1f bytes an entry\n",
            (double) bench_written () / (double) nr);
    check (!checked || (double) bench_written () / (double) nr < 300,
           "bytes written");
  }
  dedup_get_stats (b.d, &s);
  printf ("memory at rest      %.3f bytes an entry, %" PRIu64 " runs\n",
          (double) bench_memory (&b) / (double) nr, s.nr_runs);
  check (!checked || s.nr_runs <= 4, "runs at rest");
  r = look (&b, "misses", nr * 2, UINT64_C (1) << 40, lookups, &hits);
  check (!checked || (hits == 0 && r < 0.013), "misses");
  r = look (&b, "hits", 0, nr, lookups / 4, &hits);
  check (hits == lookups / 4 / BATCH * BATCH || hits >= lookups / 4,
         "hits: an entry is missing");
  check (!checked || r < 1.05, "reads for a hit");
  pace (&b, MIN_OF (nr, checked ? 400000 : 2000000));
  bench_settle (&b);
  reopen (&b);
  bench_must (dedup_finish (b.d), "close");
  dedup_free (b.d);
  io_close (b.io);
  return 0;
}
