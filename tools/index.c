/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup index: bring what an image holds already into its index, and
 * share what it holds twice.
 *
 * The server's background thread does the same (index-existing=on); here one
 * thread does it and, in between, what maintenance becomes urgent.  A signal
 * only asks the loop to end, so the image is closed as at the end of the disk.
 * Nothing needs to be remembered for the next run: see docs/on-disk.md
 * section 8.
 */
#include "tool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "dedup.h"

/* L2 tables and refcount blocks of 100 GiB at 4 KiB clusters; a larger image
 * reads some of them more than once. */
#define CACHE_BYTES (256u << 20)

/* That of images that the plugin and qcow2-dedup create. */
#define GOOD_CLUSTER_SIZE 4096

/* As a shell says that a program was ended by SIGINT. */
#define EXIT_INTERRUPTED 130

struct index_args {
  const char *path, *store_path;
  enum dedup_hash_alg hash;
  bool hash_given, all, json;
};

struct outcome {
  struct dedup_existing counts;
  bool complete;
};

static volatile sig_atomic_t interrupted;

static void
help (void)
{
  printf ("qcow2-dedup index [--all] [--hash=NAME] [--store=PATH] [--output=human|json] FILE\n"
          "\n"
          "Index what the image holds already and store equal clusters once.  "
          "Can be\ninterrupted, and goes on where it was when it is run "
          "again.\n"
          "\n"
          "    --all        look also at what seems to be indexed already\n"
          "    --hash=NAME  of an image without an index:\n"
          "                 " DEDUP_HASH_NAMES "\n"
          "                 (sha256)\n"
          "    --store=PATH the file that holds the index\n"
          "\n"
          "See qcow2-dedup-index(1).\n");
}

/* All of it: also why an image cannot be deduplicated, or was recovered. */
static void
log_cb (void *opaque, enum log_level level, const char *line)
{
  if (level != LOG_DEBUG)
    tool_error (NULL, "%s", line);
}

static const struct log_sink log_all = { .write = log_cb };

/* --- Signals --------------------------------------------------------------- */

static void
interrupt_cb (int sig)
{
  interrupted = 1;
}

/* The second one ends the program: a crash, which is recovered from. */
static void
catch_signals (void)
{
  struct sigaction sa = { .sa_handler = interrupt_cb,
                          .sa_flags = (int) SA_RESETHAND | SA_RESTART };

  sigaction (SIGINT, &sa, NULL);
  sigaction (SIGTERM, &sa, NULL);
  signal (SIGXFSZ, SIG_IGN);    /* EFBIG is an error as others are */
}

/* --- Work ------------------------------------------------------------------- */

static int
run_jobs (struct dedup_disk *d, unsigned jobs)
{
  unsigned job;
  int r = 0;

  for (job = 1; jobs >= job && r >= 0; job <<= 1)
    if (jobs & job)
      r = dedup_run (d, job);
  return r;
}

static int
run_urgent (struct dedup_disk *d)
{
  unsigned urgent;

  dedup_due (d, &urgent);
  return run_jobs (d, urgent);
}

/* Space of clusters that were dropped goes back to the host when their records
 * are known to be durable: the second commit says so. */
static int
give_back (struct dedup_disk *d)
{
  int i, r = 0;

  for (i = 0; i < 3 && r >= 0; i++)
    if (dedup_due (d, NULL) & DEDUP_JOB_COMMIT)
      r = dedup_run (d, DEDUP_JOB_COMMIT);
  return r;
}

static int
index_disk (struct dedup_disk *d, const struct index_args *a,
            struct outcome *o)
{
  struct tool_progress progress = { .what = "Indexing" };
  uint64_t total = qcow2_geometry (dedup_image (d))->nr_clusters, at = 0;
  size_t nr;
  int r = 0;

  while (!interrupted &&
         (r = dedup_existing_next (d, &at, &nr, &o->counts)) == 1) {
    r = dedup_existing_index (d, at, nr, a->all, &o->counts);
    if (r == 0)
      r = run_urgent (d);
    if (r < 0)
      break;
    at += nr;
    tool_progress_step (&progress, at, total);
  }
  tool_progress_clear (&progress);
  o->complete = !interrupted && r == 0;
  return r < 0 ? r : give_back (d);
}

/* --- Output ------------------------------------------------------------------- */

/* PATH as a word for the shell. */
static void
print_quoted (const char *path)
{
  static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,=:@%";

  if (path[strspn (path, plain)] == '\0') {
    printf ("%s", path);
    return;
  }
  putchar ('\'');
  for (; *path; path++)
    if (*path == '\'')
      printf ("'\\''");
    else
      putchar (*path);
  putchar ('\'');
}

/* Larger clusters are seldom equal as a whole. */
static void
print_how_to_convert (const struct index_args *a, uint64_t cluster_size)
{
  char human[32];

  printf ("%s: clusters of 4 KiB would share more than its clusters of %s, as a "
          "whole cluster must be equal: qemu-img convert -O qcow2 "
          "-o cluster_size=4k ", a->path, tool_human (cluster_size, human));
  print_quoted (a->path);
  printf (" NEW.qcow2 && qcow2-dedup index NEW.qcow2\n");
}

