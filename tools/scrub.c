/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup scrub: reads everything that an image stores, and compares it with
 * the hashes in the index.
 *
 * Several threads read and hash; the main thread shows the progress, too.  All of
 * them keep to --rate together.  A signal only asks them to end, so the image is
 * closed as at the end, and remembers the position of the last window.
 *
 * An image without a store is read, and gets none.  Freed clusters keep their
 * entries in an index that is exact, as nothing is freed here (verify is off,
 * where the hash allows it).
 */
#include "scrub-report.h"
#include "whole-image.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 64
/* Threads by default: one reads while another one hashes, where there is one processor,
 * too. */
#define LEAST_THREADS 2
#define MOST_THREADS 4

struct scrub_args {
  struct tool_args common;      /* the first member: pointers to it are of the whole */
  uint64_t rate;                /* bytes a second; 0: no limit */
  uint64_t threads;             /* 0: as many as there are processors, within
                                 * LEAST_THREADS and MOST_THREADS */
  bool restart, read_only;
};

static void
help (void)
{
  printf ("qcow2-dedup scrub [--rate=SIZE] [--restart] [--read-only] "
          "[--threads=N]\n"
          "                  [--store=PATH] [--output=human|json] FILE\n"
          "\n"
          "Read everything that the image stores from its medium, and compare it "
          "with the\nhashes in the index.  A scrub that is interrupted is "
          "continued by the next one.\n"
          "\n"
          "    --rate=SIZE   read at most so many bytes a second\n"
          "    --restart     begin at the start of the file\n"
          "    --read-only   write nothing: findings and position are not kept\n"
          "    --threads=N   read and hash with N threads\n"
          "    --store=PATH  the store file, for an image that is served with "
          "store=\n"
          "\n"
          "Exit status: 0 nothing bad, 1 could not be scrubbed, 2 bad clusters, "
          "130\ninterrupted.\n"
          "\n"
          "See qcow2-dedup-scrub(1).\n");
}

/* --- Findings --------------------------------------------------------------- */

/* Returns whether finding F continues the range of P. */
static bool
continues (const struct scrub_place *p, const struct dedup_scrub_finding *f)
{
  return p->why == f->why && (p->disk == NULL) == (f->disk == NULL) &&
    p->root == f->root && p->healable == f->healable &&
    p->host_off + p->len == f->host_off &&
    (f->disk == NULL || p->guest_off + p->len == f->guest_off);
}

static bool
grow (struct scrub_outcome *o)
{
  struct scrub_place *v;

  if (o->nr_places == SCRUB_MAX_PLACES)
    return false;
  if (o->nr_places % 64 != 0)
    return true;
  v = realloc (o->places, (o->nr_places + 64) * sizeof *v);
  o->places = v ? v : o->places;
  return v != NULL;
}

static void
found_cb (void *opaque, const struct dedup_scrub_finding *f)
{
  struct scrub_outcome *o = opaque;
  char *disk = NULL;

  if (o->nr_places > 0 && continues (&o->places[o->nr_places - 1], f)) {
    o->places[o->nr_places - 1].len += f->len;
    return;
  }
  if (!grow (o) || (f->disk && (disk = strdup (f->disk)) == NULL)) {
    o->nr_more++;
    return;
  }
  o->places[o->nr_places++] = (struct scrub_place) {
    .why = f->why, .disk = disk, .root = f->root, .guest_off = f->guest_off,
    .host_off = f->host_off, .len = f->len, .healable = f->healable,
  };
}

static void
free_places (struct scrub_outcome *o)
{
  size_t i;

  for (i = 0; i < o->nr_places; i++)
    free (o->places[i].disk);
  free (o->places);
}

/* --- Work ------------------------------------------------------------------- */

struct work {
  struct dedup_scrub *sc;
  const struct scrub_args *a;
  struct timespec start;
};

static double
seconds_since (const struct timespec *start)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (double) (now.tv_sec - start->tv_sec) +
    (double) (now.tv_nsec - start->tv_nsec) / 1e9;
}

/* Sleeps for at most a tenth of a second, as long as more was read than the rate
 * allows. */
static void
keep_to_rate (const struct work *k)
{
  const struct timespec tick = { .tv_nsec = 10000000 };
  struct dedup_scrub_figures f;
  int i;

  if (k->a->rate == 0)
    return;
  dedup_scrub_figures (k->sc, &f);
  for (i = 0; i < 10 && (double) f.bytes_read >
         (double) k->a->rate * seconds_since (&k->start); i++)
    nanosleep (&tick, NULL);
}

static bool
too_fast (const struct work *k)
{
  struct dedup_scrub_figures f;

  if (k->a->rate == 0)
    return false;
  dedup_scrub_figures (k->sc, &f);
  return (double) f.bytes_read >
    (double) k->a->rate * seconds_since (&k->start);
}

static int
work_once (const struct work *k)
{
  keep_to_rate (k);
  return too_fast (k) ? 1 : dedup_scrub_step (k->sc);
}

static void *
work_on (void *opaque)
{
  while (!tool_interrupted () && work_once (opaque) == 1)
    ;
  return NULL;
}

