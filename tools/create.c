/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup create: makes an empty image with a deduplication store.
 *
 * This file parses the options and prints the message when the target is not
 * empty; dedup/make.c writes the image, or the pool for many disks.  A file that holds data is never
 * overwritten, and a device that does only with --force.
 */
#include "tool-image.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checked.h"
#include "dedup.h"

/* The ranges of the options.  The libraries check besides that the values fit
 * each other (dedup-limits.h, qcow2-limits.h). */
#define MIN_CLUSTER 512u
#define MAX_CLUSTER (2u << 20)
#define MAX_INCARNATIONS 1024
#define MIN_ORDER 4
#define MAX_ORDER 20
#define MIN_JOURNAL_AREAS 2
#define MAX_JOURNAL_AREAS 128

/* The longest disk that a pool is made for, if the caller does not say. */
#define MAX_DISK_SIZE (UINT64_C (1) << 40)

#define POOL_REFCOUNT_ORDER 5  /* paths and debts of shared tables fit */

enum { OPT_CLUSTER_SIZE, OPT_COMPRESS, OPT_HASH, OPT_MAX_INCARNATIONS, OPT_REFCOUNT_BITS,
       OPT_LOG_STORE_ORDER, OPT_JOURNAL_AREAS };

static char *const tokens[] = {
  [OPT_CLUSTER_SIZE] = (char *) "cluster-size",
  [OPT_COMPRESS] = (char *) "compress",
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
          "qcow2-dedup create --pool [--max-disk-size=SIZE] [--force]\n"
          "                   [-o OPTION=VALUE,...] FILE\n"
          "\n"
          "Create an empty deduplicating qcow2 image for a disk of SIZE: a "
          "number of bytes,\nor one with the suffix k, M, G, T, P or E.  With "
          "--pool it is for many disks,\nwhich are added later.\n"
          "\n"
          "    --pool                create a pool for many disks\n"
          "    --max-disk-size=SIZE  the longest disk that a pool can hold "
          "(1T)\n"
          "    --force               overwrite the data on FILE, if that is a "
          "device\n"
          "\n"
          "Options of -o, with their defaults:\n"
          "    cluster-size=SIZE     power of two, 512 to 2M (4k)\n"
          "    compress=NAME         zstd, zlib or off, for data written later "
          "(off)\n"
          "    hash=NAME             " DEDUP_HASH_NAMES "\n"
          "                          (sha256)\n"
          "    max-incarnations=N    0 to 1024, 0: no limit (0)\n"
          "    refcount-bits=N       2, 4, 8, 16, 32 or 64 (16; 32 or 64 "
          "with --pool (32))\n"
          "    log-store-order=N     4 to 20 (10 to 16, by SIZE)\n"
          "    journal-areas=N       2 to 128 (4 to 16, by SIZE)\n"
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

/* A refcount of one bit cannot count the anchor's reference and a guest's. */
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
  case OPT_COMPRESS:
    return dedup_compress_parse (value, &p->compress) == 0;
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

/* Replaces '_' by '-' in the names of options, as qemu-img's names have '_'. */
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
      return tool_usage_error (subcommand, "-o: '%s' is not a valid option",
                               value);
    if (!value || !parse_option (option, value, p))
      return tool_usage_error (subcommand, "-o: %s=%s is not a valid value",
                               tokens[option], value ? value : "");
  }
  return -1;
}

/* Prints why dedup_make does not overwrite PATH: it cannot be opened, or holds
 * data. */
static int
refuse_existing (const char *path)
{
  struct fault f = { 0 };
  struct io_store *io;
  struct stat st;
  int r;

  r = io_place_open (path, 0, IO_LOCK_NONE, &io, &f);
  if (r < 0)
    return tool_fault (path, r, &f);
  io_close (io);
  if (io_is_uri (path))
    return tool_error (path, "the first or the last MiB of the export is not "
                       "zero; --force overwrites the export");
  if (stat (path, &st) == 0 && S_ISBLK (st.st_mode))
    return tool_error (path, "the first or the last MiB of the device is not "
                       "zero; --force overwrites the device");
  return tool_error (path, "exists already and is not empty; give another "
                     "name");
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
    return refuse_existing (path);
  if (r < 0)
    return tool_fault (path, r, &f);
  io_close (io);
  return TOOL_OK;
}

struct args {
  const char *path;
  bool force, pool;
};

/* Checks what was given for a pool, and sets the rest. */
static int
finish_pool (struct dedup_create_params *p, bool pool)
{
  if (!pool && p->image.max_disk_size > 0)
    return tool_usage_error ("create", "--max-disk-size needs --pool");
  if (!pool)
    return -1;
  if (p->image.refcount_order == 0)
    p->image.refcount_order = POOL_REFCOUNT_ORDER;
  if (p->image.refcount_order < POOL_REFCOUNT_ORDER)
    return tool_usage_error ("create", "a pool needs refcount-bits=32 or 64");
  if (p->image.max_disk_size == 0)
    p->image.max_disk_size = MAX_DISK_SIZE;
  return -1;
}

/* Parses the arguments that are no options: FILE, and the SIZE of an image that
 * is no pool. */
static int
parse_operands (int argc, char *argv[], struct dedup_create_params *p,
                struct args *a)
{
  if (a->pool && argc != 1)
    return tool_usage_error ("create", "--pool needs one argument, FILE");
  if (!a->pool && argc != 2)
    return tool_usage_error ("create", "FILE and SIZE are needed");
  if (!a->pool && !tool_parse_size (argv[1], &p->image.virtual_size))
    return tool_usage_error ("create", "'%s' is not a size", argv[1]);
  a->path = argv[0];
  return -1;
}

static int
parse_args (int argc, char *argv[], struct dedup_create_params *p,
            struct args *a)
{
  static const struct option options[] = {
    { "force", no_argument, NULL, 'f' },
    { "pool", no_argument, NULL, 'p' },
    { "max-disk-size", required_argument, NULL, 'm' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
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
    case 'f':
      a->force = true;
      break;
    case 'p':
      a->pool = true;
      break;
    case 'm':
      if (!tool_parse_size (optarg, &p->image.max_disk_size) ||
          p->image.max_disk_size == 0)
        return tool_usage_error ("create", "--max-disk-size: '%s' is not a "
                                 "size", optarg);
      break;
    case 'o':
      r = tool_create_options ("create", optarg, p);
      if (r >= 0)
        return r;
      break;
    default:
      return tool_bad_option ("create", c, argv, options);
    }
  r = finish_pool (p, a->pool);
  return r >= 0 ? r : parse_operands (argc - optind, argv + optind, p, a);
}

int
tool_create (int argc, char *argv[])
{
  struct dedup_create_params p;
  struct args a = { 0 };
  unsigned refcount_order;
  int r;

  tool_create_defaults (&p);
  refcount_order = p.image.refcount_order;
  p.image.refcount_order = 0;          /* -o sets 1 or more */
  r = parse_args (argc, argv, &p, &a);
  if (r >= 0)
    return r;
  if (p.image.refcount_order == 0)
    p.image.refcount_order = refcount_order;
  return create_file (a.path, &p, a.force);
}
