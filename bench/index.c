/* SPDX-License-Identifier: BSD-3-Clause */
/* Measures the index alone: the real store on a real file, with its background
 * loop, without guest data and NBD (bench/README.md).
 *
 *   dedup-index FILE ENTRIES [--check]
 *   dedup-index --plain FILE ENTRIES [--check]
 *   dedup-index --memory ENTRIES [--check]
 *
 * Keys are the output of SplitMix64 over a counter: 256 bits each, as random as
 * SHA-256's.  Entries are logged as INDEX records, in groups of 16, as a
 * request of 64 KiB makes them.  The clusters do not exist, so none counts as
 * dead.  FILE is not removed; if it exists, with so many entries, it is
 * measured again (not with --check).
 *
 * With --plain and --memory there is no image: the index has plain storage
 * (owner-plain.c), a new file or memory, and entries are not logged.
 *
 * Times are by the clock, and of the CPU, which tells more on a machine that
 * others use.  With --check the program fails if a figure that does not depend
 * on the size or the machine is out of its range.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "checked.h"
#include "index-owner.h"
#include "malloc-limits.h"

#define GROUP 16

static uint64_t nr_made;               /* entries so far: keys 0 and up */

static void
insert (struct bench_owner *b, size_t nr)
{
  struct dedup_hash h[GROUP];
  uint64_t values[GROUP];
  size_t i;

  for (i = 0; i < nr; i++) {
    h[i] = bench_key (nr_made + i);
    values[i] = nr_made + i + 1;
  }
  b->insert (b->opaque, h, values, nr);
  nr_made += nr;
}

static size_t
look_up (struct bench_owner *b, struct dedup_probe *p,
         const uint64_t *expected, size_t nr)
{
  return bench_find (b->lock (b->opaque), b->index (b->opaque), p, expected,
                     nr);
}

static size_t
nr_tables (struct bench_owner *b)
{
  return bench_nr_tables (b->lock (b->opaque), b->index (b->opaque));
}

/* Returns the bytes of memory that the index needs. */
static uint64_t
memory (struct bench_owner *b)
{
  struct dedup_index_figures f;

  b->figures (b->opaque, &f);
  return f.memory_bytes + nr_tables (b) * 64;
}

