/* SPDX-License-Identifier: BSD-3-Clause */
/* Parses the command line of dedup-load, and checks everything that can be
 * checked without the server; load.c checks the rest. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"

#define K UINT64_C (1024)
#define M (K * 1024)
#define G (M * 1024)

static const struct mode modes[] = {
  /* name        does      checks         random batch block depth */
  { "seqread",   OP_READ,  CHECK_NOTHING, false, 0,  M,     8 },
  { "randread",  OP_READ,  CHECK_NOTHING, true,  0,  4 * K, 32 },
  { "seqwrite",  OP_WRITE, CHECK_NOTHING, false, 0,  M,     8 },
  { "randwrite", OP_WRITE, CHECK_NOTHING, true,  0,  4 * K, 32 },
  { "syncwrite", OP_WRITE, CHECK_NOTHING, true,  1,  4 * K, 1 },
  { "batchsync", OP_WRITE, CHECK_NOTHING, true,  16, 4 * K, 16 },
  { "verify",    OP_READ,  CHECK_CONTENT, false, 0,  M,     8 },
  { "verifyzero", OP_READ, CHECK_ZERO,    false, 0,  M,     8 },
  { "trim",      OP_TRIM,  CHECK_NOTHING, false, 0,  G,     1 },
  { "zero",      OP_ZERO,  CHECK_NOTHING, false, 0,  G,     1 },
};
#define NR_MODES (sizeof modes / sizeof modes[0])

static void
help (void)
{
  printf (
    "dedup-load --uri=URI MODE [OPTION]...\n"
    "\n"
    "Put load on an NBD server; print one line of JSON.\n"
    "\n"
    "  seqread, randread        read the region's blocks, once\n"
    "  seqwrite, randwrite      write them, once, then flush\n"
    "  syncwrite                a write, then a flush, and so on\n"
    "  batchsync                16 writes at once, then a flush, and so on\n"
    "  verify, verifyzero       read; fail if the contents are wrong\n"
    "  trim, zero               discard or zero the region, then flush\n"
    "\n"
    "  --block=SIZE             bytes of a request, a multiple of 4k\n"
    "  --depth=N                requests in flight on each connection\n"
    "  --connections=N          connections, each with a thread (1)\n"
    "  --offset=SIZE            where the region starts (0)\n"
    "  --size=SIZE              its length (up to the end)\n"
    "  --ops=N                  end after N requests\n"
    "  --seconds=T              or after T seconds.  Reads start again at\n"
    "                           the end of the region, writes end there\n"
    "  --order=seq|random       order of the blocks, if not the mode's\n"
    "  --seed=N                 seed of the random order (1)\n"
    "  --reorder=N              the blocks that --ops, --order and --seed\n"
    "                           choose, but in another order\n"
    "  --no-flush               no flush at the end\n"
    "\n"
    "Contents, to be written or to be found:\n"
    "  --dup=none               every 4 KiB is new (the default)\n"
    "  --dup=all                equal to those of the source range\n"
    "  --dup=half               either, by a coin for each run\n"
    "  --dup=scatter            runs of the source range, shuffled\n"
    "  --gen=N                  generation: contents of other generations\n"
    "                           differ (1)\n"
    "  --source=SIZE            offset of the source range (0)\n"
    "  --source-gen=N           generation that it was written with (1)\n"
    "  --dup-run=SIZE           length of a run (4k)\n"
    "\n"
    "The blocks that were written are those that a later verify with the\n"
    "same options reads; with all of the region written, any block size and\n"
    "order will do.\n");
}

void
die (const char *fmt, ...)
{
  va_list args;

  fputs ("dedup-load: ", stderr);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fputc ('\n', stderr);
  /* Not exit: other threads may be at work. */
  _exit (EXIT_FAILURE);
}

/* --- Values ------------------------------------------------------------ */

static uint64_t
parse_u64 (const char *option, const char *s, char **end)
{
  uint64_t n;

  errno = 0;
  n = strtoull (s, end, 10);
  if (*s < '0' || *s > '9' || errno)
    die ("--%s: '%s' is not a number", option, s);
  return n;
}

