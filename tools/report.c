/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup report: writes a page that shows where the space of a pool went.
 *
 * This file parses the options.  The figures are gathered by report-collect.c, and
 * drawn by the other files report-*.c, one for each section of the page.  The image
 * is opened read-only; the output never replaces it.  One thread.
 */
#include "report.h"

#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "output-file.h"

static void
help (void)
{
  printf ("qcow2-dedup report [-o FILE] [--output=html|json] [--store=PATH] "
          "POOL\n"
          "\n"
          "Write a page that shows where the space of the pool went: what each "
          "disk takes\nand shares with which others, what deleting it would free, "
          "how often clusters are\nreferred to, what lies where in the file, and "
          "the index.  The image is not\nchanged.\n"
          "\n"
          "    -o FILE             write to FILE, not to standard output\n"
          "    --output=html|json  write a page, which is the default, or the "
          "figures\n"
          "    --store=PATH        the store file, for an image that is served "
          "with store=\n"
          "\n"
          "See qcow2-dedup-report(1).\n");
}

struct args {
  struct disk_args disk;
  const char *out;
};

static bool
parse_format (const char *s, bool *json)
{
  *json = strcmp (s, "json") == 0;
  return *json || strcmp (s, "html") == 0;
}

/* Takes an option.  -1 if the others follow, else the exit code. */
static int
take_option (int c, char *argv[], const struct option *options, struct args *a)
{
  if (c == 'h' || c == 'V') {
    c == 'h' ? help () : tool_version ();
    return tool_finish_stdout (TOOL_OK);
  }
  if (c == 'o')
    a->out = optarg;
  else if (c == 's')
    a->disk.store_path = optarg;
  else if (c != 'O')
    return tool_bad_option ("report", c, argv, options);
  else if (!parse_format (optarg, &a->disk.json))
    return tool_usage_error ("report", "--output must be html or json, not "
                             "'%s'", optarg);
  if (*optarg == '\0')
    return tool_usage_error ("report", "%s must name a file",
                             c == 'o' ? "-o" : "--store");
  return -1;
}

static int
parse_args (int argc, char *argv[], struct args *a)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "output", required_argument, NULL, 'O' },
    { "store", required_argument, NULL, 's' },
    { NULL },
  };
  int c, r = -1;

  opterr = 0;
  while (r < 0 && (c = getopt_long (argc, argv, ":hVo:", options, NULL)) != -1)
    r = take_option (c, argv, options, a);
  if (r >= 0)
    return r;
  if (argc - optind != 1)
    return tool_usage_error ("report", "exactly one POOL is needed");
  a->disk.path = argv[optind];
  if (strcmp (a->out, "-") == 0 && !a->disk.json && isatty (STDOUT_FILENO))
    return tool_usage_error ("report", "-o must name the file to write, as a "
                             "terminal does not show a page");
  return -1;
}

/* Returns whether two paths lead to the same file. */
static bool
same_file (const char *a, const char *b)
{
  struct stat x, y;

  return a && b && stat (a, &x) == 0 && stat (b, &y) == 0 &&
    x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int
report (struct disk_pool *p)
{
  const char *out = p->args->operands[0];
  struct output_file *file = NULL;
  struct pool_report rep;
  struct fault f = { 0 };
  FILE *fp;
  int r;

  tool_catch_signals ();
  r = output_file_open (out, true, &file, &fp, &f);
  if (r < 0)
    return tool_fault (NULL, r, &f);
  r = report_collect (p, &rep, &f);
  if (r == 0)
    (p->args->json ? report_json : report_page) (&rep, fp);
  report_free (&rep);
  if (r < 0) {
    output_file_cancel (file);
    return r == -EINTR ? TOOL_INTERRUPTED : disk_fault (p, r, &f);
  }
  r = output_file_finish (file, &f);
  return r < 0 ? tool_fault (NULL, r, &f) : TOOL_OK;
}

int
tool_report (int argc, char *argv[])
{
  struct args a = { .disk.command = "report", .out = "-" };
  char *operands[1];
  int r = parse_args (argc, argv, &a);

  if (r >= 0)
    return r;
  if (same_file (a.out, a.disk.path) || same_file (a.out, a.disk.store_path))
    return tool_error (a.out, "is the image itself, or its store file");
  operands[0] = (char *) a.out;
  a.disk.operands = operands;
  a.disk.nr_operands = 1;
  return disk_with_pool (&a.disk, false, report);
}
