/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages, progress and arguments of all subcommands.
 *
 * Every message is one line on stderr, "qcow2-dedup: FILE: what is wrong", whatever
 * names the user gives: control characters in it become '?'.
 * stdout carries results only, so that it can be piped into another program.
 * A progress line is wiped before anything else is printed.  Everything runs in
 * one thread.  The log sink is constant; this file has no other globals.
 */
#include "tool.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"

/* A path, and a message that quotes another one. */
#define MAX_LINE (3 * PATH_MAX)

/* --- Messages ------------------------------------------------------------ */

int
tool_error (const char *path, const char *fmt, ...)
{
  char line[MAX_LINE];
  size_t len = 0;
  va_list ap;

  if (path)
    len = (size_t) snprintf (line, PATH_MAX, "%s: ", path);
  va_start (ap, fmt);
  vsnprintf (line + MIN_OF (len, PATH_MAX - 1u), MAX_LINE - PATH_MAX, fmt, ap);
  va_end (ap);
  fault_make_printable (line);
  fprintf (stderr, "qcow2-dedup: %s\n", line);
  return TOOL_FAILED;
}

int
tool_fault (const char *path, int r, const struct fault *f)
{
  if (f->kind != FAULT_NONE)
    return tool_error (path, "%s", f->msg);
  return tool_error (path, "%s", strerror (-r));
}

int
tool_usage_error (const char *subcommand, const char *fmt, ...)
{
  char msg[256];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (msg, sizeof msg, fmt, ap);
  va_end (ap);
  return tool_error (subcommand, "%s; try 'qcow2-dedup %s --help'", msg,
                     subcommand);
}

static void
log_errors_cb (void *opaque, enum log_level level, const char *line)
{
  if (level == LOG_ERROR)
    tool_error (NULL, "%s", line);
}

const struct log_sink tool_log_errors = { .write = log_errors_cb };

void
tool_progress_step (struct tool_progress *p, uint64_t done, uint64_t total)
{
  unsigned percent = total == 0 ? 100 : (unsigned) (100.0 * done / total);
  const bool terminal = isatty (STDERR_FILENO);

  if ((p->shown && percent == p->percent) || (!terminal && !p->always))
    return;
  p->shown = true;
  p->percent = percent;
  fprintf (stderr, terminal ? "\r%s: %3u %%" : "%s: %3u %%\n", p->what,
           percent);
  fflush (stderr);
}

void
tool_progress_clear (struct tool_progress *p)
{
  if (p->shown && isatty (STDERR_FILENO))
    fprintf (stderr, "\r\033[K");
  p->shown = false;
}

int
tool_finish_stdout (int code)
{
  if (fflush (stdout) == 0 && !ferror (stdout))
    return code;
  return tool_error (NULL, "cannot write to standard output: %s",
                     strerror (errno));
}

/* --- Arguments ----------------------------------------------------------- */

/* Returns the argument that getopt_long has stopped at: the one before optind, or the one
 * at it, if more letters follow the one that is wrong, as in -xv. */
static const char *
stopped_at (char *argv[])
{
  const char *next = argv[optind];

  return next && next[0] == '-' && next[1] != '-' && optopt != 0 &&
    strchr (next + 1, optopt) ? next : argv[optind - 1];
}

int
tool_bad_option (const char *subcommand, int c, char *argv[],
                 const struct option *options)
{
  const char *arg = stopped_at (argv);
  const struct option *o;

  if (c == ':')
    return tool_usage_error (subcommand, "'%s' needs a value", arg);
  for (o = options; c != '?' && o->name; o++)
    if (o->val == c)
      return tool_usage_error (subcommand, "'--%s' is not a valid option", o->name);
  if (optopt != 0 && strncmp (arg, "--", 2) == 0)
    return tool_usage_error (subcommand, "'%.*s' takes no value",
                             (int) strcspn (arg, "="), arg);
  return tool_usage_error (subcommand, "'%s' is not a valid option", arg);
}

static bool
parse_digits (const char *s, char **end, uint64_t *n)
{
  if (s[0] < '0' || s[0] > '9')
    return false;           /* strtoull would accept signs and blanks */
  errno = 0;
  *n = strtoull (s, end, 10);
  return errno == 0;
}

