/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup compact: gives back the space of compressed data that no disk has any
 * more, by emptying the clusters of which little is in use (dedup-compact.h).  With
 * --compress it first compresses what is stored plain (dedup-compress.h).
 *
 * One thread, which runs the maintenance jobs that become urgent in between.  A signal
 * only asks the loop to end, so the image is closed as at the end, and what was done is
 * kept.
 *
 * An image without a store is refused: it is not worth making one for this.
 */
#include "disk.h"
#include "whole-image.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "checked.h"

struct compact_args {
  struct tool_args common;      /* the first member: pointers to it are of the whole */
  uint64_t percent;             /* 0: the default */
  bool compress;
};

struct outcome {
  struct dedup_compact_figures f;
  struct dedup_compress_figures z;
  struct qcow2_pool_usage before, after;
  bool complete;
  bool pending;                 /* disks are being deleted */
};

static void
help (void)
{
  printf ("qcow2-dedup compact [--dead=PERCENT] [--compress] [--store=PATH]\n"
          "                    [--output=human|json] FILE\n"
          "\n"
          "Give back the space of compressed data that no disk has any more: move the "
          "data\nthat is in use out of clusters that hold little of it.\n"
          "\n"
          "    --dead=PERCENT  how much of the space of compressed data may stay dead "
          "(%u)\n"
          "    --compress      before that, compress data that is stored plain\n"
          "    --store=PATH    the store file, for an image that is served with "
          "store=\n"
          "\n"
          "See qcow2-dedup-compact(1).\n", DEDUP_COMPACT_PERCENT);
}

/* --- Work -------------------------------------------------------------------- */

static int
work (struct dedup_pool *d, struct dedup_compact *c, struct outcome *o)
{
  struct tool_progress progress = { .what = "Compacting" };
  int r = 1;

  while (!tool_interrupted () && (r = dedup_compact_step (c)) == 1) {
    r = whole_run_urgent (d);
    if (r < 0)
      break;
    dedup_compact_figures (c, &o->f);
    tool_progress_step (&progress, o->f.handled_bytes, o->f.to_move_bytes);
  }
  tool_progress_clear (&progress);
  dedup_compact_figures (c, &o->f);
  o->complete = r == 0;
  return MIN_OF (r, 0);
}

static int
work_on_plain (struct dedup_pool *d, struct dedup_compress_work *c, struct outcome *o)
{
  struct tool_progress progress = { .what = "Compressing" };
  int r = 1;

  while (!tool_interrupted () && (r = dedup_compress_step (c)) == 1) {
    r = whole_run_urgent (d);
    if (r < 0)
      break;
    dedup_compress_figures (c, &o->z);
    tool_progress_step (&progress, o->z.read_bytes, o->z.found_bytes);
  }
  tool_progress_clear (&progress);
  dedup_compress_figures (c, &o->z);
  return MIN_OF (r, 0);
}

static int
compress (struct dedup_pool *d, struct outcome *o)
{
  const struct dedup_compress_params p = { .all = true };
  struct dedup_compress_work *c;
  int r = dedup_compress_begin (d, &p, &c);

  if (r < 0)
    return r;
  r = work_on_plain (d, c, o);
  dedup_compress_end (c);
  return r;
}

static int
compact (struct dedup_pool *d, const struct compact_args *a, struct outcome *o)
{
  const struct dedup_compact_params p = {
    .percent = (unsigned) a->percent, .ends = true,
  };
  struct dedup_compact *c;
  int r = qcow2_pool_usage (dedup_image (d), NULL, &o->before);

  if (r == 0 && a->compress)
    r = compress (d, o);
  if (r == 0)
    r = dedup_compact_begin (d, &p, &c);
  if (r < 0)
    return r;
  o->pending = dedup_disks_pending (d);
  r = work (d, c, o);
  dedup_compact_end (c);
  if (r == 0)
    r = whole_give_back (d);
  return r < 0 ? r : qcow2_pool_usage (dedup_image (d), NULL, &o->after);
}

/* --- Output ------------------------------------------------------------------ */

static uint64_t
freed (const struct outcome *o)
{
  return o->before.stored_bytes - MIN_OF (o->before.stored_bytes,
                                          o->after.stored_bytes);
}

static void
print_compressed (const struct tool_args *a, const struct outcome *o)
{
  char done[32];

  printf ("%s: %s of plain data were compressed\n", a->path,
          tool_human (o->z.compressed_bytes, done));
  if (o->z.shared)
    printf ("%s: %" PRIu64 " clusters of disks stay plain, because disks with compress=off "
            "may need them\n", a->path, o->z.shared);
}

