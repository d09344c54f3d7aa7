/* SPDX-License-Identifier: BSD-3-Clause */
/* For test-index-worlds: chooses what a world is made of, from its seed. */
#ifndef INDEX_KINDS_H
#define INDEX_KINDS_H

#include <stdio.h>

#include "index-world.h"

enum kind {
  LIMITS = 1, BOUNDS = 2, STORE_FILES = 4, READ_FAULTS = 8, WRITE_FAULTS = 16,
  MEMORY_FAULTS = 32, CRASHES = 64, MEANWHILE = 128, PACKS = 256, ROT = 512,
  ALL_KINDS = 1023
};

static const char *const kind_names[] = {
  "limits", "bounds", "store-files", "read-faults", "write-faults",
  "memory-faults", "crashes", "meanwhile", "packs", "rot",
};

struct plan {
  uint64_t seed;
  unsigned kinds;
  bool no_verify;
  uint64_t nr_ops, nr_keys;
  unsigned order;
};

static struct plan
plan_world (uint64_t seed)
{
  const unsigned orders[] = { 4, 4, 5, 6 };
  struct plan p = { .seed = seed };

  rng = seed;
  (void) rnd (2);
  p.kinds = (unsigned) rnd (ALL_KINDS + 1);
  if (rnd (3) == 0)
    p.kinds &= (unsigned) rnd (ALL_KINDS + 1);
  p.no_verify = rnd (4) != 0;
  p.nr_ops = 500 + rnd (12000);
  p.nr_keys = 50 + rnd (3000);
  p.order = orders[rnd (4)];
  return p;
}

/* What repeats it, and what it is. */
static void
describe (const struct plan *p, char *buf, size_t len)
{
  FILE *f = fmemopen (buf, len, "w");
  unsigned i;

  assert_non_null (f);
  fprintf (f, "INDEX_SEED=%" PRIu64 " INDEX_WORLDS=1 (", p->seed);
  for (i = 0; i < sizeof kind_names / sizeof kind_names[0]; i++)
    if (p->kinds & 1u << i)
      fprintf (f, "%s ", kind_names[i]);
  fprintf (f, "verify=%s, order %u, %" PRIu64 " keys, %" PRIu64
           " operations)\n", p->no_verify ? "off" : "on", p->order,
           p->nr_keys, p->nr_ops);
  fclose (f);
}

#endif