static void
fill (struct bench_owner *b, uint64_t nr)
{
  const uint64_t before = bench_written ();
  uint64_t most = 0, steps = nr / GROUP / 64 + 1, i;
  struct bench_timer t = bench_now ();
  size_t tables = 0;

  for (i = 0; nr_made < nr; i++) {
    insert (b, MIN_OF (GROUP, nr - nr_made));
    if (i % steps == 0 && nr_made > nr / 2) {
      most = MAX_OF (most, memory (b) * 1000 / nr_made);
      tables = MAX_OF (tables, nr_tables (b));
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

/* Puts this thread on the first CPU and all others elsewhere (APART), or lets
 * all run anywhere.  Errors are ignored. */
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

/* Returns how often the thread gave up the CPU to wait. */
static long
sleeps (void)
{
  struct rusage u;

  getrusage (RUSAGE_THREAD, &u);
  return u.ru_nvcsw;
}

/* Returns the seconds of CPU that the host gave to others, the sum over all
 * CPUs; -1: not known.  See proc(5). */
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

/* Makes an insertion, or does nothing, every 5 us, NR times.  LATE gets how
 * late each was done, TOOK how long it took itself.  Returns how many slept and
 * took over 1 ms. */
static size_t
tick (struct bench_owner *b, double *late, double *took, size_t nr,
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

/* Measures insertions at 200 k/s; each is late by the delays of those before
 * it. The inserting thread has a core to itself as far as the kernel and the
 * host let it: the lateness of doing nothing shows how far that is. */
static void
pace (struct bench_owner *b, size_t nr)
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
  waits = b->nr_waits (b->opaque);
  taken = stolen ();
  slept = tick (b, late, took, nr, true);
  place_threads (false);
  printf ("insertions, 200 k/s the host took %.2f s of CPU\n",
          stolen () - taken);
  print_times ("  late", late, nr);
  print_times ("  itself", took, nr);
  printf ("  of %zu            %" PRIu64 " found no room, %zu slept for over "
          "1 ms\n", nr, b->nr_waits (b->opaque) - waits, slept);
  free (late);
  free (took);
}

/* --- Looking up ------------------------------------------------------------------ */

/* Looks up NR keys, drawn at random from NR_KEYS keys from FROM on.  Returns
 * the reads per lookup, and the number found in *HITS. */
static double
look (struct bench_owner *b, const char *what, uint64_t from, uint64_t nr_keys,
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
    *hits += look_up (b, p, expected, BATCH);
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
check (bool ok, const char *what)
{
  if (ok)
    return;
  fprintf (stderr, "dedup-index: check failed: %s\n", what);
  exit (1);
}

static void
time_open (struct bench_owner *b, const char *what)
{
  struct dedup_probe p = { .hash = bench_key (nr_made / 2) };
  uint64_t expected = nr_made / 2 + 1;
  struct bench_timer t = bench_now ();
  double usable;

  b->open (b->opaque);
  check (look_up (b, &p, &expected, 1) == 1, "an entry is missing after open");
  usable = bench_since (t).wall;
  b->load_filters (b->opaque);
  printf ("%-19s %.3f s to the first hit, filters loaded after %.3f s\n", what,
          usable, bench_since (t).wall);
}

/* Fails unless the NR youngest keys are found, with their values. */
static void
check_youngest (struct bench_owner *b, uint64_t nr)
{
  struct dedup_probe p[BATCH];
  uint64_t expected[BATCH], i, k;

  for (i = nr_made - nr; i < nr_made; i += k) {
    for (k = 0; k < BATCH && i + k < nr_made; k++) {
      p[k].hash = bench_key (i + k);
      expected[k] = i + k + 1;
    }
    check (look_up (b, p, expected, k) == k, "an entry is missing after open");
  }
}

static void
reopen (struct bench_owner *b)
{
  uint64_t i;

  b->close (b->opaque, false);
  time_open (b, "clean open");
  check_youngest (b, MIN_OF (nr_made, 400000));
  for (i = 0; i < 200000; i += GROUP)
    insert (b, GROUP);
  b->close (b->opaque, true);
  time_open (b, "open after crash");
  check_youngest (b, MIN_OF (nr_made, 400000));
}

/* --- What is asked for ---------------------------------------------------------- */

struct options {
  bool plain, in_memory, checked;
  const char *path;             /* NULL: in memory */
  uint64_t nr;
};

static bool
parse (int argc, char **argv, struct options *o)
{
  const char *words[2] = { NULL, NULL };
  size_t n = 0;
  int i;

  for (i = 1; i < argc; i++)
    if (strcmp (argv[i], "--plain") == 0)
      o->plain = true;
    else if (strcmp (argv[i], "--memory") == 0)
      o->in_memory = true;
    else if (strcmp (argv[i], "--check") == 0)
      o->checked = true;
    else if (argv[i][0] == '-' || n == 2)
      return false;
    else
      words[n++] = argv[i];
  if (n != (o->in_memory ? 1 : 2) || (o->plain && o->in_memory))
    return false;
  o->path = o->in_memory ? NULL : words[0];
  o->nr = strtoull (words[n - 1], NULL, 0);
  return o->nr > 0;
}

static void
make (struct bench_owner *b, const struct options *o)
{
  if (b->again && !o->checked && access (o->path, F_OK) == 0) {
    b->again (b->opaque, o->path);
    nr_made = o->nr;
    return;
  }
  b->create (b->opaque, o->path, o->nr);
  fill (b, o->nr);
  b->settle (b->opaque);
  printf ("written in all      %.1f bytes an entry\n",
          (double) bench_written () / (double) o->nr);
  check (!o->checked || (double) bench_written () / (double) o->nr < 300,
         "bytes written");
}

static void
measure (struct bench_owner *b, const struct options *o)
{
  const uint64_t lookups = MIN_OF (o->nr, 4000000) / BATCH * BATCH;
  struct dedup_index_figures f;
  uint64_t hits;
  double r;

  b->figures (b->opaque, &f);
  printf ("memory at rest      %.3f bytes an entry, %" PRIu64 " runs\n",
          (double) memory (b) / (double) o->nr, f.nr_runs);
  check (!o->checked || f.nr_runs <= 4, "runs at rest");
  r = look (b, "misses", o->nr * 2, UINT64_C (1) << 40, lookups, &hits);
  check (!o->checked || (hits == 0 && r < 0.013), "misses");
  r = look (b, "hits", 0, o->nr, lookups / 4, &hits);
  check (hits == lookups / 4 / BATCH * BATCH || hits >= lookups / 4,
         "hits: an entry is missing");
  check (!o->checked || r < 1.05, "reads for a hit");
  pace (b, MIN_OF (o->nr, o->checked ? 400000 : 2000000));
  b->settle (b->opaque);
}

int
main (int argc, char **argv)
{
  struct options o = { 0 };
  struct bench_owner b;

  if (!parse (argc, argv, &o)) {
    fprintf (stderr, "usage: dedup-index [--plain] FILE ENTRIES [--check]\n"
             "       dedup-index --memory ENTRIES [--check]\n");
    return 2;
  }
  if (o.plain || o.in_memory)
    bench_plain_owner (&b, o.in_memory);
  else
    bench_disk_owner (&b);
  srv_limit_malloc ();
  setvbuf (stdout, NULL, _IOLBF, 0);
  printf ("entries             %" PRIu64 "\n", o.nr);
  make (&b, &o);
  measure (&b, &o);
  reopen (&b);
  b.close (b.opaque, false);
  b.end (b.opaque);
  return 0;
}
