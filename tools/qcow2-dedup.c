/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup: create, look at, check, recover, index and measure images of
 * nbdkit's dedup plugin.  This file only finds the subcommand; each has a file of its own.
 *
 * Exit status: that of the subcommand; 1 where there is none of that name.
 */
#include "tool.h"

#include <string.h>

static const struct {
  const char *name;
  int (*run) (int argc, char *argv[]);
} subcommands[] = {
  { "create", tool_create },
  { "info", tool_info },
  { "check", tool_check },
  { "recover", tool_recover },
  { "index", tool_index },
  { "measure", tool_measure },
};

static void
help (void)
{
  printf ("qcow2-dedup: deduplicating qcow2 images of nbdkit's dedup "
          "plugin\n"
          "\n"
          "    qcow2-dedup create [-o OPTIONS] FILE SIZE\n"
          "    qcow2-dedup info [--verbose] [--output=human|json] FILE\n"
          "    qcow2-dedup check [--output=human|json] FILE\n"
          "    qcow2-dedup recover FILE\n"
          "    qcow2-dedup index [OPTIONS] FILE\n"
          "    qcow2-dedup measure [OPTIONS] SIZE\n"
          "    qcow2-dedup SUBCOMMAND --help\n"
          "    qcow2-dedup --version\n"
          "\n"
          "See qcow2-dedup(1), and nbdkit-dedup-plugin(1) for serving an "
          "image.\n");
}

int
main (int argc, char *argv[])
{
  size_t i;

  if (argc < 2) {
    tool_error (NULL, "a subcommand is needed: create, info, check, "
                "recover, index or measure; try 'qcow2-dedup --help'");
    return TOOL_FAILED;
  }
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0) {
    help ();
    return tool_finish_stdout (TOOL_OK);
  }
  if (strcmp (argv[1], "--version") == 0 || strcmp (argv[1], "-V") == 0) {
    tool_version ();
    return tool_finish_stdout (TOOL_OK);
  }
  for (i = 0; i < sizeof subcommands / sizeof subcommands[0]; i++)
    if (strcmp (argv[1], subcommands[i].name) == 0)
      return subcommands[i].run (argc - 1, argv + 1);
  return tool_error (NULL, "'%s' is not a subcommand; try "
                     "'qcow2-dedup --help'", argv[1]);
}
