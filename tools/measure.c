/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup measure: prints how many bytes an image of a given disk takes.
 *
 * This file parses the options, which are those of create, and prints two
 * figures: the size of the empty image, and the most that it can grow to.  All
 * arithmetic is in dedup/measure.c, beside the code that lays out an image, so
 * that the two cannot differ.  No image is opened, nothing is read or written.
 */
#include "tool-image.h"

#include <getopt.h>
#include <inttypes.h>

#include "dedup.h"

static void
help (void)
{
  printf ("qcow2-dedup measure [-o OPTION=VALUE,...] [--output=human|json] "
          "SIZE\n"
          "\n"
          "Print how many bytes the image of a disk of SIZE takes when it is "
          "empty, and how\nmany it can take at most.  -o takes the options of "
          "create.\n"
          "\n"
          "See qcow2-dedup-measure(1).\n");
}

static int
print (const struct dedup_measure *m, bool json)
{
  if (json)
    printf ("{\n    \"required\": %" PRIu64 ",\n"
            "    \"fully-allocated\": %" PRIu64 "\n}\n",
            m->required, m->fully_allocated);
  else
    printf ("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
            m->required, m->fully_allocated);
  return tool_finish_stdout (TOOL_OK);
}

static int
parse_args (int argc, char *argv[], struct dedup_create_params *p, bool *json)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "output", required_argument, NULL, 'O' },
    { NULL },
  };
  int c, r;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":hVo:", options, NULL)) != -1)
    switch (c) {
    case 'h':
      help ();
      return tool_finish_stdout (TOOL_OK);
    case 'V':
      tool_version ();
      return tool_finish_stdout (TOOL_OK);
    case 'O':
      if (!tool_parse_output (optarg, json))
        return tool_usage_error ("measure", "--output must be human or json, "
                                 "not '%s'", optarg);
      break;
    case 'o':
      r = tool_create_options ("measure", optarg, p);
      if (r >= 0)
        return r;
      break;
    default:
      return tool_bad_option ("measure", c, argv, options);
    }
  if (argc - optind != 1)
    return tool_usage_error ("measure", "exactly one SIZE is needed");
  if (!tool_parse_size (argv[optind], &p->image.virtual_size))
    return tool_usage_error ("measure", "'%s' is not a size", argv[optind]);
  return -1;
}

int
tool_measure (int argc, char *argv[])
{
  struct dedup_create_params p;
  struct dedup_measure m;
  struct fault f = { 0 };
  bool json = false;
  int r;

  tool_create_defaults (&p);
  r = parse_args (argc, argv, &p, &json);
  if (r >= 0)
    return r;
  r = dedup_measure (&p, &m, &f);
  return r < 0 ? tool_fault (NULL, r, &f) : print (&m, json);
}
