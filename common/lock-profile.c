/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts the cost of locks, for bench/contention.
 *
 * When the library is unloaded, or the process ends, the counters are written
 * to the file that DEDUP_LOCK_PROFILE in the environment names, as one line of
 * JSON for each place and one for the work that was done under a lock.
 *
 * The counters have one mutex, which no counted time of a hold includes: it is
 * taken before the time begins or after it ended.  It and the clocks cost some
 * 500 ns an acquisition, and the lock itself is held meanwhile.  So the figures
 * are good for proportions, not for speed.
 */
#include "lock-profile.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Protected by mutex: */
static struct lock_site *sites;
static uint64_t work[LOCK_PROFILE_NR], work_locked[LOCK_PROFILE_NR];

static __thread unsigned depth;        /* locks that this thread holds */

static uint64_t
now_ns (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static void
list (struct lock_site *s)
{
  if (s->listed)
    return;
  s->listed = true;
  s->next = sites;
  sites = s;
}

static uint64_t
max_of (uint64_t a, uint64_t b)
{
  return a > b ? a : b;
}

void
lock_profile_mutex (pthread_mutex_t *m, struct lock_site *site)
{
  uint64_t start;

  if (pthread_mutex_trylock (m) == 0)
    return;
  start = now_ns (CLOCK_MONOTONIC);
  pthread_mutex_lock (m);
  start = now_ns (CLOCK_MONOTONIC) - start;
  pthread_mutex_lock (&mutex);
  list (site);
  site->nr_waited++;
  site->wait_ns += start;
  site->wait_max_ns = max_of (site->wait_max_ns, start);
  pthread_mutex_unlock (&mutex);
}

void
lock_profile_begin (struct lock_hold *h, struct lock_site *site)
{
  depth++;
  h->site = site;
  h->ns = now_ns (CLOCK_MONOTONIC);
  h->cpu_ns = now_ns (CLOCK_THREAD_CPUTIME_ID);
}

void
lock_profile_end (struct lock_hold *h)
{
  uint64_t ns = now_ns (CLOCK_MONOTONIC) - h->ns;
  uint64_t cpu_ns = now_ns (CLOCK_THREAD_CPUTIME_ID) - h->cpu_ns;
  struct lock_site *s = h->site;

  depth--;
  pthread_mutex_lock (&mutex);
  list (s);
  s->nr++;
  s->hold_ns += ns;
  s->hold_cpu_max_ns = max_of (s->hold_cpu_max_ns, cpu_ns);
  s->nr_long += cpu_ns > LOCK_PROFILE_LONG_NS;
  pthread_mutex_unlock (&mutex);
}

void
lock_profile_work (enum lock_profile_work what)
{
  pthread_mutex_lock (&mutex);
  work[what]++;
  work_locked[what] += depth > 0;
  pthread_mutex_unlock (&mutex);
}

static void
print (FILE *f)
{
  fprintf (f, "{\"io\": [%" PRIu64 ", %" PRIu64 "], \"hash\": [%" PRIu64
           ", %" PRIu64 "], \"compare\": [%" PRIu64 ", %" PRIu64 "]}\n",
           work[LOCK_PROFILE_IO], work_locked[LOCK_PROFILE_IO],
           work[LOCK_PROFILE_HASH], work_locked[LOCK_PROFILE_HASH],
           work[LOCK_PROFILE_COMPARE], work_locked[LOCK_PROFILE_COMPARE]);
  for (const struct lock_site *s = sites; s; s = s->next)
    fprintf (f, "{\"file\": \"%s\", \"line\": %d, \"nr\": %" PRIu64
             ", \"nr_waited\": %" PRIu64 ", \"wait_ns\": %" PRIu64
             ", \"wait_max_ns\": %" PRIu64 ", \"hold_ns\": %" PRIu64
             ", \"hold_cpu_max_ns\": %" PRIu64 ", \"nr_long\": %" PRIu64
             "}\n", s->file, s->line, s->nr, s->nr_waited, s->wait_ns,
             s->wait_max_ns, s->hold_ns, s->hold_cpu_max_ns, s->nr_long);
}

__attribute__ ((__destructor__)) static void
report (void)
{
  const char *path = getenv ("DEDUP_LOCK_PROFILE");
  FILE *f = path ? fopen (path, "w") : NULL;

  if (!f)
    return;
  pthread_mutex_lock (&mutex);
  print (f);
  pthread_mutex_unlock (&mutex);
  fclose (f);
}
