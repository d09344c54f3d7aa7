/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup index: enters the clusters that an image holds already into its
 * index, and replaces those with equal content by references to one.
 *
 * The server does the same in the background (index-existing=on).  Here one
 * thread reads the disk from its beginning to its end and runs the maintenance
 * jobs that become urgent in between.  A signal only asks the loop to end, so
 * the image is closed as at the end of the disk.  The image records no position
 * for the next run, because the tables show which clusters are done
 * (docs/on-disk.md section 8).
 */
#include "disk.h"
#include "whole-image.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

/* The default of the plugin and of qcow2-dedup create.  Larger clusters get a
 * hint how to convert the image. */
#define GOOD_CLUSTER_SIZE 4096

struct index_args {
  struct tool_args common;      /* the first member: pointers to it are of the whole */
  enum dedup_hash_alg hash;
  bool hash_given, all;
};

struct outcome {
  struct dedup_existing counts;
  bool complete;
};

static void
help (void)
{
  printf ("qcow2-dedup index [--all] [--hash=NAME] [--store=PATH] "
          "[--output=human|json] FILE\n"
          "\n"
          "Index the clusters that the image holds already, and store equal "
          "ones once.\nA run that is interrupted is continued by the next "
          "one.\n"
          "\n"
          "    --all         read also clusters that seem to be indexed "
          "already\n"
          "    --hash=NAME   hash for an image that has no index yet:\n"
          "                  " DEDUP_HASH_NAMES "\n"
          "                  (sha256)\n"
          "    --store=PATH  the store file, for an image that is served with "
          "store=\n"
          "\n"
          "See qcow2-dedup-index(1).\n");
}

/* Prints errors and notices, such as why an image cannot be deduplicated. */
static void
log_cb (void *opaque, enum log_level level, const char *line)
{
  if (level != LOG_DEBUG)
    tool_error (NULL, "%s", line);
}

static const struct log_sink log_all = { .write = log_cb };

/* --- Work ---------------------------------------------------------------- */

static int
index_disk (struct dedup_pool *d, const struct index_args *a,
            struct outcome *o)
{
  struct tool_progress progress = { .what = "Indexing" };
  uint64_t total = qcow2_geometry (dedup_image (d))->nr_clusters, at = 0;
  size_t nr;
  int r = 0;

  while (!tool_interrupted () &&
         (r = dedup_existing_next (d, &at, &nr, &o->counts)) == 1) {
    r = dedup_existing_index (d, at, nr, a->all, &o->counts);
    if (r == 0)
      r = whole_run_urgent (d);
    if (r < 0)
      break;
    at += nr;
    tool_progress_step (&progress, at, total);
  }
  tool_progress_clear (&progress);
  o->complete = !tool_interrupted () && r == 0;
  return r < 0 ? r : whole_give_back (d);
}

/* --- Output -------------------------------------------------------------- */

/* Prints PATH as one word for the shell. */
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

/* Prints the command that copies the image to clusters of 4 KiB, of which more
 * are equal. */
static void
print_how_to_convert (const struct tool_args *a, uint64_t cluster_size)
{
  char human[32];

  printf ("%s: only whole clusters are shared, and clusters of 4 KiB would "
          "share more than those of %s; convert the image with: qemu-img "
          "convert -O qcow2 -o cluster_size=4k ", a->path,
          tool_human (cluster_size, human));
  print_quoted (a->path);
  printf (" NEW.qcow2 && qcow2-dedup index NEW.qcow2\n");
}

