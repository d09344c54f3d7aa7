/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup metrics: prints the figures of a server for Prometheus.
 *
 * With -o they go to a file that is replaced as a whole (output-file.h), so that a
 * collector which reads it meanwhile sees the old figures or the new ones.  If the
 * server cannot be asked, the file stays as it is: its age tells that.
 */
#include "metrics-print.h"

#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "output-file.h"
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
      if (*optarg == '\0')
        return tool_usage_error ("metrics", "-o must name a file");
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

/* The figures are worth nothing after a crash of the host, so the file need not be
 * durable. */
static int
replace_file (const char *path, const char *image,
              const struct server_figures *s)
{
  struct output_file *file = NULL;
  struct fault f = { 0 };
  FILE *fp;
  int r = output_file_open (path, false, &file, &fp, &f);

  if (r == 0 && metrics_print (fp, image, s) < 0) {
    output_file_cancel (file);
    return tool_error (path, "out of memory");
  }
  if (r == 0)
    r = output_file_finish (file, &f);
  return r < 0 ? tool_fault (NULL, r, &f) : TOOL_OK;
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

  if (r < 0)
    r = control_check_path ("metrics", o.control, o.image);
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
