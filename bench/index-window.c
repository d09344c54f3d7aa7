/* SPDX-License-Identifier: BSD-3-Clause */
/* Measures a bounded index (index-memory=) at scale: ENTRIES new entries stream
 * by, while the keys of a small set, such as an operating system's blocks, are
 * hit again and again (bench/README.md).
 *
 *   dedup-index-window FILE ENTRIES MEMORY ORDER [--check]
 *
 * ORDER is that of log stores.  As the write path does (link.c), a key that is
 * hit in the oldest quarter is entered again.  The index's memory is measured
 * after every 4096 entries; that of the process includes the cache of tables
 * and the journal.  With --check the program fails if the index took more than
 * MEMORY, if a key of the set was ever missed, or if the window holds too few
 * entries, or old ones.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "index-disk.h"
#include "malloc-limits.h"

#define HOT 5000               /* keys of the set */
#define OLD (UINT64_C (1) << 50)   /* number of the set's first key */
#define EVERY 4096             /* after so many entries some keys are hit */

struct window {
  struct bench b;
  uint64_t nr;                 /* entries streamed */
  uint64_t most;               /* most bytes that the index took */
  uint64_t held;               /* entries in it now */
  uint64_t missed, renewed, next_hot;
};

static uint64_t
status_kib (const char *name)
{
  FILE *fp = fopen ("/proc/self/status", "r");
  char line[200];
  uint64_t kib = 0;

  while (fp && fgets (line, sizeof line, fp))
    if (strncmp (line, name, strlen (name)) == 0)
      kib = strtoull (line + strlen (name) + 1, NULL, 10);
  if (fp)
    fclose (fp);
  return kib;
}

static uint64_t
host_of (const struct window *w, uint64_t key)
{
  return w->b.first + (key >= OLD ? key - OLD : HOT + key);
}

static void
insert (struct window *w, uint64_t key)
{
  const struct dedup_hash h = bench_key (key);
  const uint64_t host_idx = host_of (w, key);

  bench_insert (&w->b, &h, &host_idx, 1);
}

/* Looks up NR keys from FIRST on, and enters aging ones again if RENEW; returns
 * how many were found. */
static uint64_t
look (struct window *w, uint64_t first, uint64_t nr, bool renew)
{
  uint64_t expected[BATCH], i, k, n, hits = 0;
  struct dedup_probe p[BATCH];

  for (i = 0; i < nr; i += n) {
    n = MIN_OF (nr - i, BATCH);
    for (k = 0; k < n; k++) {
      p[k] = (struct dedup_probe) { .hash = bench_key (first + i + k) };
      expected[k] = host_of (w, first + i + k);
    }
    hits += bench_look_up (&w->b, p, expected, n);
    for (k = 0; renew && k < n; k++)
      if (p[k].aging) {
        insert (w, first + i + k);
        w->renewed++;
      }
  }
  return hits;
}

static void
note_memory (struct window *w)
{
  struct dedup_stats s;

  dedup_get_stats (w->b.d, &s);
  w->most = MAX_OF (w->most, s.index_memory_bytes);
  w->held = s.index_entries;
}

/* Hits some keys of the set: each about eight times while the window passes
 * once. */
static void
hit_some (struct window *w)
{
  uint64_t n = (uint64_t) HOT * EVERY * 8 / MAX_OF (w->held, 100000) + 1;

  for (; n > 0; n--) {
    w->missed += look (w, OLD + w->next_hot, 1, true) != 1;
    w->next_hot = (w->next_hot + 1) % HOT;
  }
}

static void
stream (struct window *w, uint64_t entries)
{
  uint64_t i;

  for (i = 0; i < HOT; i++)
    insert (w, OLD + i);
  while (w->nr < entries) {
    insert (w, w->nr++);
    if (w->nr % EVERY != 0)
      continue;
    note_memory (w);
    hit_some (w);
  }
}

/* Returns how many of the youngest entries of the stream are found without a
 * gap. */
static uint64_t
find_window (struct window *w)
{
  const uint64_t n = 10000;
  uint64_t at = w->nr;

  while (at >= n && look (w, at - n, n, false) == n)
    at -= n;
  return w->nr - at;
}

static int
check (const struct window *w, uint64_t window, uint64_t oldest)
{
  const char *wrong = NULL;

  if (w->most > w->b.index_memory)
    wrong = "the index took more memory than its bound";
  else if (w->missed > 0)
    wrong = "a key that is hit again and again was forgotten";
  else if (w->renewed == 0 || oldest > 0)
    wrong = "the oldest entries are still there";
  else if (window < w->held / 2)
    wrong = "the window holds too few entries";
  if (wrong)
    fprintf (stderr, "dedup-index-window: %s\n", wrong);
  return wrong != NULL;
}

int
main (int argc, char **argv)
{
  static struct window w;
  uint64_t entries, base, window, oldest;
  struct dedup_stats s;
  int r = 0;

  if (argc < 5 || argc > 6) {
    fprintf (stderr, "usage: dedup-index-window FILE ENTRIES MEMORY ORDER "
             "[--check]\n");
    return 2;
  }
  srv_limit_malloc ();
  entries = strtoull (argv[2], NULL, 0);
  w.b.index_memory = strtoull (argv[3], NULL, 0);
  w.b.order = (unsigned) strtoul (argv[4], NULL, 0);
  base = status_kib ("VmRSS:");
  bench_create (&w.b, argv[1], entries + HOT);
  stream (&w, entries);
  dedup_get_stats (w.b.d, &s);
  window = find_window (&w);
  oldest = look (&w, 0, MIN_OF (entries / 10, 100000), false);
  printf ("bound %.2f MiB, index at most %.2f MiB; process at most %.1f, at the "
          "end %.1f, at the start %.1f MiB\n",
          (double) w.b.index_memory / 1048576, (double) w.most / 1048576,
          (double) status_kib ("VmHWM:") / 1024,
          (double) status_kib ("VmRSS:") / 1024, (double) base / 1024);
  printf ("%.1f M entries made, %.2f M in the index (%" PRIu64 " tables), the "
          "youngest %.2f M all there; of the first tenth %" PRIu64 " found; of "
          "%d keys hit again and again %" PRIu64 " misses, %" PRIu64
          " renewed\n", (double) entries / 1e6, (double) s.index_entries / 1e6,
          (uint64_t) bench_nr_tables (w.b.d->base.lock, w.b.d->store.index),
          (double) window / 1e6, oldest, HOT, w.missed, w.renewed);
  if (argc == 6)
    r = check (&w, window, oldest);
  bench_stop_loop (&w.b);
  bench_must (dedup_finish (w.b.d), "close");
  dedup_free (w.b.d);
  io_close (w.b.io);
  return r;
}