static bool
suffix_shift (char c, unsigned *shift)
{
  static const char suffixes[] = "bkmgtpe";
  const char *at;

  if (c >= 'A' && c <= 'Z')
    c = (char) (c - 'A' + 'a');
  at = c ? strchr (suffixes, c) : suffixes;
  if (!at)
    return false;
  *shift = 10 * (unsigned) (at - suffixes);
  return true;
}

bool
tool_parse_size (const char *s, uint64_t *size)
{
  unsigned shift;
  uint64_t n;
  char *end;

  if (!parse_digits (s, &end, &n) || !suffix_shift (*end, &shift) ||
      (*end && end[1]) || n > UINT64_MAX >> shift)
    return false;
  *size = n << shift;
  return true;
}

bool
tool_parse_number (const char *s, uint64_t min, uint64_t max, uint64_t *n)
{
  char *end;

  return parse_digits (s, &end, n) && *end == '\0' && *n >= min && *n <= max;
}

void
tool_version (void)
{
  printf ("qcow2-dedup %s\n", PACKAGE_VERSION);
}

bool
tool_parse_output (const char *s, bool *json)
{
  *json = strcmp (s, "json") == 0;
  return *json || strcmp (s, "human") == 0;
}

/* The options of all subcommands that use tool_parse_args, behind their own. */
static const struct option common_options[] = {
  { "help", no_argument, NULL, 'h' },
  { "version", no_argument, NULL, 'V' },
  { "output", required_argument, NULL, 'o' },
  { "store", required_argument, NULL, 's' },
  { "verbose", no_argument, NULL, 'v' },
  { NULL },
};
#define NR_COMMON (sizeof common_options / sizeof common_options[0])

/* Takes one of them.  Returns -1 if it is valid, else the exit code. */
static int
take_common (struct tool_args *a, int c, const char *arg)
{
  switch (c) {
  case 'h':
    a->help ();
    return tool_finish_stdout (TOOL_OK);
  case 'V':
    tool_version ();
    return tool_finish_stdout (TOOL_OK);
  case 's':
    a->store_path = arg;
    return *arg ? -1
      : tool_usage_error (a->subcommand, "--store must name a file");
  case 'v':
    a->verbose = true;
    return -1;
  default:
    return tool_parse_output (arg, &a->json) ? -1
      : tool_usage_error (a->subcommand, "--output must be human or json, not '%s'",
                          arg);
  }
}

/* Returns whether C is an option of the subcommand, and whether of it alone. */
static bool
is_option (const struct tool_args *a, int c, bool *own)
{
  const struct option *o;

  *own = false;
  for (o = a->own; o && o->name; o++)
    if (o->val == c)
      *own = true;
  return *own || (c == 'o' ? a->has_output : c == 'v' ? a->has_verbose
                  : c == 'h' || c == 'V' || c == 's');
}

int
tool_parse_args (int argc, char *argv[], struct tool_args *a)
{
  struct option options[TOOL_MAX_OWN + NR_COMMON];
  size_t nr = 0;
  bool own;
  int c, r;

  for (; a->own && a->own[nr].name; nr++) {
    assert (nr < TOOL_MAX_OWN);
    options[nr] = a->own[nr];
  }
  memcpy (options + nr, common_options, sizeof common_options);
  opterr = 0;
  while ((c = getopt_long (argc, argv, ":hvV", options, NULL)) != -1) {
    if (!is_option (a, c, &own))
      return tool_bad_option (a->subcommand, c, argv, options);
    r = own ? a->take (a, c, optarg) : take_common (a, c, optarg);
    if (r >= 0)
      return r;
  }
  if (argc - optind != 1)
    return tool_usage_error (a->subcommand, "exactly one FILE is needed");
  a->path = argv[optind];
  return -1;
}

const char *
tool_human (uint64_t bytes, char buf[32])
{
  static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB",
                                       "PiB", "EiB" };
  double v = (double) bytes;
  unsigned i = 0;

  while (v >= 1023.5 && i < 6) {        /* prints 1 MiB, not 1024 KiB */
    v /= 1024;
    i++;
  }
  if (v >= 99.95 || i == 0)
    snprintf (buf, 32, "%.0f %s", v, units[i]);
  else
    snprintf (buf, 32, "%.3g %s", v, units[i]);
  return buf;
}
