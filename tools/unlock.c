/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup unlock: tells who has the lease of an image, and takes it away.
 *
 * No image is opened, so this works whatever the place holds.  The record alone
 * cannot tell whether its holder still runs, so nothing is taken away without
 * --force.
 */
#include "tool-image.h"

#include <getopt.h>
#include <string.h>

static void
help (void)
{
  printf ("qcow2-dedup unlock [--force] FILE\n"
          "\n"
          "Tell which server has the lease of FILE, a file, a device or the URI of "
          "an NBD\nexport.  With --force, take the lease away.\n"
          "\n"
          "    --force    make the lease free, whoever has it\n"
          "    --help     print this summary\n"
          "    --version  print name and version\n"
          "\n"
          "See qcow2-dedup-unlock(1).\n");
}

struct unlock_args {
  const char *path;
  bool force;
};

/* Returns -1 if the subcommand is to run, else the exit code. */
static int
parse_args (int argc, char *argv[], struct unlock_args *a)
{
  static const struct option options[] = {
    { "force", no_argument, NULL, 'f' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { NULL, 0, NULL, 0 }
  };
  int c;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":", options, NULL)) != -1)
    switch (c) {
    case 'f': a->force = true; break;
    case 'h': help (); return tool_finish_stdout (TOOL_OK);
    case 'V':
      printf ("qcow2-dedup %s\n", PACKAGE_VERSION);
      return tool_finish_stdout (TOOL_OK);
    default:
      return tool_bad_option ("unlock", c, argv, options);
    }
  if (argc - optind != 1)
    return tool_usage_error ("unlock", "exactly one FILE is needed");
  a->path = argv[optind];
  return -1;
}

int
tool_unlock (int argc, char *argv[])
{
  struct unlock_args a = { .force = false };
  char holder[IO_PLACE_HOLDER_TEXT];
  struct fault f = { 0 };
  int held, r = parse_args (argc, argv, &a);

  if (r >= 0)
    return r;
  held = io_place_holder (a.path, holder, &f);
  if (held < 0)
    return tool_fault (a.path, held, &f);
  if (held == 0) {
    printf ("%s: no server has the lease\n", a.path);
    return tool_finish_stdout (TOOL_OK);
  }
  if (!a.force)
    return tool_error (a.path, "the server on %s has the lease; if that server "
                       "has ended for certain, --force makes it free", holder);
  r = io_place_unlock (a.path, &f);
  if (r < 0)
    return tool_fault (a.path, r, &f);
  printf ("%s: the lease is free; the server on %s had it\n", a.path, holder);
  return tool_finish_stdout (TOOL_OK);
}
