/* SPDX-License-Identifier: BSD-3-Clause */
/* dedup-pool FILE GIB [fill|many]: measures operations on the disks of a pool.
 *
 * With "fill" it only makes an image whose active disk is mapped in this way; with
 * "many" one with 1,000 such disks, "many-0" and so on.  These are for
 * bench/pool-peers.
 *
 * Makes the image FILE, which must not exist, and in it a disk of GIB GiB that is
 * mapped throughout by duplicates of 4096 blocks.  Then it prints, one a line:
 *
 *   clone, snapshot, reset, delete   milliseconds, median and maximum of 20
 *   clones                           1,000 clones: seconds, RSS a clone
 *   write-alone, write-pay, write-delete
 *                                    microseconds of a random write of 4 KiB to
 *                                    another disk, p50 p99 p99.9: alone, while
 *                                    debts are paid, while a clone is dropped
 *   pay, pay-scattered               seconds to pay for one clone, idle, and bytes
 *                                    written to the journal for each cluster that
 *                                    is mapped; the second, of a disk of 256 MiB
 *                                    that was written in random order
 *   open-crash                       seconds, and of CPU: the open up to the first read, as
 *                                    the process died behind the 1,000 clones
 *   close-debt, open-debt            a close with all debts left, and the open
 *                                    after it
 *   open-clean                       the open when all is paid
 *   generations                      MiB/s of a sequential read from memory: a
 *                                    disk of 256 MiB, and the 100th of a row of
 *                                    clones in each of which 1 % was written, as
 *                                    one piece, or as clusters all over the disk;
 *                                    and a disk with such writes but no clones
 *
 * The engine is called directly, with one thread for writes and one for jobs.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "dedup.h"
#include "pool.h"

#define CLUSTER 4096u
#define BATCH 512u
#define BLOCKS 4096u
#define TIMES 20
#define NR_CLONES 1000
#define WRITES 20000

static void
fail (const char *what, int r, const struct fault *f)
{
  fprintf (stderr, "dedup-pool: %s: %s\n", what,
           f && f->msg[0] ? f->msg : strerror (-r));
  exit (1);
}

static void
must (const char *what, int r, const struct fault *f)
{
  if (r < 0)
    fail (what, r, f);
}

static double
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* The CPU time of all threads, which depends less on what else the machine does. */
static double
cpu (void)
{
  struct timespec t;

  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static uint64_t
rss_kib (void)
{
  unsigned long pages = 0, all;
  FILE *f = fopen ("/proc/self/statm", "r");

  if (f && fscanf (f, "%lu %lu", &all, &pages) != 2)
    pages = 0;
  if (f)
    fclose (f);
  return pages * (uint64_t) sysconf (_SC_PAGESIZE) / 1024;
}

/* --- The pool -------------------------------------------------------------- */

static struct io_store *io;

static struct dedup_pool *
open_pool (const char *path)
{
  struct dedup_open_params p = {
    .path = path, .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 256 << 20,
  };
  struct fault f = { 0 };
  struct dedup_pool *d = NULL;

  must ("open", io_file_open (path, IO_FILE_WRITE, IO_LOCK_WRITE, &io,
                              &f), &f);
  must ("open", dedup_open (io, &p, &d, &f), &f);
  return d;
}

static void
close_pool (struct dedup_pool *d)
{
  must ("close", dedup_finish (d), NULL);
  dedup_free (d);
  io_close (io);
}

static void
fill_block (uint8_t *p, uint64_t id)
{
  for (size_t i = 0; i < CLUSTER / 8; i++) {
    uint64_t v = (id + 1) * 0x9e3779b97f4a7c15u + i * 0x100000001b3u;

    memcpy (p + 8 * i, &v, 8);
  }
}

static void
some_jobs (struct dedup_pool *d)
{
  unsigned urgent, due = dedup_due (d, &urgent);

  (void) due;
  for (unsigned job = 1; job < DEDUP_JOB_DISKS; job <<= 1)
    if (urgent & job)
      must ("job", dedup_run (d, (enum dedup_job) job), NULL);
}

static void
fill_disk (struct dedup_pool *d, unsigned root, uint64_t clusters)
{
  uint8_t *buf = malloc (BATCH * CLUSTER);

  for (uint64_t i = 0; i < clusters; i += BATCH) {
    for (uint64_t k = 0; k < BATCH; k++)
      fill_block (buf + k * CLUSTER, (i + k) * 2654435761u % BLOCKS);
    must ("write", dedup_write (d, root, buf, i, BATCH), NULL);
    if (i / BATCH % 64 == 0)
      some_jobs (d);
  }
  free (buf);
}

/* --- Operations ------------------------------------------------------------ */

static int
by_value (const void *a, const void *b)
{
  const double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

static void
print_times (const char *what, double *ms, size_t nr)
{
  qsort (ms, nr, sizeof *ms, by_value);
  printf ("%s %.2f ms median, %.2f ms maximum\n", what, ms[nr / 2],
          ms[nr - 1]);
  fflush (stdout);
}

static void
time_operations (struct dedup_pool *d, unsigned disk)
{
  double clone[TIMES], snapshot[TIMES], reset[TIMES], drop[TIMES], t;
  struct fault f = { 0 };
  unsigned a, b;
  char name[32];

  for (int i = 0; i < TIMES; i++) {
    snprintf (name, sizeof name, "clone-%d", i);
    t = now ();
    must ("clone", dedup_disk_clone (d, disk, name, true, &a, &f), &f);
    clone[i] = 1e3 * (now () - t);
    snprintf (name, sizeof name, "disk@%d", i);
    t = now ();
    must ("snapshot", dedup_disk_clone (d, disk, name, false, &b, &f), &f);
    snapshot[i] = 1e3 * (now () - t);
    t = now ();
    must ("reset", dedup_disk_reset (d, a, b, &f), &f);
    reset[i] = 1e3 * (now () - t);
    t = now ();
    must ("delete", dedup_disk_delete (d, a, &f), &f);
    drop[i] = 1e3 * (now () - t);
    must ("delete", dedup_disk_delete (d, b, &f), &f);
    some_jobs (d);
  }
  print_times ("clone", clone, TIMES);
  print_times ("snapshot", snapshot, TIMES);
  print_times ("reset", reset, TIMES);
  print_times ("delete", drop, TIMES);
}

static void
time_clones (struct dedup_pool *d, unsigned disk)
{
  const uint64_t before = rss_kib ();
  const double t = now ();
  struct fault f = { 0 };
  unsigned root;
  char name[32];

  for (int i = 0; i < NR_CLONES; i++) {
    snprintf (name, sizeof name, "many-%d", i);
    must ("clone", dedup_disk_clone (d, disk, name, true, &root, &f), &f);
    if (i % 16 == 0)
      some_jobs (d);
  }
  printf ("clones %d in %.2f s, RSS grew by %.1f KiB a clone\n", NR_CLONES,
          now () - t, (double) (rss_kib () - before) / NR_CLONES);
  fflush (stdout);
}

/* --- Writes beside the work of the disks ------------------------------------ */

struct worker {
  struct dedup_pool *d;
  bool disks;                  /* do the job DISKS too */
  bool stop;                   /* atomic */
  pthread_t thread;
};

static void *
work (void *opaque)
{
  struct worker *w = opaque;

  while (!__atomic_load_n (&w->stop, __ATOMIC_RELAXED)) {
    some_jobs (w->d);
    if (w->disks && (dedup_due (w->d, NULL) & DEDUP_JOB_DISKS))
      must ("job", dedup_run (w->d, DEDUP_JOB_DISKS), NULL);
    else
      usleep (1000);
  }
  return NULL;
}

static void
time_writes (struct dedup_pool *d, unsigned root, uint64_t clusters,
             const char *what, bool disks)
{
  struct worker w = { .d = d, .disks = disks };
  uint8_t *buf = malloc (CLUSTER);
  double *us = malloc (WRITES * sizeof *us), t;
  static uint64_t next = 1 << 20;
  uint64_t seed = 88172645463325252u;

  pthread_create (&w.thread, NULL, work, &w);
  for (int i = 0; i < WRITES; i++) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    fill_block (buf, next++);
    t = now ();
    must ("write", dedup_write (d, root, buf, seed % clusters, 1), NULL);
    us[i] = 1e6 * (now () - t);
    usleep (50);
  }
  __atomic_store_n (&w.stop, true, __ATOMIC_RELAXED);
  pthread_join (w.thread, NULL);
  qsort (us, WRITES, sizeof *us, by_value);
  printf ("%s p50 %.0f us, p99 %.0f us, p99.9 %.0f us%s\n", what,
          us[WRITES / 2], us[WRITES / 100 * 99], us[WRITES / 1000 * 999],
          disks && !dedup_disks_pending (d) ? " (the work ended before)" : "");
  fflush (stdout);
  free (us);
  free (buf);
}

static double
settle (struct dedup_pool *d)
{
  const double t = now ();

  while (dedup_disks_pending (d)) {
    must ("job", dedup_run (d, DEDUP_JOB_DISKS), NULL);
    some_jobs (d);
  }
  return now () - t;
}

static uint64_t
journal_bytes (struct dedup_pool *d)
{
  LOCK_FOR_SCOPE (d->base.lock);
  return dedup_journal_seq_locked (d->store.journal) * DEDUP_BLOCK_SIZE;
}

/* Clones a disk of CLUSTERS mapped clusters, and pays for that. */
static void
time_payment (struct dedup_pool *d, unsigned disk, uint64_t clusters,
              const char *what)
{
  struct fault f = { 0 };
  uint64_t before;
  unsigned root;
  double s;

  must ("flush", dedup_flush (d), NULL);
  must ("clone", dedup_disk_clone (d, disk, what, true, &root, &f), &f);
  before = journal_bytes (d);
  s = settle (d);
  must ("flush", dedup_flush (d), NULL);
  printf ("%s %.2f s, %.2f bytes of the journal a cluster\n", what, s,
          (double) (journal_bytes (d) - before) / (double) clusters);
  fflush (stdout);
}

/* --- Generations ------------------------------------------------------------- */

#define GENERATIONS 100u
#define GEN_CLUSTERS 65536u    /* 256 MiB */
#define READ_BYTES (1u << 20)

static double
read_speed (struct dedup_pool *d, unsigned root)
{
  uint8_t *buf = aligned_alloc (4096, READ_BYTES);
  const uint64_t size = (uint64_t) GEN_CLUSTERS * CLUSTER;
  double t = 0;

  for (int pass = 0; pass < 3; pass++) {       /* the last one counts */
    t = now ();
    for (uint64_t off = 0; off < size; off += READ_BYTES)
      must ("read", dedup_read (d, root, buf, off, READ_BYTES), NULL);
  }
  free (buf);
  return (double) size / (1 << 20) / (now () - t);
}

/* Writes new data to COUNT clusters: in one piece from FIRST on, or all over the
 * disk. */
static void
write_some (struct dedup_pool *d, unsigned root, uint64_t first, uint64_t count,
            bool scattered)
{
  uint8_t *buf = malloc (CLUSTER);
  static uint64_t next = UINT64_C (1) << 40, seed = 88172645463325252u;

  for (uint64_t i = 0; i < count; i++) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    fill_block (buf, next++);
    must ("write", dedup_write (d, root, buf, (scattered ? seed : first + i) %
                                GEN_CLUSTERS, 1), NULL);
  }
  free (buf);
}

