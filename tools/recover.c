/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup recover: what the plugin would do at its next start, by hand.
 *
 * An image whose bit 48 is clear is not opened for writing at all: opening
 * one without a store would give it one.
 */
#include "tool.h"

#include <string.h>

#include "dedup.h"

static void
help (void)
{
  printf ("qcow2-dedup recover [--store=PATH] FILE\n"
          "\n"
          "Replay the journal of an image that was not closed, so that any "
          "tool can use\nit again.  Does nothing to a clean image.\n"
          "\n"
          "See qcow2-dedup-recover(1).\n");
}

/* Opening replays and writes the tables; finishing clears the bit. */
static int
replay (struct io_store *io, const struct tool_args *a)
{
  const char *path = a->path;
  struct dedup_open_params p = {
    .path = path, .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = TOOL_CACHE_BYTES,
    .log = &tool_log_errors,
    .host_files = QCOW2_FILES_IGNORE, .store_path = a->store_path,
  };
  struct dedup_disk *d;
  struct fault f = { 0 };
  int r;

  r = tool_open_store (a->store_path, true, &p.store, &f);
  if (r == 0)
    r = dedup_open (io, &p, &d, &f);
  if (r < 0) {
    io_close (p.store);
    return tool_fault (path, r, &f);
  }
  r = dedup_finish (d);
  if (r == 0)
    dedup_give_back_all (d);
  dedup_free (d);
  io_close (p.store);
  if (r < 0)
    return tool_error (path, "closing it after the replay failed: %s",
                       strerror (-r));
  printf ("%s: journal replayed, tables written: the image is clean.\n",
          path);
  return tool_finish_stdout (TOOL_OK);
}

static int
recover_open (struct io_store *io, const struct tool_args *a)
{
  const char *path = a->path;
  bool needs_recovery, no_disk;
  struct fault f = { 0 };
  int r;

  r = tool_look (io, path, &needs_recovery, &no_disk, &f);
  if (r < 0)
    return tool_fault (path, r, &f);
  if (needs_recovery)
    return replay (io, a);
  if (no_disk)
    return tool_error (path, "%s; nothing here brings them back: see "
                       "qcow2-dedup-recover(1)", DEDUP_ANCHOR_APPLIED);
  printf ("%s: clean, nothing to recover.\n", path);
  return tool_finish_stdout (TOOL_OK);
}

int
tool_recover (int argc, char *argv[])
{
  struct tool_args a = { .subcommand = "recover", .help = help };
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  r = tool_parse_args (argc, argv, &a);
  if (r >= 0)
    return r;
  r = io_file_open (a.path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f);
  if (r < 0)
    return tool_fault (a.path, r, &f);
  r = recover_open (io, &a);
  io_close (io);
  return r;
}
