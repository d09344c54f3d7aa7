/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup create: an empty image with a store.
 *
 * Never touches a file that holds something, and a device that does only with
 * --force (dedup/make.c).
 */
#include "tool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "dedup.h"

/* The least and the most that the option allows; the libraries know more
 * about what fits an image (dedup-limits.h, qcow2-limits.h). */
#define MIN_CLUSTER 512u
#define MAX_CLUSTER (2u << 20)
#define MAX_INCARNATIONS 1024
#define MIN_ORDER 4
#define MAX_ORDER 20
#define MIN_JOURNAL_AREAS 2
#define MAX_JOURNAL_AREAS 128

enum { OPT_CLUSTER_SIZE, OPT_HASH, OPT_MAX_INCARNATIONS, OPT_REFCOUNT_BITS,
       OPT_LOG_STORE_ORDER, OPT_JOURNAL_AREAS };

static char *const tokens[] = {
  [OPT_CLUSTER_SIZE] = (char *) "cluster-size",
  [OPT_HASH] = (char *) "hash",
  [OPT_MAX_INCARNATIONS] = (char *) "max-incarnations",
  [OPT_REFCOUNT_BITS] = (char *) "refcount-bits",
  [OPT_LOG_STORE_ORDER] = (char *) "log-store-order",
  [OPT_JOURNAL_AREAS] = (char *) "journal-areas",
  NULL,
};

static void
help (void)
{
  printf ("qcow2-dedup create [--force] [-o OPTION=VALUE,...] FILE SIZE\n"
          "\n"
          "Create an empty deduplicating qcow2 image.  SIZE is in bytes, or "
          "has a suffix\nk, M, G or T.\n"
          "\n"
          "    --force               overwrite what is on FILE, if that is a "
          "device\n"
          "\n"
          "    cluster-size=SIZE     power of two, 512 to 2M (4k)\n"
          "    hash=NAME             " DEDUP_HASH_NAMES "\n"
          "                          (sha256)\n"
          "    max-incarnations=N    0 to 1024, 0: no limit (0)\n"
          "    refcount-bits=N       2, 4, 8, 16, 32 or 64 (16)\n"
          "    log-store-order=N     4 to 20 (by SIZE)\n"
          "    journal-areas=N       2 to 128 (16)\n"
          "\n"
          "See qcow2-dedup-create(1).\n");
}

static unsigned
log2_of (uint64_t pow2)
{
  return (unsigned) __builtin_ctzll (pow2);
}

static bool
parse_cluster_size (const char *s, struct dedup_create_params *p)
{
  uint64_t n;

  if (!tool_parse_size (s, &n) || !is_pow2 (n) || n < MIN_CLUSTER ||
      n > MAX_CLUSTER)
    return false;
  p->image.cluster_bits = log2_of (n);
  return true;
}

/* One bit leaves no room for the anchor's reference beside a guest's. */
static bool
parse_refcount_bits (const char *s, struct dedup_create_params *p)
{
  uint64_t n;

  if (!tool_parse_number (s, 2, 64, &n) || !is_pow2 (n))
    return false;
  p->image.refcount_order = log2_of (n);
  return true;
}

static bool
parse_number (const char *s, uint64_t min, uint64_t max, unsigned *out)
{
  uint64_t n;

  if (!tool_parse_number (s, min, max, &n))
    return false;
  *out = (unsigned) n;
  return true;
}

static bool
parse_option (int option, const char *value, struct dedup_create_params *p)
{
  switch (option) {
  case OPT_CLUSTER_SIZE:
    return parse_cluster_size (value, p);
  case OPT_HASH:
    return dedup_hash_parse (value, &p->hash) == 0;
  case OPT_MAX_INCARNATIONS:
    return parse_number (value, 0, MAX_INCARNATIONS, &p->max_incarnations);
  case OPT_REFCOUNT_BITS:
    return parse_refcount_bits (value, p);
  case OPT_LOG_STORE_ORDER:
    return parse_number (value, MIN_ORDER, MAX_ORDER, &p->order);
  case OPT_JOURNAL_AREAS:
    return parse_number (value, MIN_JOURNAL_AREAS, MAX_JOURNAL_AREAS,
                         &p->journal_areas);
  default:
    return false;
  }
}

/* qemu-img has cluster_size where others write cluster-size: both will do. */
static void
use_hyphens (char *arg)
{
  bool in_name = true;

  for (; *arg; arg++) {
    if (*arg == '=' || *arg == ',')
      in_name = *arg == ',';
    else if (in_name && *arg == '_')
      *arg = '-';
  }
}

void
tool_create_defaults (struct dedup_create_params *p)
{
  *p = (struct dedup_create_params) {
    .image = { .cluster_bits = 12, .refcount_order = 4 },
    .hash = DEDUP_HASH_SHA256,
  };
}

int
tool_create_options (const char *subcommand, char *arg,
                     struct dedup_create_params *p)
{
  char *value;
  int option;

  use_hyphens (arg);
  while (*arg) {
    option = getsubopt (&arg, tokens, &value);
    if (option < 0)
      return tool_usage_error (subcommand, "-o: '%s' is not an option", value);
    if (!value || !parse_option (option, value, p))
      return tool_usage_error (subcommand, "-o: %s=%s is not a valid value",
                               tokens[option], value ? value : "");
  }
  return -1;
}

static int
there_is_something (const char *path)
{
  struct stat st;

  if (stat (path, &st) == 0 && S_ISBLK (st.st_mode))
    return tool_error (path, "the device is not empty: with --force what is "
                       "on it is overwritten");
  return tool_error (path, "exists already");
}

static int
create_file (const char *path, const struct dedup_create_params *p, bool force)
{
  struct fault f = { 0 };
  struct io_store *io;
  bool named;
  int r;

  r = dedup_make (path, p, force, &io, &named, &f);
  if (r == -EEXIST)
    return there_is_something (path);
  if (r < 0)
    return tool_fault (path, r, &f);
  io_close (io);
  return TOOL_OK;
}

static int
parse_args (int argc, char *argv[], struct dedup_create_params *p,
            const char **path, bool *force)
{
  static const struct option options[] = {
    { "force", no_argument, NULL, 'f' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { NULL },
  };
  int c, r;

  opterr = 0;
  while ((c = getopt_long (argc, argv, "hVo:", options, NULL)) != -1)
    switch (c) {
    case 'h':
      help ();
      return tool_finish_stdout (TOOL_OK);
    case 'V':
      tool_version ();
      return tool_finish_stdout (TOOL_OK);
    case 'f':
      *force = true;
      break;
    case 'o':
      r = tool_create_options ("create", optarg, p);
      if (r >= 0)
        return r;
      break;
    default:
      return tool_usage_error ("create", "'%s' is not a valid option",
                               argv[optind - 1]);
    }
  if (argc - optind != 2)
    return tool_usage_error ("create", "FILE and SIZE are needed");
  if (!tool_parse_size (argv[optind + 1], &p->image.virtual_size))
    return tool_usage_error ("create", "'%s' is not a size",
                             argv[optind + 1]);
  *path = argv[optind];
  return -1;
}

int
tool_create (int argc, char *argv[])
{
  struct dedup_create_params p;
  const char *path = NULL;
  bool force = false;
  int r;

  tool_create_defaults (&p);
  r = parse_args (argc, argv, &p, &path, &force);
  return r >= 0 ? r : create_file (path, &p, force);
}