static uint64_t
parse_number (const char *option, const char *s, uint64_t min, uint64_t max)
{
  char *end;
  uint64_t n = parse_u64 (option, s, &end);

  if (*end || n < min || n > max)
    die ("--%s: '%s' is not a number from %llu to %llu", option, s,
         (unsigned long long) min, (unsigned long long) max);
  return n;
}

static uint64_t
parse_size (const char *option, const char *s)
{
  static const char suffixes[] = "kmgt";
  char *end;
  uint64_t n = parse_u64 (option, s, &end), unit = 1;
  const char *suffix;

  if (*end) {
    suffix = strchr (suffixes, *end | 0x20);
    if (suffix == NULL || end[1])
      die ("--%s: '%s' is not a size", option, s);
    unit <<= 10 * (suffix - suffixes + 1);
  }
  if (!mul_u64 (n, unit, &n) || n > INT64_MAX || n % CONTENT_UNIT)
    die ("--%s: '%s' is not a multiple of 4k, or too large", option, s);
  return n;
}

static double
parse_seconds (const char *s)
{
  char *end;
  double t = strtod (s, &end);

  if (*end || !(t > 0 && t < 1e6))
    die ("--seconds: '%s' is not a time", s);
  return t;
}

static enum content_dup
parse_dup (const char *s)
{
  static const char *const names[] = {
    [DUP_NONE] = "none", [DUP_ALL] = "all", [DUP_HALF] = "half",
    [DUP_SCATTER] = "scatter",
  };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; i++)
    if (strcmp (s, names[i]) == 0)
      return (enum content_dup) i;
  die ("--dup: '%s' is not none, all, half or scatter", s);
}

static bool
parse_order (const char *s)
{
  if (strcmp (s, "random") == 0)
    return true;
  if (strcmp (s, "seq") != 0)
    die ("--order: '%s' is not seq or random", s);
  return false;
}

static const struct mode *
find_mode (const char *name)
{
  size_t i;

  for (i = 0; i < NR_MODES; i++)
    if (strcmp (name, modes[i].name) == 0)
      return &modes[i];
  die ("'%s' is not a mode; see --help", name);
}

/* --- Options ----------------------------------------------------------- */

enum {
  OPT_URI = 256, OPT_BLOCK, OPT_DEPTH, OPT_CONNECTIONS, OPT_OFFSET, OPT_SIZE,
  OPT_OPS, OPT_SECONDS, OPT_ORDER, OPT_SEED, OPT_REORDER, OPT_NO_FLUSH,
  OPT_DUP, OPT_GEN, OPT_SOURCE, OPT_SOURCE_GEN, OPT_DUP_RUN,
};

static const struct option long_options[] = {
  { "help", no_argument, NULL, 'h' },
  { "uri", required_argument, NULL, OPT_URI },
  { "block", required_argument, NULL, OPT_BLOCK },
  { "depth", required_argument, NULL, OPT_DEPTH },
  { "connections", required_argument, NULL, OPT_CONNECTIONS },
  { "offset", required_argument, NULL, OPT_OFFSET },
  { "size", required_argument, NULL, OPT_SIZE },
  { "ops", required_argument, NULL, OPT_OPS },
  { "seconds", required_argument, NULL, OPT_SECONDS },
  { "order", required_argument, NULL, OPT_ORDER },
  { "seed", required_argument, NULL, OPT_SEED },
  { "reorder", required_argument, NULL, OPT_REORDER },
  { "no-flush", no_argument, NULL, OPT_NO_FLUSH },
  { "dup", required_argument, NULL, OPT_DUP },
  { "gen", required_argument, NULL, OPT_GEN },
  { "source", required_argument, NULL, OPT_SOURCE },
  { "source-gen", required_argument, NULL, OPT_SOURCE_GEN },
  { "dup-run", required_argument, NULL, OPT_DUP_RUN },
  { NULL },
};