/* Works until the end, and shows the progress. */
static int
work_and_show (struct work *k)
{
  struct tool_progress progress = { .what = "Scrubbing" };
  struct dedup_scrub_figures f;
  int r = 1;

  while (!tool_interrupted () && (r = work_once (k)) == 1) {
    dedup_scrub_figures (k->sc, &f);
    tool_progress_step (&progress, f.bytes_done, f.bytes_total);
  }
  tool_progress_clear (&progress);
  return r;
}

static uint64_t
nr_threads (const struct scrub_args *a)
{
  const long nr = sysconf (_SC_NPROCESSORS_ONLN);

  if (a->threads > 0)
    return a->threads;
  return nr < LEAST_THREADS ? LEAST_THREADS
    : nr > MOST_THREADS ? MOST_THREADS : (uint64_t) nr;
}

/* Runs the scrub in this thread and others.  1: interrupted; 0; -errno. */
static int
run_threads (struct work *k)
{
  pthread_t threads[MAX_THREADS];
  uint64_t nr, i, want = nr_threads (k->a) - 1;
  int r;

  for (nr = 0; nr < want; nr++)
    if (pthread_create (&threads[nr], NULL, work_on, k) != 0)
      break;                    /* fewer are enough */
  r = work_and_show (k);
  for (i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  return r;
}

static int
scrub_pool (struct dedup_pool *d, const struct scrub_args *a,
            struct scrub_outcome *o)
{
  const struct dedup_scrub_params p = {
    .restart = a->restart, .found = found_cb, .opaque = o,
  };
  struct work k = { .a = a };
  int r = dedup_scrub_begin (d, &p, &k.sc);

  if (r < 0)
    return r;
  clock_gettime (CLOCK_MONOTONIC, &k.start);
  r = run_threads (&k);
  o->complete = r == 0;
  dedup_scrub_figures (k.sc, &o->figures);
  dedup_scrub_end (k.sc);
  dedup_scrub_remembered (d, &o->memory);
  return r < 0 ? r : 0;
}

/* --- Report ------------------------------------------------------------------ */

static int
report (const struct tool_args *a, const struct scrub_outcome *o, int r)
{
  const bool bad = o->figures.different + o->figures.unreadable > 0;
  int code = bad ? TOOL_CORRUPT : TOOL_OK;

  if (a->json)
    scrub_print_json (o);
  else
    scrub_print_human (o);
  if (r < 0)
    code = tool_error (a->path, "scrubbing stopped: %s", strerror (-r));
  else if (!o->complete && !bad)
    code = TOOL_INTERRUPTED;
  return tool_finish_stdout (code);
}

/* --- Command ------------------------------------------------------------------ */

/* An image without a store is read, and gets none. */
static int
open_pool (struct io_store *io, struct io_store *store, const struct scrub_args *a,
           struct dedup_pool **d, struct fault *f)
{
  bool has_store = false;
  int r = a->read_only ? 0
    : whole_has_store (io, store, &a->common, &has_store, f);

  if (r < 0)
    return r;
  return has_store ? whole_open (io, store, &a->common, d, f)
    : whole_open_read_only (io, store, &a->common, d, f);
}

static int
run (struct io_store *io, struct io_store *store, const struct tool_args *common)
{
  const struct scrub_args *a = (const struct scrub_args *) common;
  struct scrub_outcome o = { .path = common->path };
  struct fault f = { 0 };
  struct dedup_pool *d;
  int r = open_pool (io, store, a, &d, &f), code;

  if (r < 0)
    return tool_fault (common->path, r, &f);
  o.remembers = dedup_writable (d);
  r = scrub_pool (d, a, &o);
  code = whole_close (d, common->path, false);
  if (code == TOOL_OK)
    code = report (common, &o, r);
  free_places (&o);
  return code;
}

static int
take_option (struct tool_args *common, int c, const char *arg)
{
  struct scrub_args *a = (struct scrub_args *) common;

  switch (c) {
  case 'R':
    a->restart = true;
    return -1;
  case 'r':
    a->read_only = true;
    return -1;
  case 'l':
    return tool_parse_size (arg, &a->rate) && a->rate > 0 ? -1
      : tool_usage_error ("scrub", "--rate must be a number of bytes, not '%s'", arg);
  default:
    return tool_parse_number (arg, 1, MAX_THREADS, &a->threads) ? -1
      : tool_usage_error ("scrub", "--threads must be 1 to %d, not '%s'",
                          MAX_THREADS, arg);
  }
}

int
tool_scrub (int argc, char *argv[])
{
  static const struct option options[] = {
    { "restart", no_argument, NULL, 'R' },
    { "read-only", no_argument, NULL, 'r' },
    { "rate", required_argument, NULL, 'l' },
    { "threads", required_argument, NULL, 't' },
    { NULL },
  };
  struct scrub_args a = { .common = {
      .subcommand = "scrub", .help = help, .has_output = true,
      .own = options, .take = take_option } };
  const int r = tool_parse_args (argc, argv, &a.common);

  return r >= 0 ? r : whole_on_files (&a.common, !a.read_only, run);
}
