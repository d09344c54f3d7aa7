/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup check: prints the findings of dedup_check.
 *
 * Findings go to stderr, up to a limit, and the summary goes to stdout.  The
 * exit codes have the meanings of qemu-img check's.  The image is not changed.
 * A crashed image is not checked, because its tables in the file are out of date
 * until the journal is replayed.  An image that was closed with work left has bit
 * 48 set, too, but nothing to replay, and is checked.
 */
#include "disk.h"
#include "tool-image.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "dedup.h"

/* The number of findings that are listed.  One broken refcount block causes
 * thousands, of which the first are enough to see what is wrong. */
#define MAX_LINES 100

struct findings {
  struct tool_progress progress;
  unsigned nr_lines;
};

static void
help (void)
{
  printf ("qcow2-dedup check [--output=human|json] [--store=PATH] FILE\n"
          "\n"
          "Check tables, refcounts and deduplication store.  The image is not "
          "changed.\n"
          "\n"
          "    --store=PATH  the store file, for an image that is served with "
          "store=\n"
          "\n"
          "Exit status: 0 no errors, 1 could not be checked, 2 corruptions or "
          "errors in the\nstore, 3 leaked clusters only.\n"
          "\n"
          "See qcow2-dedup-check(1).\n");
}

static void
problem_cb (void *opaque, bool is_leak, const char *line)
{
  struct findings *fs = opaque;

  tool_progress_clear (&fs->progress);
  if (fs->nr_lines < MAX_LINES)
    fprintf (stderr, "%s%s\n", is_leak ? "" : "ERROR ", line);
  else if (fs->nr_lines == MAX_LINES)
    fprintf (stderr, "Only the first %d findings are listed; the summary "
             "counts all.\n", MAX_LINES);
  fs->nr_lines += fs->nr_lines <= MAX_LINES;
}

static void
progress_cb (void *opaque, uint64_t done, uint64_t total)
{
  struct findings *fs = opaque;

  tool_progress_step (&fs->progress, done, total);
}

static int
exit_code (const struct dedup_check_result *r)
{
  if (r->image.errors)
    return TOOL_FAILED;
  if (r->image.corruptions || r->store_errors)
    return TOOL_CORRUPT;
  return r->image.leaks ? TOOL_LEAKS : TOOL_OK;
}

/* --- Output -------------------------------------------------------------- */

static void
print_findings (const struct dedup_check_result *r)
{
  if (r->image.corruptions)
    printf ("Corruptions: %" PRIu64 ".  Guest data may be wrong, and writing "
            "to the image may\ndamage more of it.\n", r->image.corruptions);
  if (r->store_errors)
    printf ("Errors in the deduplication store: %" PRIu64 ".  They do not "
            "affect guest data,\nbut the index may be lost.\n",
            r->store_errors);
  if (r->image.leaks)
    printf ("Leaked clusters: %" PRIu64 ".  They take space and do not affect "
            "guest data.\n", r->image.leaks);
  if (r->image.errors)
    printf ("Parts of the image that could not be read: %" PRIu64 ".  They "
            "were not checked.\n", r->image.errors);
}

static void
print_counts (const struct qcow2_check_result *r)
{
  double percent = r->guest_clusters == 0 ? 0 :
    100.0 * r->mapped_clusters / r->guest_clusters;

  printf ("Clusters of the disk: %" PRIu64 " allocated of %" PRIu64
          " (%.2f %%), %" PRIu64 " compressed, %" PRIu64 " zero\n",
          r->mapped_clusters, r->guest_clusters, percent,
          r->compressed_clusters, r->zero_clusters);
  printf ("Clusters of the file: %" PRIu64 " guest data (%" PRIu64
          " of them anchored), %" PRIu64 " tables, %" PRIu64 " store\n",
          r->data_clusters, r->anchored_clusters, r->meta_clusters,
          r->store_clusters);
  if (r->garbage)
    printf ("Garbage: %" PRIu64 " clusters, which the plugin frees when it "
            "serves the image next\n", r->garbage);
}