static void
print_human (const struct tool_args *a, const struct outcome *o,
             uint64_t cluster_size)
{
  const struct dedup_existing *c = &o->counts;
  char human[32];

  printf ("%s: %" PRIu64 " clusters were indexed, %" PRIu64 " replaced by "
          "references, %" PRIu64 " of zeroes unmapped, %" PRIu64 " indexed "
          "before; %s saved\n", a->path, c->indexed, c->linked, c->zeroed,
          c->known, tool_human (c->dropped * cluster_size, human));
  if (cluster_size > GOOD_CLUSTER_SIZE)
    print_how_to_convert (a, cluster_size);
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static void
print_json (const struct tool_args *a, const struct outcome *o,
            uint64_t cluster_size)
{
  const struct dedup_existing *c = &o->counts;
  json_t *j = json_object ();

  disk_json_set_string (j, "filename", a->path);
  json_object_set_new (j, "complete", json_boolean (o->complete));
  set (j, "indexed-clusters", c->indexed);
  set (j, "linked-clusters", c->linked);
  set (j, "zeroed-clusters", c->zeroed);
  set (j, "known-clusters", c->known);
  set (j, "bad-clusters", c->bad);
  set (j, "cluster-size", cluster_size);
  set (j, "saved-bytes", c->dropped * cluster_size);
  json_dumpf (j, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (j);
}

static int
report (const struct tool_args *a, const struct outcome *o, int r,
        uint64_t cluster_size)
{
  int code = TOOL_OK;

  if (r == -ENOTSUP)            /* the log says why */
    return tool_error (a->path, "the image cannot be deduplicated");
  if (a->json)
    print_json (a, o, cluster_size);
  else
    print_human (a, o, cluster_size);
  if (o->counts.bad)
    code = tool_error (a->path, "%" PRIu64 " clusters were left as they are, "
                       "because they or their table entries are damaged; run "
                       "'qcow2-dedup check' on the image", o->counts.bad);
  if (r < 0)
    code = tool_error (a->path, "indexing stopped: %s; what was done is kept, "
                       "and the next run continues", strerror (-r));
  else if (!o->complete) {
    tool_error (a->path, "interrupted; run the command again to continue");
    code = TOOL_INTERRUPTED;
  }
  return tool_finish_stdout (code);
}

/* --- Command ------------------------------------------------------------- */

static int
run (struct io_store *io, struct io_store *store, const struct index_args *a)
{
  const struct dedup_open_params p = {
    .path = a->common.path, .writable = true, .dedup = true, .verify = true,
    .hash = a->hash, .hash_given = a->hash_given, .max_incarnations = -1,
    .cache_bytes = WHOLE_CACHE_BYTES, .log = &log_all,
    .host_files = QCOW2_FILES_IGNORE,
    .store = store, .store_path = a->common.store_path,
  };
  struct outcome o = { .complete = false };
  uint64_t cluster_size;
  struct dedup_pool *d;
  struct fault f = { 0 };
  int r = dedup_open (io, &p, &d, &f);

  if (r < 0)
    return tool_fault (p.path, r, &f);
  cluster_size = qcow2_geometry (dedup_image (d))->cluster_size;
  r = index_disk (d, a, &o);
  return whole_close (d, p.path, true) == TOOL_OK
    ? report (&a->common, &o, r, cluster_size) : TOOL_FAILED;
}

static int
take_option (struct tool_args *common, int c, const char *arg)
{
  struct index_args *a = (struct index_args *) common;

  if (c == 'a') {
    a->all = true;
    return -1;
  }
  a->hash_given = true;
  return dedup_hash_parse (arg, &a->hash) == 0 ? -1
    : tool_usage_error ("index", "--hash must be " DEDUP_HASH_NAMES ", not '%s'",
                        arg);
}

int
tool_index (int argc, char *argv[])
{
  static const struct option options[] = {
    { "all", no_argument, NULL, 'a' },
    { "hash", required_argument, NULL, 'H' },
    { NULL },
  };
  struct index_args a = { .hash = DEDUP_HASH_SHA256, .common = {
      .subcommand = "index", .help = help, .has_output = true,
      .own = options, .take = take_option } };
  const char *path, *store_path;
  struct fault f = { 0 };
  struct io_store *io, *store = NULL;
  bool created = false;
  int r;

  r = tool_parse_args (argc, argv, &a.common);
  if (r >= 0)
    return r;
  path = a.common.path;
  store_path = a.common.store_path;
  r = io_place_open (path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f);
  if (r < 0)
    return tool_fault (path, r, &f);
  if (store_path) {             /* unlike the others, this makes one */
    r = dedup_store_file_open (store_path, true, &store, &created, &f);
    if (r < 0) {
      io_close (io);
      return tool_fault (path, r, &f);
    }
  }
  tool_catch_signals ();
  r = run (io, store, &a);
  if (created && io_size (store) == 0)
    unlink (store_path);               /* no store was made in it */
  io_close (store);
  io_close (io);
  return r;
}
