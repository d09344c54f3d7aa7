/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens store files, and looks at images before they are opened, for all subcommands.
 *
 * A look comes before it is decided whether the image may be opened at all.  So it works
 * under the locks that the caller has, opens no other file that the image names, and
 * changes no byte.
 *
 * Everything runs in one thread.
 */
#include "tool-image.h"

#include <string.h>

int
tool_open_store (const char *path, bool writable, struct io_store **out,
                 struct fault *f)
{
  struct fault why = { 0 };
  int r;

  *out = NULL;
  if (path == NULL)
    return 0;
  r = io_file_open (path, writable ? IO_FILE_WRITE : 0,
                    writable ? IO_LOCK_WRITE : IO_LOCK_READ, out, &why);
  return r < 0 ? fault_set (f, why.kind, -r, UINT64_MAX, "--store=%.200s: "
                            "%.250s", path, why.msg) : 0;
}

int
tool_look (struct io_store *io, const char *path, bool *needs_recovery,
           bool *no_disk, struct fault *f)
{
  const struct qcow2_open_params p = {
    .path = path, .allow_recovery = true, .cache_bytes = 1u << 20,
    .host_files = QCOW2_FILES_IGNORE,
  };
  struct qcow2_image *img;
  int r;

  r = qcow2_open (io, &p, &img, f);
  if (r < 0)
    return r;
  *needs_recovery =
    (qcow2_geometry (img)->incompatible & QCOW2_INCOMPAT_RECOVERY) != 0;
  *no_disk = qcow2_anchor_was_applied (img);
  qcow2_close (img);
  return 0;
}

int
tool_needs_recovery (struct io_store *io, const char *path,
                     bool *needs_recovery, struct fault *f)
{
  bool no_disk;

  return tool_look (io, path, needs_recovery, &no_disk, f);
}

int
tool_on_image (int argc, char *argv[], struct tool_args *a,
               int (*run) (struct io_store *io, const struct tool_args *a))
{
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  r = tool_parse_args (argc, argv, a);
  if (r >= 0)
    return r;
  r = io_place_open (a->path, 0, IO_LOCK_READ, &io, &f);
  if (r < 0)
    return tool_fault (a->path, r, &f);
  r = run (io, a);
  io_close (io);
  return r;
}
