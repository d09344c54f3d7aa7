/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds in nbdkit's command line whether every connection to the plugin is
 * read-only, because of -r or of a filter, the path of -U, and whether there is
 * -s.
 *
 * nbdkit has no call that tells, so the arguments of the process are parsed
 * again, with getopt_long and the options that nbdkit(1) documents.  A search
 * for "-r" would fail on what getopt allows: joined letters (-frv),
 * abbreviations (--reado), values that look like options (-e -r), and options
 * after the name of the plugin.  If /proc is not mounted, the result is that
 * connections can write.  An option that a newer nbdkit adds is skipped.
 *
 * Those in readonly_filters always open the plugin read-only, whatever the
 * client asks for; their manuals promise that.  Of the other filters ext2
 * always asks for write access, and the rest pass on what they are asked for.
 * So connections are read-only if there is one of the former, and no ext2
 * between it and the plugin.  The last --filter option is next to the plugin.
 *
 * Threads: called before there are others.
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "command-line.h"

#define MAX_COMMAND_LINE (4u << 20)         /* above the kernel's usual limit */

/* The options of nbdkit(1), and which of them take a value.  All are listed,
 * because getopt_long needs all to resolve abbreviations. */
enum { OPT_FILTER = 1 };
static const char short_options[] = "46D:e:fg:i:nop:P:rst:u:U:vV";
static const struct option long_options[] = {
  { "debug", required_argument, NULL, 0 },
  { "dump-config", no_argument, NULL, 0 },
  { "dump-plugin", no_argument, NULL, 0 },
  { "exit-with-parent", no_argument, NULL, 0 },
  { "export", required_argument, NULL, 0 },
  { "export-name", required_argument, NULL, 0 },
  { "exportname", required_argument, NULL, 0 },
  { "filter", required_argument, NULL, OPT_FILTER },
  { "foreground", no_argument, NULL, 0 },
  { "group", required_argument, NULL, 0 },
  { "help", no_argument, NULL, 0 },
  { "ip-addr", required_argument, NULL, 0 },
  { "ipaddr", required_argument, NULL, 0 },
  { "ipv4-only", no_argument, NULL, 0 },
  { "ipv6-only", no_argument, NULL, 0 },
  { "log", required_argument, NULL, 0 },
  { "long-options", no_argument, NULL, 0 },
  { "mask-handshake", required_argument, NULL, 0 },
  { "new-style", no_argument, NULL, 0 },
  { "newstyle", no_argument, NULL, 0 },
  { "no-fork", no_argument, NULL, 0 },
  { "no-sr", no_argument, NULL, 0 },
  { "old-style", no_argument, NULL, 0 },
  { "oldstyle", no_argument, NULL, 0 },
  { "pid-file", required_argument, NULL, 0 },
  { "pidfile", required_argument, NULL, 0 },
  { "port", required_argument, NULL, 0 },
  { "read-only", no_argument, NULL, 'r' },
  { "readonly", no_argument, NULL, 'r' },
  { "run", required_argument, NULL, 0 },
  { "selinux-label", required_argument, NULL, 0 },
  { "short-options", no_argument, NULL, 0 },
  { "single", no_argument, NULL, 's' },
  { "stdin", no_argument, NULL, 's' },
  { "swap", no_argument, NULL, 0 },
  { "threads", required_argument, NULL, 0 },
  { "tls", required_argument, NULL, 0 },
  { "tls-certificates", required_argument, NULL, 0 },
  { "tls-psk", required_argument, NULL, 0 },
  { "tls-verify-peer", no_argument, NULL, 0 },
  { "unix", required_argument, NULL, 'U' },
  { "user", required_argument, NULL, 0 },
  { "verbose", no_argument, NULL, 0 },
  { "version", no_argument, NULL, 0 },
  { "vsock", no_argument, NULL, 0 },
  { NULL },
};

#define FILTER_OPTION "--filter="
static const char *const readonly_filters[] = {
  FILTER_OPTION "bzip2", FILTER_OPTION "checkwrite", FILTER_OPTION "cow",
  FILTER_OPTION "gzip", FILTER_OPTION "lzip", FILTER_OPTION "xz",
};

/* Returns the arguments of this process, each ended by a NUL byte, or NULL on
 * error.  *LEN: their length in bytes; the last one is a NUL. */
