/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup metrics: prints the figures of a server for Prometheus.
 *
 * With -o they go to a file that is replaced as a whole, by renaming, so that a
 * collector which reads it meanwhile sees the old figures or the new ones.  If the
 * server cannot be asked, the file stays as it is: its age tells that.
 */
#include "metrics-print.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tool.h"

#define TIMEOUT_MS 10000

struct options {
  const char *control, *image, *output;
};

static void
help (void)
{
  printf ("qcow2-dedup metrics [-o FILE] [--control=PATH] [IMAGE]\n"
          "\n"
          "Print the figures of the server of IMAGE in Prometheus' text format.\n"
          "The server is asked through its control socket, IMAGE.control unless "
          "--control\nnames another one.  -o replaces FILE with the figures.\n"
          "\n"
          "See qcow2-dedup-metrics(1).\n");
}

/* Returns -1 if the subcommand is to run, else the exit code. */
static int
parse_args (int argc, char *argv[], struct options *o)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "control", required_argument, NULL, 'c' },
    { NULL },
  };
  int c;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":hVo:", options, NULL)) != -1)
    switch (c) {
    case 'h':
      help ();
      return tool_finish_stdout (TOOL_OK);
    case 'V':
      tool_version ();
      return tool_finish_stdout (TOOL_OK);
    case 'c':
      o->control = optarg;
      break;
    case 'o':
      o->output = optarg;
      break;
    default:
      return tool_bad_option ("metrics", c, argv, options);
    }
  if (argc - optind > 1 || (argc == optind && o->control == NULL))
    return tool_usage_error ("metrics", "one IMAGE is needed, or --control=PATH");
  o->image = argc > optind ? argv[optind] : NULL;
  return -1;
}

/* --- Output --------------------------------------------------------------- */

/* Prints to FD, and closes it.  Returns 0 or -errno. */
static int
print_to (int fd, const char *image, const struct server_figures *s)
{
  FILE *to = fdopen (fd, "w");
  int r;

  if (to == NULL) {
    r = -errno;
    close (fd);
    return r;
  }
  r = metrics_print (to, image, s);
  if (r == 0)
    r = fflush (to) == 0 && !ferror (to) ? 0 : -errno;
  if (fclose (to) != 0 && r == 0)
    r = -errno;
  return r;
}

/* Makes a file beside PATH, with the rights that a new file gets. */
static int
open_beside (const char *path, char **name)
{
  const mode_t mask = umask (0);
  int fd;

  umask (mask);
  if (asprintf (name, "%s.XXXXXX", path) < 0) {
    *name = NULL;
    errno = ENOMEM;
    return -1;
  }
  fd = mkstemp (*name);
  if (fd >= 0 && fchmod (fd, 0666 & ~mask) == 0)
    return fd;
  if (fd >= 0) {
    close (fd);
    unlink (*name);
  }
  return -1;
}

static int
replace_file (const char *path, const char *image,
              const struct server_figures *s)
{
  CLEANUP_FREE char *name = NULL;
  const int fd = open_beside (path, &name);
  int r = fd < 0 ? -errno : print_to (fd, image, s);

  if (r == 0 && rename (name, path) != 0)
    r = -errno;
  if (r < 0 && fd >= 0)
    unlink (name);
  return r < 0 ? tool_error (path, "cannot write it: %s", strerror (-r))
    : TOOL_OK;
}

/* Returns the exit code. */
static int
print (const struct options *o, const struct server_figures *s)
{
  if (o->output)
    return replace_file (o->output, o->image, s);
  if (metrics_print (stdout, o->image, s) < 0)
    return tool_error (NULL, "out of memory");
  return tool_finish_stdout (TOOL_OK);
}

int
tool_metrics (int argc, char *argv[])
{
  struct options o = { 0 };
  struct control_client *c = NULL;
  struct server_figures s;
  struct fault f = { 0 };
  CLEANUP_FREE char *path = NULL;
  int r = parse_args (argc, argv, &o);

  if (r >= 0)
    return r;
  signal (SIGXFSZ, SIG_IGN);    /* writes fail with EFBIG instead */
  path = control_path (o.control, o.image);
  if (path == NULL)
    return tool_error (NULL, "out of memory");
  r = control_connect (path, TIMEOUT_MS, &c, &f);
  if (r == 0)
    r = server_figures_get (c, true, &s, &f);
  control_close (c);
  if (r < 0)
    return tool_fault (path, r, &f);
  r = print (&o, &s);
  server_figures_free (&s);
  return r;
}