static void
print_human (const struct index_args *a, const struct outcome *o,
             uint64_t cluster_size)
{
  const struct dedup_existing *c = &o->counts;
  char human[32];

  printf ("%s: %" PRIu64 " clusters indexed, %" PRIu64 " shared, %" PRIu64
          " were zeroes, %" PRIu64 " known before: %s saved.\n", a->path,
          c->indexed, c->linked, c->zeroed, c->known,
          tool_human ((c->linked + c->zeroed) * cluster_size, human));
  if (cluster_size > GOOD_CLUSTER_SIZE)
    print_how_to_convert (a, cluster_size);
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static void
print_json (const struct index_args *a, const struct outcome *o,
            uint64_t cluster_size)
{
  const struct dedup_existing *c = &o->counts;
  json_t *j = json_object ();

  json_object_set_new (j, "filename", json_string (a->path));
  json_object_set_new (j, "complete", json_boolean (o->complete));
  set (j, "indexed-clusters", c->indexed);
  set (j, "linked-clusters", c->linked);
  set (j, "zeroed-clusters", c->zeroed);
  set (j, "known-clusters", c->known);
  set (j, "bad-clusters", c->bad);
  set (j, "cluster-size", cluster_size);
  set (j, "saved-bytes", (c->linked + c->zeroed) * cluster_size);
  json_dumpf (j, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (j);
}

static int
report (const struct index_args *a, const struct outcome *o, int r,
        uint64_t cluster_size)
{
  int code = TOOL_OK;

  if (r == -ENOTSUP)            /* the log says why */
    return tool_error (a->path, "it cannot be deduplicated");
  if (a->json)
    print_json (a, o, cluster_size);
  else
    print_human (a, o, cluster_size);
  if (o->counts.bad)
    code = tool_error (a->path, "%" PRIu64 " clusters could not be read, or "
                       "have wrong tables, and were left as they are; see "
                       "qcow2-dedup check", o->counts.bad);
  if (r < 0)
    code = tool_error (a->path, "indexing stopped: %s; what was done is kept",
                       strerror (-r));
  else if (!o->complete) {
    tool_error (a->path, "interrupted; run it again to go on");
    code = EXIT_INTERRUPTED;
  }
  return tool_finish_stdout (code);
}

/* --- Command -------------------------------------------------------------------- */

static int
index_open (struct io_store *io, struct io_store *store,
            const struct index_args *a)
{
  const struct dedup_open_params p = {
    .path = a->path, .writable = true, .dedup = true, .verify = true,
    .hash = a->hash, .hash_given = a->hash_given, .max_incarnations = -1,
    .cache_bytes = CACHE_BYTES, .log = &log_all,
    .host_files = QCOW2_FILES_IGNORE,
    .store = store, .store_path = a->store_path,
  };
  struct outcome o = { .complete = false };
  uint64_t cluster_size;
  struct dedup_disk *d;
  struct fault f = { 0 };
  int r, closed;

  r = dedup_open (io, &p, &d, &f);
  if (r < 0)
    return tool_fault (a->path, r, &f);
  cluster_size = qcow2_geometry (dedup_image (d))->cluster_size;
  r = index_disk (d, a, &o);
  closed = dedup_finish (d);
  if (closed == 0)
    dedup_give_back_all (d);
  dedup_free (d);
  if (closed < 0)
    return tool_error (a->path, "not closed cleanly, will be recovered when "
                       "it is opened next: %s",
                       strerror (r < 0 ? -r : -closed));
  return report (a, &o, r, cluster_size);
}

/* -1: go on, else the exit code. */
static int
parse_option (int c, char *argv[], struct index_args *a)
{
  switch (c) {
  case 'h':
    help ();
    return tool_finish_stdout (TOOL_OK);
  case 'V':
    tool_version ();
    return tool_finish_stdout (TOOL_OK);
  case 'a':
    a->all = true;
    return -1;
  case 'H':
    a->hash_given = true;
    return dedup_hash_parse (optarg, &a->hash) == 0 ? -1
      : tool_usage_error ("index", "--hash must be " DEDUP_HASH_NAMES
                          ", not '%s'", optarg);
  case 's':
    a->store_path = optarg;
    return -1;
  case 'o':
    return tool_parse_output (optarg, &a->json) ? -1
      : tool_usage_error ("index", "--output must be human or json, not '%s'",
                          optarg);
  default:
    return tool_usage_error ("index", "'%s' is not a valid option",
                             argv[optind - 1]);
  }
}

static int
parse_args (int argc, char *argv[], struct index_args *a)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "all", no_argument, NULL, 'a' },
    { "hash", required_argument, NULL, 'H' },
    { "store", required_argument, NULL, 's' },
    { "output", required_argument, NULL, 'o' },
    { NULL },
  };
  int c, r;

  opterr = 0;
  while ((c = getopt_long (argc, argv, "hV", options, NULL)) != -1) {
    r = parse_option (c, argv, a);
    if (r >= 0)
      return r;
  }
  if (argc - optind != 1)
    return tool_usage_error ("index", "exactly one FILE is needed");
  a->path = argv[optind];
  return -1;
}

int
tool_index (int argc, char *argv[])
{
  struct index_args a = { .hash = DEDUP_HASH_SHA256 };
  struct fault f = { 0 };
  struct io_store *io, *store = NULL;
  bool created = false;
  int r;

  r = parse_args (argc, argv, &a);
  if (r >= 0)
    return r;
  r = io_file_open (a.path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f);
  if (r < 0)
    return tool_fault (a.path, r, &f);
  if (a.store_path) {
    r = dedup_store_file_open (a.store_path, true, &store, &created, &f);
    if (r < 0) {
      io_close (io);
      return tool_fault (a.path, r, &f);
    }
  }
  catch_signals ();
  r = index_open (io, store, &a);
  if (created && io_size (store) == 0)
    unlink (a.store_path);               /* nothing came of it */
  io_close (store);
  io_close (io);
  return r;
}
