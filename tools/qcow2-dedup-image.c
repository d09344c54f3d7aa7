/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup-image: runs the subcommands of qcow2-dedup that work on an image.
 *
 * qcow2-dedup becomes this program, with its own arguments; users do not run it, and it
 * has no --help of its own.  Its messages begin with "qcow2-dedup:", and exit codes are those of
 * tool.h.  The names here are those without a function in the table of qcow2-dedup.c.
 */
#include "tool-image.h"

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
  { "compact", tool_compact },
  { "measure", tool_measure },
  { "disk", tool_disk },
  { "report", tool_report },
  { "scrub", tool_scrub },
  { "unlock", tool_unlock },
};

int
main (int argc, char *argv[])
{
  for (size_t i = 0; i < sizeof subcommands / sizeof subcommands[0]; i++)
    if (argc > 1 && strcmp (argv[1], subcommands[i].name) == 0)
      return subcommands[i].run (argc - 1, argv + 1);
  return tool_error (NULL, "qcow2-dedup-image is a part of qcow2-dedup, which is to be "
                     "run instead");
}
