/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk: the text of --help, for all commands and for each of them.
 *
 * The completion of bash in contrib/ reads this text: a command is the second word
 * of a line that begins with four blanks and "disk", and an option is what begins
 * with "--".
 */
#include "disk.h"

#include <stdio.h>
#include <string.h>

static const struct {
  const char *name, *operands, *what;
} commands[] = {
  { "create", "POOL NAME SIZE", "make an empty disk" },
  { "list", "POOL", "list disks and snapshots" },
  { "info", "POOL [NAME]", "show what the pool, or a disk, takes" },
  { "clone", "POOL SOURCE NEW", "make a disk from a disk or snapshot" },
  { "snapshot", "POOL NAME SNAPSHOT", "keep a disk's state as NAME@SNAPSHOT" },
  { "reset", "POOL NAME SOURCE", "make a disk what another one is" },
  { "rename", "POOL NAME NEW", "rename a disk and its snapshots" },
  { "resize", "POOL NAME SIZE",
    "make a disk larger, or with --shrink smaller" },
  { "set", "POOL NAME compress=zstd|zlib|off|pool",
    "compress new data of a disk, or do not" },
  { "delete", "POOL NAME...", "delete disks and snapshots" },
  { "import", "POOL NAME FILE", "make a disk from a raw or qcow2 file" },
  { "export", "POOL NAME FILE", "write a disk to a raw or qcow2 file" },
};

/* Options in the order in which they are printed. */
static const struct {
  unsigned bit;
  const char *option, *what;
} options[] = {
  { DISK_OPT_ACTIVE, "--active", "the active disk, in place of SOURCE or NAME" },
  { DISK_OPT_FORCE, "--force", "write over what exists" },
  { DISK_OPT_FORMAT, "--format=raw|qcow2", "the format of FILE" },
  { DISK_OPT_NO_WAIT, "--no-wait", "leave work to the next server: see the "
    "manual" },
  { DISK_OPT_JSON, "--output=human|json", "how to print the result" },
  { DISK_OPT_PROGRESS, "--progress", "show progress also if stderr is no "
    "terminal" },
  { DISK_OPT_RESUME, "--resume", "continue an import that was interrupted" },
  { DISK_OPT_SHRINK, "--shrink", "allow a smaller size" },
  { DISK_OPT_SIZE, "--size=SIZE", "the size of the disk, if larger than FILE" },
  { DISK_OPT_SIZES, "--sizes", "show how much of each disk is mapped" },
  { 0, "--store=PATH", "the store file, for a pool that is served with store=" },
};

void
disk_help (void)
{
  char line[64];
  size_t i;

  printf ("qcow2-dedup disk COMMAND [OPTION]... POOL ...: work on the disks of a "
          "pool\n\n");
  for (i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    snprintf (line, sizeof line, "disk %s %s", commands[i].name,
              commands[i].operands);
    printf ("    %-35s %s\n", line, commands[i].what);
  }
  printf ("\n"
          "'qcow2-dedup disk COMMAND --help' shows the options of a command.\n"
          "See qcow2-dedup-disk(1).\n");
}

void
disk_command_help (const char *name, unsigned opts)
{
  size_t i;

  for (i = 0; i < sizeof commands / sizeof commands[0]; i++)
    if (strcmp (commands[i].name, name) == 0)
      printf ("qcow2-dedup disk %s [OPTION]... %s: %s\n\n", name,
              commands[i].operands, commands[i].what);
  for (i = 0; i < sizeof options / sizeof options[0]; i++)
    if (options[i].bit == 0 || (opts & options[i].bit))
      printf ("    %-20s %s\n", options[i].option, options[i].what);
  printf ("\nSee qcow2-dedup-disk(1).\n");
}