static bool
content_option (struct content *c, int opt, const char *name, const char *arg)
{
  switch (opt) {
  case OPT_DUP:
    c->dup = parse_dup (arg);
    return true;
  case OPT_GEN:
    c->gen = parse_number (name, arg, 0, UINT64_MAX);
    return true;
  case OPT_SOURCE:
    c->source_unit = parse_size (name, arg) / CONTENT_UNIT;
    return true;
  case OPT_SOURCE_GEN:
    c->source_gen = parse_number (name, arg, 0, UINT64_MAX);
    return true;
  case OPT_DUP_RUN:
    c->run_units = parse_size (name, arg) / CONTENT_UNIT;
    return true;
  default:
    return false;
  }
}

static bool
region_option (struct options *o, int opt, const char *name, const char *arg)
{
  switch (opt) {
  case OPT_OFFSET:
    o->offset = parse_size (name, arg);
    return true;
  case OPT_SIZE:
    o->size = parse_size (name, arg);
    return true;
  case OPT_OPS:
    o->ops = parse_number (name, arg, 1, UINT64_MAX);
    return true;
  case OPT_SECONDS:
    o->seconds = parse_seconds (arg);
    return true;
  case OPT_SEED:
    o->seed = parse_number (name, arg, 0, UINT64_MAX);
    return true;
  case OPT_REORDER:
    o->reorder = parse_number (name, arg, 0, UINT64_MAX);
    return true;
  default:
    return false;
  }
}

/* Sets options of requests.  Those whose default is the mode's are completed by
 * apply_mode. */
static bool
request_option (struct options *o, int opt, const char *name, const char *arg,
                const char **order)
{
  switch (opt) {
  case OPT_URI:
    o->uri = arg;
    return true;
  case OPT_BLOCK:
    o->block = parse_size (name, arg);
    return true;
  case OPT_DEPTH:
    o->depth = (unsigned) parse_number (name, arg, 1, MAX_DEPTH);
    return true;
  case OPT_CONNECTIONS:
    o->connections = (unsigned) parse_number (name, arg, 1, MAX_CONNECTIONS);
    return true;
  case OPT_ORDER:
    *order = arg;
    return true;
  case OPT_NO_FLUSH:
    o->flush = false;
    return true;
  default:
    return false;
  }
}

static void
apply_mode (struct options *o, const char *name, const char *order)
{
  uint64_t max_block;

  o->mode = find_mode (name);
  if (o->block == 0)
    o->block = o->mode->block;
  if (o->depth == 0)
    o->depth = o->mode->depth;
  if (o->mode->batch)           /* a batch is in flight all at once */
    o->depth = o->mode->batch;
  o->random = order ? parse_order (order) : o->mode->random;
  max_block = o->mode->op == OP_READ || o->mode->op == OP_WRITE ?
    MAX_DATA_BLOCK : MAX_RANGE_BLOCK;
  if (o->block > max_block)
    die ("--block: at most %llu with %s", (unsigned long long) max_block,
         name);
}

static void
check_combination (const struct options *o)
{
  if (o->uri == NULL)
    die ("--uri is missing");
  if (o->content.run_units == 0)
    die ("--dup-run: must not be 0");
  if (o->reorder && o->seconds > 0)
    die ("--reorder needs a fixed number of requests: not with --seconds");
}

void
options_parse (int argc, char *argv[], struct options *o)
{
  const char *order = NULL, *name;
  int c, i;

  *o = (struct options) {
    .connections = 1, .flush = true, .seed = 1,
    .content = { .gen = 1, .source_gen = 1, .run_units = 1 },
  };
  while ((c = getopt_long (argc, argv, "h", long_options, &i)) != -1) {
    if (c == 'h') {
      help ();
      exit (EXIT_SUCCESS);
    }
    name = c == '?' ? NULL : long_options[i].name;
    if (name == NULL || !(content_option (&o->content, c, name, optarg) ||
                          region_option (o, c, name, optarg) ||
                          request_option (o, c, name, optarg, &order)))
      die ("see --help");
  }
  if (optind != argc - 1)
    die ("one mode is needed; see --help");
  apply_mode (o, argv[optind], order);
  check_combination (o);
}
