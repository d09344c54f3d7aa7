/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk: reads the command line of the commands on disks of a pool, and
 * runs the one that is named.
 *
 * A table says which operands and options each command takes.  Names of disks are
 * checked by dedup/, their sizes by disk_parse_size.
 */
#include "disk.h"

#include <getopt.h>
#include <string.h>

struct command {
  const char *name, *full_name;
  int least, most;              /* operands after POOL; MOST -1: any number */
  int active_at;                /* the operand that --active stands for */
  unsigned options;
  int (*run) (const struct disk_args *a);
  const char *operands;         /* for messages */
};

static const struct command commands[] = {
  { "create", "disk create", 2, 2, 0, DISK_OPT_NO_WAIT, disk_create,
    "POOL, NAME and SIZE are needed" },
  { "list", "disk list", 0, 0, 0, DISK_OPT_JSON | DISK_OPT_SIZES, disk_list,
    "exactly one POOL is needed" },
  { "info", "disk info", 0, 1, 0, DISK_OPT_JSON | DISK_OPT_ACTIVE, disk_info,
    "POOL is needed, and at most one NAME" },
  { "clone", "disk clone", 2, 2, 0, DISK_OPT_NO_WAIT | DISK_OPT_ACTIVE,
    disk_clone,
    "POOL, SOURCE and NEW are needed" },
  { "snapshot", "disk snapshot", 2, 2, 0, DISK_OPT_NO_WAIT, disk_snapshot,
    "POOL, NAME and SNAPSHOT are needed" },
  { "reset", "disk reset", 2, 2, 1, DISK_OPT_NO_WAIT | DISK_OPT_ACTIVE,
    disk_reset,
    "POOL, NAME and SOURCE are needed" },
  { "rename", "disk rename", 2, 2, 0, DISK_OPT_NO_WAIT, disk_rename,
    "POOL, NAME and NEW are needed" },
  { "resize", "disk resize", 2, 2, 0, DISK_OPT_NO_WAIT | DISK_OPT_SHRINK,
    disk_resize,
    "POOL, NAME and SIZE are needed" },
  { "set", "disk set", 2, 2, 0, DISK_OPT_NO_WAIT, disk_set,
    "POOL, NAME and compress=VALUE are needed" },
  { "delete", "disk delete", 1, -1, 0, DISK_OPT_NO_WAIT, disk_delete,
    "POOL and at least one NAME are needed" },
  { "import", "disk import", 2, 2, 0, DISK_OPT_JSON | DISK_OPT_NO_WAIT |
    DISK_OPT_FORCE | DISK_OPT_RESUME | DISK_OPT_PROGRESS | DISK_OPT_FORMAT |
    DISK_OPT_SIZE, disk_import,
    "POOL, NAME and FILE are needed" },
  { "export", "disk export", 2, 2, 0, DISK_OPT_JSON | DISK_OPT_FORCE |
    DISK_OPT_PROGRESS | DISK_OPT_FORMAT | DISK_OPT_ACTIVE, disk_export,
    "POOL, NAME and FILE are needed" },
};

static const struct option options[] = {
  { "help", no_argument, NULL, 'h' },
  { "version", no_argument, NULL, 'V' },
  { "store", required_argument, NULL, 's' },
  { "output", required_argument, NULL, 'o' },
  { "no-wait", no_argument, NULL, 'w' },
  { "force", no_argument, NULL, 'f' },
  { "resume", no_argument, NULL, 'r' },
  { "shrink", no_argument, NULL, 'S' },
  { "sizes", no_argument, NULL, 'z' },
  { "progress", no_argument, NULL, 'p' },
  { "format", required_argument, NULL, 'F' },
  { "size", required_argument, NULL, 'Z' },
  { "active", no_argument, NULL, 'a' },
  { NULL },
};

