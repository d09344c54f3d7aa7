/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup recover: recovers an image that was not closed.
 *
 * Work that changes of disks left is done, too (dedup_disks_settle): until then
 * bit 48 stays set.  The plugin does the same at its next start.  Here the image
 * is closed afterwards, so that any program can use it.  An image whose bit 48 is
 * clear is not opened for writing, because that would give it a store if it has
 * none.
 */
#include "tool-image.h"

#include <string.h>

#include "dedup.h"

static void
help (void)
{
  printf ("qcow2-dedup recover [--store=PATH] FILE\n"
          "\n"
          "Replay the journal of an image that was not closed, so that any "
          "program can use\nthe image again.  A clean image is not changed.\n"
          "\n"
          "See qcow2-dedup-recover(1).\n");
}

/* Recovers the image: dedup_open replays the journal and writes the tables,
 * dedup_finish clears bit 48. */
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
  struct dedup_pool *d;
  struct fault f = { 0 };
  int r;

  r = tool_open_store (a->store_path, true, &p.store, &f);
  if (r == 0)
    r = dedup_open (io, &p, &d, &f);
  if (r < 0) {
    io_close (p.store);
    return tool_fault (path, r, &f);
  }
  r = dedup_disks_settle (d);
  if (r == 0)
    r = dedup_finish (d);
  if (r == 0)
    dedup_give_back_all (d);
  dedup_free (d);
  io_close (p.store);
  if (r < 0)
    return tool_error (path, "the image could not be closed after its journal "
                       "was replayed: %s", strerror (-r));
  printf ("%s: the journal was replayed, the image is clean\n", path);
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
    return tool_error (path, "%s and cannot be recovered: see "
                       "qcow2-dedup-recover(1)", DEDUP_ANCHOR_APPLIED);
  printf ("%s: the image is clean, there is nothing to recover\n", path);
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
  r = io_place_open (a.path, IO_FILE_WRITE, IO_LOCK_WRITE, &io, &f);
  if (r < 0)
    return tool_fault (a.path, r, &f);
  r = recover_open (io, &a);
  io_close (io);
  return r;
}
