/* SPDX-License-Identifier: BSD-3-Clause */
/* Measures the index of a disk that is rewritten: a disk of CLUSTERS clusters,
 * all with data of their own, of which a tenth is overwritten with new data
 * each day, at random, for DAYS days (bench/README.md).
 *
 *   dedup-index-year FILE CLUSTERS DAYS [MEMORY]
 *
 * Overwriting frees the old data's cluster, and the clusters freed first are
 * used again first; the file has a twentieth more of them than the disk.
 * Overwriting logs one INDEX record, nothing else.  In the end every cluster's
 * data must be found, unless MEMORY bounds the index (bytes).  FILE is not
 * removed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "index-disk.h"
#include "malloc-limits.h"

#define MONTH 30

struct disk {
  uint64_t nr;                   /* clusters of the disk */
  uint64_t *key, *host_idx;      /* of each cluster */
  uint64_t *queue;               /* free host clusters, a ring */
  uint64_t nr_free, head;
  uint64_t first;                /* first of its host clusters, in the file */
  uint8_t *used;                 /* of each host cluster: 1 if in use */
  uint64_t next_key, rnd;
};

static struct disk disk;

static void
find_dead (void *opaque, const uint64_t *host_idx, size_t nr,
           bool *dead)
{
  size_t i;

  for (i = 0; i < nr; i++)
    dead[i] = !__atomic_load_n (&disk.used[host_idx[i] - disk.first],
                                __ATOMIC_RELAXED);
}

static void *
zeroed (uint64_t nr, size_t size)
{
  void *p = calloc (nr, size);

  bench_must (p ? 0 : -ENOMEM, "memory");
  return p;
}

static void
put (struct bench *b, uint64_t cluster, uint64_t host_idx)
{
  struct dedup_hash h = bench_key (disk.next_key);

  disk.key[cluster] = disk.next_key++;
  disk.host_idx[cluster] = host_idx;
  __atomic_store_n (&disk.used[host_idx - disk.first], 1, __ATOMIC_RELAXED);
  bench_insert (b, &h, &host_idx, 1);
}

/* Writes the whole disk, to the first NR host clusters; the others are free. */
static void
make_disk (struct bench *b, uint64_t nr)
{
  const uint64_t nr_free = MAX_OF (nr / 20, 1);
  uint64_t i;

  disk.nr = nr;
  disk.key = zeroed (nr, sizeof *disk.key);
  disk.host_idx = zeroed (nr, sizeof *disk.host_idx);
  disk.queue = zeroed (nr_free, sizeof *disk.queue);
  disk.used = zeroed (nr + nr_free, 1);
  disk.nr_free = nr_free;
  disk.first = b->first;
  for (i = 0; i < nr_free; i++)
    disk.queue[i] = disk.first + nr + i;
  for (i = 0; i < nr; i++)
    put (b, i, disk.first + i);
}

static void
overwrite (struct bench *b)
{
  uint64_t cluster, old, new = disk.queue[disk.head];

  disk.rnd = bench_splitmix (disk.rnd);
  cluster = disk.rnd % disk.nr;
  old = disk.host_idx[cluster];
  __atomic_store_n (&disk.used[old - disk.first], 0, __ATOMIC_RELAXED);
  disk.queue[disk.head] = old;
  disk.head = (disk.head + 1) % disk.nr_free;
  put (b, cluster, new);
}

/* Looks up the data of N clusters from FIRST on or, if STRANGE, as many keys
 * that were never entered; returns how many were found. */
static uint64_t
look (struct bench *b, uint64_t first, uint64_t n, bool strange, double *ns)
{
  struct bench_timer t = bench_now ();
  struct dedup_probe p[BATCH];
  uint64_t expected[BATCH], hits = 0, i, k, nr;

  for (i = 0; i < n; i += nr) {
    nr = MIN_OF (n - i, BATCH);
    for (k = 0; k < nr; k++) {
      const uint64_t c = (first + i + k) % disk.nr;

      p[k].hash = bench_key (strange ? (UINT64_C (1) << 50) + c : disk.key[c]);
      expected[k] = disk.host_idx[c];
    }
    hits += bench_look_up (b, p, expected, nr);
  }
  *ns = bench_since (t).thread * 1e9 / (double) n;
  return hits;
}

static void
report (struct bench *b, uint64_t day)
{
  const uint64_t n = MIN_OF (disk.nr, 1000000);
  struct dedup_stats s;
  uint64_t hits, wrong;
  double miss_ns, hit_ns;

  dedup_get_stats (b->d, &s);
  wrong = look (b, 0, n, true, &miss_ns);
  hits = look (b, disk.next_key, n, false, &hit_ns);
  printf ("day %-4" PRIu64 " written %6.1f M, entries %5.2f, on disk %6.1f, "
          "memory %6.3f bytes a cluster, %2" PRIu64 " runs, %5.1f bytes "
          "written each, miss %4.0f ns, hit %4.0f ns, found %.4f\n", day,
          (double) disk.next_key / 1e6,
          (double) s.index_entries / (double) disk.nr,
          (double) s.index_disk_bytes / (double) disk.nr,
          (double) bench_memory (b) / (double) disk.nr, s.nr_runs,
          (double) bench_written () / (double) disk.next_key, miss_ns, hit_ns,
          (double) hits / (double) n);
  bench_must (wrong ? -EIO : 0, "a key that was never entered is found");
}

int
main (int argc, char **argv)
{
  struct bench b = { .is_dead = find_dead };
  uint64_t nr, days, day, i;
  double ns;

  if (argc < 4 || argc > 5) {
    fprintf (stderr, "usage: dedup-index-year FILE CLUSTERS DAYS [MEMORY]\n");
    return 2;
  }
  srv_limit_malloc ();
  setvbuf (stdout, NULL, _IOLBF, 0);
  nr = strtoull (argv[2], NULL, 0);
  days = strtoull (argv[3], NULL, 0);
  b.index_memory = argc == 5 ? strtoull (argv[4], NULL, 0) : 0;
  bench_create (&b, argv[1], nr + MAX_OF (nr / 20, 1));
  make_disk (&b, nr);
  report (&b, 0);
  for (day = 1; day <= days; day++) {
    for (i = 0; i < disk.nr / 10; i++)
      overwrite (&b);
    if (day % MONTH == 0 || day == days)
      report (&b, day);
  }
  bench_settle (&b);
  report (&b, days);
  if (b.index_memory == 0 && look (&b, 0, disk.nr, false, &ns) != disk.nr) {
    fprintf (stderr, "dedup-index-year: an entry is missing\n");
    return 1;
  }
  bench_stop_loop (&b);
  bench_must (dedup_finish (b.d), "close");
  dedup_free (b.d);
  io_close (b.io);
  return 0;
}