static unsigned
bit_of (int c)
{
  switch (c) {
  case 'o': return DISK_OPT_JSON;
  case 'w': return DISK_OPT_NO_WAIT;
  case 'f': return DISK_OPT_FORCE;
  case 'r': return DISK_OPT_RESUME;
  case 'S': return DISK_OPT_SHRINK;
  case 'z': return DISK_OPT_SIZES;
  case 'p': return DISK_OPT_PROGRESS;
  case 'F': return DISK_OPT_FORMAT;
  case 'Z': return DISK_OPT_SIZE;
  case 'a': return DISK_OPT_ACTIVE;
  default: return 0;
  }
}

/* Takes an option with an argument.  -1 if that is valid, else the exit code. */
static int
take_argument (int c, struct disk_args *a)
{
  switch (c) {
  case 's':
    a->store_path = optarg;
    return *optarg ? -1
      : tool_usage_error (a->command, "--store must name a file");
  case 'o':
    return tool_parse_output (optarg, &a->json) ? -1
      : tool_usage_error (a->command, "--output must be human or json, not "
                          "'%s'", optarg);
  case 'F':
    a->format = optarg;
    return strcmp (optarg, "raw") == 0 || strcmp (optarg, "qcow2") == 0 ? -1
      : tool_usage_error (a->command, "--format must be raw or qcow2, not '%s'",
                          optarg);
  default:
    return disk_parse_size (a, optarg, &a->size);
  }
}

static int
take_option (int c, char *argv[], const struct command *cmd,
             struct disk_args *a)
{
  if (c == 'h' || c == 'V') {
    c == 'h' ? disk_command_help (cmd->name, cmd->options) : tool_version ();
    return tool_finish_stdout (TOOL_OK);
  }
  if (c == '?' || c == ':' || (c != 's' && !(cmd->options & bit_of (c))))
    return tool_bad_option (a->command, c, argv, options);
  a->no_wait |= c == 'w';
  a->force |= c == 'f';
  a->resume |= c == 'r';
  a->shrink |= c == 'S';
  a->sizes |= c == 'z';
  a->progress |= c == 'p';
  return c == 's' || c == 'o' || c == 'F' || c == 'Z' ? take_argument (c, a)
    : -1;
}

/* Takes POOL and the other operands; --active stands for one of these. */
static int
take_operands (int argc, char *argv[], const struct command *cmd, bool active,
               struct disk_args *a, char *v[])
{
  const int nr = argc - optind - 1 + (active ? 1 : 0);
  int i, from = optind + 1;

  if (nr < cmd->least || (cmd->most >= 0 && nr > cmd->most) || optind >= argc)
    return tool_usage_error (a->command, "%s", cmd->operands);
  a->path = argv[optind];
  a->nr_operands = nr;
  a->operands = argv + from;
  if (cmd->most < 0)
    return -1;
  for (i = 0; i < nr; i++)
    v[i] = active && i == cmd->active_at ? (char *) "" : argv[from++];
  a->operands = v;
  return -1;
}

static int
run_command (int argc, char *argv[], const struct command *cmd)
{
  struct disk_args a = { .command = cmd->full_name };
  char *v[DISK_MAX_OPERANDS];
  bool active = false;
  int c, r;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":hV", options, NULL)) != -1) {
    r = take_option (c, argv, cmd, &a);
    if (r >= 0)
      return r;
    active |= c == 'a';
  }
  r = take_operands (argc, argv, cmd, active, &a, v);
  return r >= 0 ? r : cmd->run (&a);
}

int
tool_disk (int argc, char *argv[])
{
  size_t i;

  if (argc < 2)
    return tool_usage_error ("disk", "a command is needed, such as create, list "
                             "or clone");
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0) {
    disk_help ();
    return tool_finish_stdout (TOOL_OK);
  }
  if (strcmp (argv[1], "--version") == 0 || strcmp (argv[1], "-V") == 0) {
    tool_version ();
    return tool_finish_stdout (TOOL_OK);
  }
  for (i = 0; i < sizeof commands / sizeof commands[0]; i++)
    if (strcmp (argv[1], commands[i].name) == 0)
      return run_command (argc - 1, argv + 1, &commands[i]);
  return tool_usage_error ("disk", "'%s' is not a command", argv[1]);
}
