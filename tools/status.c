/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup status: shows what a server does, on one screen.
 *
 * It asks twice, since rates are the difference of two counts; with --watch it goes on
 * asking until it is interrupted or the server ends.  Nothing is opened but the control
 * socket, so the command needs no right to the image.
 */
#include "status.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "tool.h"

#define TIMEOUT_MS 10000
#define SAMPLE_MS 500           /* between the two counts, without --watch */
#define MAX_WATCH_SECONDS 86400
#define DEFAULT_COLUMNS 80

struct options {
  const char *control, *image;
  bool json;
  uint64_t watch_seconds;       /* 0: once */
};

static void
help (void)
{
  printf ("qcow2-dedup status [--watch[=SECONDS]] [--output=human|json] "
          "[--control=PATH]\n                   [IMAGE]\n"
          "\n"
          "Show what the server of IMAGE does: disks, space, rates, latencies, jobs.\n"
          "The server is asked through its control socket, IMAGE.control unless "
          "--control\nnames another one.\n"
          "\n"
          "See qcow2-dedup-status(1).\n");
}

static int
set_watch (struct options *o, const char *arg)
{
  o->watch_seconds = 2;
  if (arg && !tool_parse_number (arg, 1, MAX_WATCH_SECONDS, &o->watch_seconds))
    return tool_usage_error ("status", "--watch must be a number of seconds, not "
                             "'%s'", arg);
  return -1;
}

/* Takes the option C, one of OPTIONS.  Returns -1, or the exit code. */
static int
take_option (struct options *o, int c, char *argv[], const struct option *options)
{
  switch (c) {
  case 'h':
    help ();
    return tool_finish_stdout (TOOL_OK);
  case 'V':
    tool_version ();
    return tool_finish_stdout (TOOL_OK);
  case 'O':
    if (tool_parse_output (optarg, &o->json))
      return -1;
    return tool_usage_error ("status", "--output must be human or json, not '%s'",
                             optarg);
  case 'c':
    o->control = optarg;
    return -1;
  case 'w':
    return set_watch (o, optarg);
  default:
    return tool_bad_option ("status", c, argv, options);
  }
}

/* Returns -1 if the subcommand is to run, else the exit code. */
static int
parse_args (int argc, char *argv[], struct options *o)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "output", required_argument, NULL, 'O' },
    { "control", required_argument, NULL, 'c' },
    { "watch", optional_argument, NULL, 'w' },
    { NULL },
  };
  int c, r = -1;

  opterr = 0;
  while (r < 0 &&
         (c = getopt_long (argc, argv, ":hVw::", options, NULL)) != -1)
    r = take_option (o, c, argv, options);
  if (r >= 0)
    return r;
  if (argc - optind > 1 || (argc == optind && o->control == NULL))
    return tool_usage_error ("status", "one IMAGE is needed, or --control=PATH");
  o->image = argc > optind ? argv[optind] : NULL;
  return -1;
}

/* --- Drawing -------------------------------------------------------------- */

static struct screen
look_at_terminal (const char *path)
{
  struct screen s = { .path = path };
  struct winsize size;

  if (!isatty (STDOUT_FILENO))
    return s;
  s.width = DEFAULT_COLUMNS;
  if (ioctl (STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    s.width = size.ws_col;
    s.height = size.ws_row;
  }
  s.colour = getenv ("NO_COLOR") == NULL;
  return s;
}

/* Sleeps, unless the user has interrupted. */
static void
rest (uint64_t ms)
{
  const struct timespec t = { .tv_sec = (time_t) (ms / 1000),
                              .tv_nsec = (long) (ms % 1000) * 1000000 };

  if (!tool_interrupted ())
    nanosleep (&t, NULL);
}

static void
print_json (const struct server_figures *now)
{
  json_t *o = json_pack ("{s:O, s:O, s:O}", "stats", now->stats, "jobs",
                         now->jobs, "disks", now->disks);

  json_dumpf (o, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (o);
}

static void
show (const struct options *o, const char *path,
      const struct server_figures *before, const struct server_figures *now)
{
  const struct screen s = look_at_terminal (path);

  if (o->json) {
    print_json (now);
    return;
  }
  if (o->watch_seconds && s.height)
    printf ("\033[H\033[2J");
  screen_draw (stdout, &s, before, now, o->watch_seconds > 0);
  if (o->watch_seconds && !s.height)
    putchar ('\n');
}

/* Waits, asks and shows.  *BEFORE becomes what was shown.  -errno. */
static int
show_next (const struct options *o, const char *path, struct control_client *c,
           struct server_figures *before, struct fault *f)
{
  struct server_figures now;
  int r;

  rest (o->watch_seconds ? o->watch_seconds * 1000 : SAMPLE_MS);
  if (tool_interrupted ())
    return 0;
  r = server_figures_get (c, false, &now, f);
  if (r < 0)
    return r;
  show (o, path, before, &now);
  server_figures_free (before);
  *before = now;
  return 0;
}

static int
watch (const struct options *o, const char *path, struct control_client *c,
       struct fault *f)
{
  struct server_figures before;
  int r = server_figures_get (c, false, &before, f);

  if (r < 0)
    return r;
  if (o->json)
    print_json (&before);
  if (!o->json || o->watch_seconds)
    do
      r = show_next (o, path, c, &before, f);
    while (r == 0 && o->watch_seconds && !tool_interrupted () &&
           fflush (stdout) == 0);
  server_figures_free (&before);
  return r;
}

int
tool_status (int argc, char *argv[])
{
  struct options o = { 0 };
  struct control_client *c = NULL;
  struct fault f = { 0 };
  CLEANUP_FREE char *path = NULL;
  int r = parse_args (argc, argv, &o);

  if (r < 0)
    r = control_check_path ("status", o.control, o.image);
  if (r >= 0)
    return r;
  path = control_path (o.control, o.image);
  if (path == NULL)
    return tool_error (NULL, "out of memory");
  if (o.watch_seconds)
    tool_catch_signals ();
  r = control_connect (path, TIMEOUT_MS, &c, &f);
  if (r == 0)
    r = watch (&o, o.image ? o.image : path, c, &f);
  control_close (c);
  return r < 0 ? tool_fault (path, r, &f) : tool_finish_stdout (TOOL_OK);
}