/* Makes a disk, then GENERATIONS times writes 1 %, to a clone each time if CLONES.
 * Returns how fast the last disk is read, and the first one in *FIRST. */
static double
generations (struct dedup_pool *d, const char *how, bool scattered, bool clones,
             double *first)
{
  struct fault f = { 0 };
  unsigned root;
  char name[32];

  snprintf (name, sizeof name, "%s-%d", how, clones);
  must ("create", dedup_disk_create (d, name, (uint64_t) GEN_CLUSTERS * CLUSTER,
                                     &root, &f), &f);
  write_some (d, root, 0, GEN_CLUSTERS, false);
  some_jobs (d);
  *first = read_speed (d, root);
  for (unsigned i = 1; i <= GENERATIONS; i++) {
    snprintf (name, sizeof name, "%s-%u", how, i + 1);
    if (clones)
      must ("clone", dedup_disk_clone (d, root, name, true, &root, &f), &f);
    write_some (d, root, i * GEN_CLUSTERS / 100, GEN_CLUSTERS / 100, scattered);
    some_jobs (d);
  }
  return read_speed (d, root);
}

static void
time_generations (struct dedup_pool *d, bool scattered)
{
  const char *how = scattered ? "scattered" : "pieces";
  double first, one, last = generations (d, how, scattered, true, &first);

  printf ("generations %s: first %.0f MiB/s, 100th %.0f MiB/s, %.2f; ", how,
          first, last, last / first);
  last = generations (d, how, scattered, false, &one);
  printf ("without clones %.0f MiB/s, then %.0f MiB/s, %.2f\n", one, last,
          last / one);
  fflush (stdout);
}