static void
print_human (const struct tool_args *a, const struct outcome *o)
{
  char moved[32], space[32], dead[32], shared[32];

  if (((const struct compact_args *) a)->compress)
    print_compressed (a, o);
  printf ("%s: %s were freed, %s moved; %s of compressed data are dead\n",
          a->path, tool_human (freed (o), space),
          tool_human (o->f.moved_bytes, moved),
          tool_human (qcow2_usage_dead (&o->after), dead));
  if (o->f.shared_dead_bytes)
    printf ("%s: %s of these lie beside data that is not moved: %s\n", a->path,
            tool_human (o->f.shared_dead_bytes, shared),
            o->pending ? "it is being deleted, or more than 2,048 disks and snapshots have it"
            : "more than 2,048 disks and snapshots have it");
  if (o->f.left > o->f.doubtful)
    printf ("%s: %" PRIu64 " clusters of disks stay where they are, because "
            "they do not shrink\n", a->path, o->f.left - o->f.doubtful);
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static uint64_t
doubtful (const struct outcome *o)
{
  return o->f.doubtful + o->z.doubtful;
}

static void
print_json (const struct tool_args *a, const struct outcome *o)
{
  json_t *j = json_object ();

  disk_json_set_string (j, "filename", a->path);
  json_object_set_new (j, "complete", json_boolean (o->complete));
  set (j, "freed-bytes", freed (o));
  set (j, "moved-bytes", o->f.moved_bytes);
  set (j, "passes", o->f.passes);
  set (j, "dead-bytes-before", qcow2_usage_dead (&o->before));
  set (j, "dead-bytes", qcow2_usage_dead (&o->after));
  set (j, "shared-dead-bytes", o->f.shared_dead_bytes);
  set (j, "stored-bytes", o->after.stored_bytes);
  set (j, "clusters-left", o->f.left);
  set (j, "doubtful-clusters", doubtful (o));
  if (((const struct compact_args *) a)->compress) {
    set (j, "compressed-bytes", o->z.compressed_bytes);
    set (j, "plain-clusters", o->z.too_large);
    set (j, "plain-clusters-shared", o->z.shared);
  }
  json_dumpf (j, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (j);
}

static int
report (const struct tool_args *a, const struct outcome *o, int r)
{
  int code = TOOL_OK;

  if (r == -ENOTSUP)
    return tool_error (a->path, "new data is not compressed in this image; "
                       "compress= of the server decides that");
  if (r < 0)
    return tool_error (a->path, "compacting stopped: %s; what was done is kept",
                       strerror (-r));
  if (a->json)
    print_json (a, o);
  else
    print_human (a, o);
  if (doubtful (o))
    code = tool_error (a->path, "%" PRIu64 " clusters were left as they are, because "
                       "their data cannot be read or is not what was stored; run "
                       "'qcow2-dedup scrub' on the image", doubtful (o));
  if (!o->complete) {
    tool_error (a->path, "interrupted; run the command again to continue");
    code = TOOL_INTERRUPTED;
  }
  return tool_finish_stdout (code);
}

/* --- Command ----------------------------------------------------------------- */

static int
run (struct io_store *io, struct io_store *store, const struct tool_args *common)
{
  const struct compact_args *a = (const struct compact_args *) common;
  struct outcome o = { .complete = false };
  struct fault f = { 0 };
  struct dedup_pool *d;
  bool has_store = false;
  int r = whole_has_store (io, store, common, &has_store, &f);

  if (r == 0 && !has_store)
    return tool_error (common->path, "the image has no index; qcow2-dedup index makes "
                       "one");
  if (r == 0)
    r = whole_open (io, store, common, &d, &f);
  if (r < 0)
    return tool_fault (common->path, r, &f);
  r = compact (d, a, &o);
  return whole_close (d, common->path, true) == TOOL_OK ? report (common, &o, r)
    : TOOL_FAILED;
}

static int
take_option (struct tool_args *common, int c, const char *arg)
{
  struct compact_args *a = (struct compact_args *) common;

  if (c == 'c') {
    a->compress = true;
    return -1;
  }
  return tool_parse_number (arg, 1, 99, &a->percent) ? -1
    : tool_usage_error ("compact", "--dead must be 1 to 99, not '%s'", arg);
}

int
tool_compact (int argc, char *argv[])
{
  static const struct option options[] = {
    { "dead", required_argument, NULL, 'd' },
    { "compress", no_argument, NULL, 'c' },
    { NULL },
  };
  struct compact_args a = { .common = {
      .subcommand = "compact", .help = help, .has_output = true,
      .own = options, .take = take_option } };
  const int r = tool_parse_args (argc, argv, &a.common);

  return r >= 0 ? r : whole_on_files (&a.common, true, run);
}
