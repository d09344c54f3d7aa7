/* SPDX-License-Identifier: BSD-3-Clause */
/* dedup-job-progress: says how true the progress of a job is.
 *
 *   dedup-job-progress index IMAGE           the job index-existing
 *   dedup-job-progress clone IMAGE DISK [N]  "disks", after N clones of DISK (1)
 *   dedup-job-progress delete IMAGE DISK     "disks", after DISK was deleted
 *   dedup-job-progress disks IMAGE           "disks", what was left of it earlier
 *   dedup-job-progress scrub IMAGE           the job scrub
 *   dedup-job-progress compact IMAGE         the job compact: no dead bytes are to stay
 *   dedup-job-progress compress IMAGE        the job compress, of plain data
 *   dedup-job-progress import IMAGE URI      the job import, of the NBD export URI
 *
 * Serves IMAGE in this process without clients, starts the work, and notes the
 * progress every few milliseconds until the job has ended.  Prints, for each tenth
 * of the time that it took, how far it said to be, and at the end how far that was
 * from the truth at half way and at the most; and the same of the time that the
 * process had a processor, which other load on the machine changes less (for an import,
 * it is not the time of the server that it reads from).  The image is changed.
 *
 * Two threads: this one and the loop's.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "server.h"

#define SAMPLE_US 2000
#define MAX_SAMPLES 1000000

struct sample {
  uint64_t ns, cpu_ns;
  double progress;              /* 0 to 1 */
};

static struct sample *samples;
static size_t nr;

static void
must (int r, const char *what, const struct fault *f)
{
  if (r >= 0)
    return;
  fprintf (stderr, "dedup-job-progress: %s: %s\n", what,
           f && f->msg[0] ? f->msg : strerror (-r));
  exit (EXIT_FAILURE);
}

static uint64_t
clock_ns (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static void
log_write (void *opaque, enum log_level level, const char *line)
{
  if (level != LOG_DEBUG)
    fprintf (stderr, "%s\n", line);
}

static int
note_sample (void *opaque, const struct srv_job_info *info)
{
  if (nr < MAX_SAMPLES)
    samples[nr++] = (struct sample) {
      .ns = clock_ns (CLOCK_MONOTONIC),
      .cpu_ns = clock_ns (CLOCK_PROCESS_CPUTIME_ID),
      .progress = info->total ? (double) info->done / (double) info->total : 0,
    };
  return 1;
}

/* Notes samples from the begin of the first job to its end. */
static void
watch (struct srv_image *m)
{
  int r;

  do {
    usleep (SAMPLE_US);
    r = srv_job_list (m, note_sample, NULL);
  } while (r == 1 || nr == 0);
  must (r, "list of jobs", NULL);
}

static void
start_clones (struct srv_image *m, const char *disk, int nr_clones)
{
  struct fault f = { 0 };
  char name[64];

  for (int i = 0; i < nr_clones; i++) {
    snprintf (name, sizeof name, "clone-%" PRIu64, clock_ns (CLOCK_REALTIME));
    must (srv_disk_clone (m, disk, name, &f), "clone", &f);
  }
}

static int
start_import (struct srv_image *m, const char *uri, struct fault *f)
{
  const struct srv_import_params p = { .name = "imported", .uri = uri };

  return srv_import_start (m, NULL, &p, NULL, f);
}

static void
start_work (struct srv_image *m, int argc, char **argv)
{
  const char *what = argv[1], *with = argv[3];
  struct fault f = { 0 };
  int r = 0;

  if (strcmp (what, "index") == 0)
    r = srv_index_existing_start (m, NULL, NULL, &f);
  else if (strcmp (what, "scrub") == 0)
    r = srv_scrub_start (m, NULL, true, NULL, &f);
  else if (strcmp (what, "compact") == 0)
    r = srv_compact_start (m, NULL, 1, NULL, &f);
  else if (strcmp (what, "import") == 0)
    r = start_import (m, with, &f);
  else if (strcmp (what, "delete") == 0)
    r = srv_disk_delete (m, with, false, &f);
  else if (strcmp (what, "disks") == 0 || strcmp (what, "compress") == 0)
    return;                     /* they start by themselves */
  else
    start_clones (m, with, argc > 4 ? atoi (argv[4]) : 1);
  must (r, what, &f);
}

/* Returns the number of operands of the command NAME, 0 if there is none. */
static int
nr_operands (const char *name)
{
  static const struct { const char *name; int nr; } all[] = {
    { "index", 1 }, { "scrub", 1 }, { "compact", 1 }, { "disks", 1 },
    { "compress", 1 },
    { "clone", 2 }, { "delete", 2 }, { "import", 2 },
  };

  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
    if (strcmp (name, all[i].name) == 0)
      return all[i].nr;
  return 0;
}

static uint64_t
time_of (size_t i, bool cpu)
{
  return cpu ? samples[i].cpu_ns - samples[0].cpu_ns
    : samples[i].ns - samples[0].ns;
}

/* Prints how true the progress was. */
static void
report (bool cpu)
{
  const double all = (double) time_of (nr - 1, cpu);
  double worst = 0, half = 0, off;
  unsigned tenth = 1;

  printf ("%s of %.2f s: progress\n", cpu ? "CPU time" : "time", all / 1e9);
  for (size_t i = 0; i < nr; i++) {
    const double t = (double) time_of (i, cpu) / all;

    off = samples[i].progress - t;
    if (off * off > worst * worst)
      worst = off;
    if (t < tenth / 10.0 || tenth > 9)
      continue;
    printf ("  %2u %%: %5.1f %%\n", 10 * tenth, 100 * samples[i].progress);
    half = tenth++ == 5 ? off : half;
  }
  printf ("at half way off by %.1f %%, at the most by %.1f %%\n", 100 * half,
          100 * worst);
}

int
main (int argc, char **argv)
{
  struct log_sink sink = { .write = log_write };
  struct srv_image_params p;
  struct srv_image *m = NULL;
  struct fault f = { 0 };

  if (argc < 3 || nr_operands (argv[1]) == 0 || argc < 2 + nr_operands (argv[1])) {
    fprintf (stderr, "usage: dedup-job-progress index|scrub|compact|compress|disks IMAGE\n"
             "       dedup-job-progress clone|delete IMAGE DISK [N]\n"
             "       dedup-job-progress import IMAGE URI\n");
    return EXIT_FAILURE;
  }
  samples = calloc (MAX_SAMPLES, sizeof *samples);
  srv_image_params_default (&p);
  p.path = argv[2];
  p.log = &sink;
  if (strcmp (argv[1], "compress") == 0) {
    p.compress = "zstd";
    p.compress_idle = true;
  }
  must (samples ? srv_image_open (&p, &m, &f) : -ENOMEM, argv[2], &f);
  must (srv_image_start (m), "start", NULL);
  start_work (m, argc, argv);
  watch (m);
  must (srv_image_close (m), "close", NULL);
  report (false);
  report (true);
  return EXIT_SUCCESS;
}