/* --- All of it -------------------------------------------------------------- */

static void
create (const char *path, uint64_t size)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = size, .cluster_bits = 12,
               .refcount_order = 5 },
  };
  struct fault f = { 0 };

  must ("create", io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                IO_LOCK_WRITE, &io, &f), &f);
  must ("create", dedup_create (io, &p, &f), &f);
  io_close (io);
}

/* Opens the pool, and reads from one of its clones. */
static struct dedup_pool *
time_open (const char *path, const char *what)
{
  const double t = now (), c = cpu ();
  struct dedup_pool *d = open_pool (path);
  struct fault f = { 0 };
  uint8_t buf[CLUSTER];
  unsigned root;

  must ("find", dedup_disk_find (d, "many-500", &root, &f), &f);
  must ("read", dedup_read (d, root, buf, 0, sizeof buf), NULL);
  printf ("%s %.2f s, %.2f s of CPU\n", what, now () - t, cpu () - c);
  fflush (stdout);
  return d;
}

static void
run (const char *path, uint64_t gib)
{
  const uint64_t size = gib << 30, other_clusters = 1 << 16;
  struct fault f = { 0 };
  struct dedup_pool *d;
  unsigned disk, other, root;
  double t;

  create (path, size);
  d = open_pool (path);
  must ("create", dedup_disk_create (d, "disk", size, &disk, &f), &f);
  must ("create", dedup_disk_create (d, "other", other_clusters * CLUSTER,
                                     &other, &f), &f);
  t = now ();
  fill_disk (d, disk, size / CLUSTER);
  must ("flush", dedup_flush (d), NULL);
  printf ("filled %llu GiB in %.1f s\n", (unsigned long long) gib, now () - t);
  time_operations (d, disk);
  settle (d);
  time_writes (d, other, other_clusters, "write-alone", false);
  time_payment (d, disk, size / CLUSTER, "pay");
  must ("clone", dedup_disk_clone (d, disk, "two", true, &root, &f), &f);
  time_writes (d, other, other_clusters, "write-pay", true);
  settle (d);
  must ("delete", dedup_disk_delete (d, root, &f), &f);
  time_writes (d, other, other_clusters, "write-delete", true);
  settle (d);
  time_generations (d, false);
  time_generations (d, true);
  settle (d);
  must ("find", dedup_disk_find (d, "scattered-0", &root, &f), &f);
  time_payment (d, root, GEN_CLUSTERS, "pay-scattered");
  time_clones (d, disk);
  dedup_free (d);              /* as if the process died */
  io_close (io);
  d = time_open (path, "open-crash");
  t = now ();
  close_pool (d);
  printf ("close-debt %.2f s\n", now () - t);
  d = time_open (path, "open-debt");
  printf ("pay-clones %.2f s\n", settle (d));
  close_pool (d);
  close_pool (time_open (path, "open-clean"));
}

static void
fill_only (const char *path, uint64_t gib, bool many)
{
  struct dedup_pool *d;

  create (path, gib << 30);
  d = open_pool (path);
  fill_disk (d, 0, (gib << 30) / CLUSTER);
  if (many)
    time_clones (d, 0);
  settle (d);
  close_pool (d);
}

int
main (int argc, char **argv)
{
  const uint64_t gib = argc > 2 ? strtoull (argv[2], NULL, 10) : 0;

  if (gib == 0 || argc > 4 || (argc == 4 && strcmp (argv[3], "fill") != 0 &&
                               strcmp (argv[3], "many") != 0)) {
    fprintf (stderr, "usage: dedup-pool FILE GIB [fill|many]\n");
    return 2;
  }
  if (argc == 4)
    fill_only (argv[1], gib, strcmp (argv[3], "many") == 0);
  else
    run (argv[1], gib);
  return 0;
}
