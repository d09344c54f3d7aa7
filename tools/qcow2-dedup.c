/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup: the main function, which runs the subcommand that is named.
 *
 * Each subcommand is in a file of its own.  Those that only ask a server are in this
 * program.  The others work on an image, and are in the program qcow2-dedup-image, which
 * takes the place of this one: it needs libraries that take the dynamic linker longer
 * than a server takes to tell its figures.  The exit status is that of the subcommand, or
 * 1 if there is none of that name.
 */
#include "tool.h"

#include <string.h>

static const struct {
  const char *name;
  int (*run) (int argc, char *argv[]);  /* NULL: in the other program */
} subcommands[] = {
  { "create", NULL },
  { "info", NULL },
  { "check", NULL },
  { "recover", NULL },
  { "index", NULL },
  { "compact", NULL },
  { "measure", NULL },
  { "disk", NULL },
  { "report", NULL },
  { "status", tool_status },
  { "metrics", tool_metrics },
  { "control", tool_control },
  { "scrub", NULL },
  { "unlock", NULL },
};

static void
help (void)
{
  printf ("qcow2-dedup: work on the deduplicating qcow2 images of nbdkit's "
          "dedup plugin\n"
          "\n"
          "    qcow2-dedup create [OPTION]... FILE SIZE  create an image with one "
          "disk\n"
          "    qcow2-dedup create --pool ... FILE        create a pool for many "
          "disks\n"
          "    qcow2-dedup info [OPTION]... FILE         show what it stores and "
          "saves\n"
          "    qcow2-dedup check [OPTION]... FILE        check tables, refcounts "
          "and store\n"
          "    qcow2-dedup scrub [OPTION]... FILE        compare data with its "
          "hashes\n"
          "    qcow2-dedup recover [OPTION]... FILE      recover it if it was not "
          "closed\n"
          "    qcow2-dedup index [OPTION]... FILE        share equal clusters it "
          "holds\n"
          "    qcow2-dedup compact [OPTION]... FILE      give back dead compressed "
          "data\n"
          "    qcow2-dedup measure [OPTION]... SIZE      print how large it can "
          "get\n"
          "    qcow2-dedup disk COMMAND ... POOL ...     work on the disks of a "
          "pool\n"
          "    qcow2-dedup report [OPTION]... POOL       write a page on where its "
          "space went\n"
          "    qcow2-dedup status [OPTION]... [FILE]     show what its server "
          "does\n"
          "    qcow2-dedup metrics [OPTION]... [FILE]    print that for "
          "Prometheus\n"
          "    qcow2-dedup control SOCKET COMMAND ...    give a command to a "
          "running server\n"
          "    qcow2-dedup unlock [OPTION]... FILE       tell who has its lease, and "
          "take it away\n"
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
                "scrub, recover, index, compact, measure, disk, report, status, metrics, "
                "control or unlock; try 'qcow2-dedup --help'");
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
      return subcommands[i].run ? subcommands[i].run (argc - 1, argv + 1)
        : tool_become_image_program (argv);
  return tool_error (NULL, "'%s' is not a subcommand; try "
                     "'qcow2-dedup --help'", argv[1]);
}