static void
print_human (const struct dedup_check_result *r)
{
  if (exit_code (r) == TOOL_OK)
    printf ("The image has no errors.\n");
  print_findings (r);
  print_counts (&r->image);
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static void
print_json (const char *path, const struct dedup_check_result *r)
{
  json_t *o = json_object ();

  disk_json_set_string (o, "filename", path);
  json_object_set_new (o, "format", json_string ("qcow2"));
  set (o, "check-errors", r->image.errors);
  set (o, "corruptions", r->image.corruptions);
  set (o, "leaks", r->image.leaks);
  set (o, "store-errors", r->store_errors);
  set (o, "garbage-clusters", r->image.garbage);
  set (o, "total-clusters", r->image.guest_clusters);
  set (o, "allocated-clusters", r->image.mapped_clusters);
  set (o, "zero-clusters", r->image.zero_clusters);
  set (o, "compressed-clusters", r->image.compressed_clusters);
  set (o, "data-clusters", r->image.data_clusters);
  set (o, "anchored-clusters", r->image.anchored_clusters);
  set (o, "table-clusters", r->image.meta_clusters);
  set (o, "store-clusters", r->image.store_clusters);
  json_dumpf (o, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (o);
}

/* --- Checking ------------------------------------------------------------- */

/* True if the header and the anchor name a store, but dedup_open found none
 * that it can use, and has logged why. */
static bool
store_is_void (struct dedup_pool *d)
{
  struct qcow2_image *img = dedup_image (d);
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  return !s.has_store && qcow2_has_anchor (img) && qcow2_store_extension (img);
}

static int
run_check (struct dedup_pool *d, const struct tool_args *a)
{
  struct findings fs = { .progress = { .what = "Checking" } };
  const struct qcow2_check_params p = {
    .problem = problem_cb, .progress = progress_cb, .opaque = &fs,
  };
  struct dedup_check_result res = { 0 };
  struct fault f = { 0 };
  int r;

  r = dedup_check (d, &p, &res, &f);
  tool_progress_clear (&fs.progress);
  if (r < 0)
    return tool_fault (a->path, r, &f);
  if (qcow2_anchor_was_applied (dedup_image (d))) {
    problem_cb (&fs, false, DEDUP_ANCHOR_APPLIED);
    res.image.corruptions++;
  }
  else
    res.store_errors += store_is_void (d);
  if (a->json)
    print_json (a->path, &res);
  else
    print_human (&res);
  return tool_finish_stdout (exit_code (&res));
}

static int
refuse_crashed (const struct tool_args *a)
{
  return tool_error (a->path, "the image was not closed and needs recovery; "
                     "serve it, or run 'qcow2-dedup recover %s', before it is "
                     "checked", a->path);
}

/* Returns whether the file lacks changes that opening D replayed in memory. */
static bool
crashed (struct dedup_pool *d)
{
  struct dedup_stats s;

  dedup_get_stats (d, &s);
  return s.needs_recovery && !s.closed_with_work;
}

/* HAS_BIT: bit 48 is set. */
static int
check_store (struct io_store *io, const struct tool_args *a, bool has_bit)
{
  struct dedup_open_params p = {
    .path = a->path, .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = TOOL_CACHE_BYTES, .log = has_bit ? NULL : &tool_log_errors,
    .host_files = QCOW2_FILES_IGNORE, .store_path = a->store_path,
    .no_disk_ok = true,
  };
  struct dedup_pool *d;
  struct fault f = { 0 };
  int r;

  r = tool_open_store (a->store_path, false, &p.store, &f);
  if (r == 0)
    r = dedup_open (io, &p, &d, &f);
  if (r < 0) {
    io_close (p.store);
    return has_bit ? refuse_crashed (a) : tool_fault (a->path, r, &f);
  }
  r = crashed (d) ? refuse_crashed (a) : run_check (d, a);
  dedup_free (d);
  io_close (p.store);
  return r;
}

static int
check_open (struct io_store *io, const struct tool_args *a)
{
  bool has_bit;
  struct fault f = { 0 };
  int r;

  r = tool_needs_recovery (io, a->path, &has_bit, &f);
  return r < 0 ? tool_fault (a->path, r, &f) : check_store (io, a, has_bit);
}

int
tool_check (int argc, char *argv[])
{
  struct tool_args a = { .subcommand = "check", .help = help,
                         .has_output = true };

  return tool_on_image (argc, argv, &a, check_open);
}