static char *
read_command_line (size_t *len)
{
  char *buf = malloc (MAX_COMMAND_LINE);
  int fd = open ("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  ssize_t r = 0;

  *len = 0;
  while (fd >= 0 && buf && *len < MAX_COMMAND_LINE - 1 &&
         (r = read (fd, buf + *len, MAX_COMMAND_LINE - 1 - *len)) > 0)
    *len += (size_t) r;
  if (fd >= 0)
    close (fd);
  if (*len == 0 || r < 0) {
    free (buf);
    return NULL;
  }
  if (buf[*len - 1] != '\0')
    buf[(*len)++] = '\0';
  return buf;
}

static char **
split_arguments (char *buf, size_t len, int *argc)
{
  char **argv, *p;
  size_t nr = 0;

  for (p = buf; p < buf + len; p += strlen (p) + 1)
    nr++;
  argv = calloc (nr + 1, sizeof *argv);
  if (argv == NULL)
    return NULL;
  for (nr = 0, p = buf; p < buf + len; p += strlen (p) + 1)
    argv[nr++] = p;
  *argc = (int) nr;
  return argv;
}

/* Returns true if ARG, the value of --filter, means the filter NAME.  nbdkit
 * takes a name, or a path that ends in nbdkit-NAME-filter.so. */
static bool
is_filter (const char *arg, const char *name)
{
  static const char prefix[] = "nbdkit-", suffix[] = "-filter.so";
  const char *base = strrchr (arg, '/');
  const size_t len = strlen (name);

  if (strcmp (arg, name) == 0)
    return true;
  base = base ? base + 1 : arg;
  return strncmp (base, prefix, sizeof prefix - 1) == 0 &&
    strncmp (base + sizeof prefix - 1, name, len) == 0 &&
    strcmp (base + sizeof prefix - 1 + len, suffix) == 0;
}

/* Returns the argument that makes read-only what is below the filter ARG, or
 * NULL; BEFORE is the same for what is above it. */
static const char *
below_filter (const char *arg, const char *before)
{
  for (size_t i = 0; i < sizeof readonly_filters / sizeof readonly_filters[0];
       i++)
    if (is_filter (arg, readonly_filters[i] + strlen (FILTER_OPTION)))
      return readonly_filters[i];
  return is_filter (arg, "ext2") ? NULL : before;
}

struct command_line {
  bool by_option;               /* -r */
  const char *by_filter;        /* a constant, or NULL */
  char *socket;                 /* of the last -U, or NULL */
  bool on_stdin;                /* -s */
};

/* Fills LINE.  The state of getopt is saved and restored, though nbdkit needs
 * it no more when .get_ready runs (its last use is of optind, for the keys). */
static void
parse_arguments (int argc, char **argv, struct command_line *line)
{
  int saved_optind = optind, saved_opterr = opterr, saved_optopt = optopt;
  char *saved_optarg = optarg;
  int c;

  optind = 0;                   /* glibc: parse from the beginning */
  opterr = 0;
  while ((c = getopt_long (argc, argv, short_options, long_options,
                           NULL)) != -1) {
    line->by_option |= c == 'r';
    line->on_stdin |= c == 's';
    if (c == 'U')
      line->socket = optarg;
    if (c == OPT_FILTER)
      line->by_filter = below_filter (optarg, line->by_filter);
  }
  optind = saved_optind;
  opterr = saved_opterr;
  optopt = saved_optopt;
  optarg = saved_optarg;
}

/* Fills LINE, whose strings point into the result, which the caller frees. */
static char *
parse_command_line (struct command_line *line)
{
  size_t len;
  char *buf = read_command_line (&len);
  CLEANUP_FREE char **argv = NULL;
  int argc;

  memset (line, 0, sizeof *line);
  if (buf)
    argv = split_arguments (buf, len, &argc);
  if (argv)
    parse_arguments (argc, argv, line);
  return buf;
}

const char *
command_line_readonly (void)
{
  struct command_line line;
  CLEANUP_FREE __attribute__ ((unused)) char *buf = parse_command_line (&line);

  return line.by_option ? "-r" : line.by_filter;
}

char *
command_line_socket (void)
{
  struct command_line line;
  CLEANUP_FREE __attribute__ ((unused)) char *buf = parse_command_line (&line);

  return line.socket && strcmp (line.socket, "-") != 0 ? strdup (line.socket)
    : NULL;
}

bool
command_line_on_stdin (void)
{
  struct command_line line;
  CLEANUP_FREE __attribute__ ((unused)) char *buf = parse_command_line (&line);

  return line.on_stdin;
}
