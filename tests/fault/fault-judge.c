/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges what is left: it must be a disk that opens, recovers, holds a prefix,
 * takes writes, links what it had, closes cleanly and checks clean.  Also has
 * the loops that decide which plans are played, and at what scale.
 */
#include "fault-world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"

#define SECONDS_PER_PLAY 30

/* --- judging ------------------------------------------------------------- */

struct dedup_pool *
open_again (struct world *w, struct io_store *io, struct io_store *data,
            bool writable, const char *which)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_pool *d = NULL;

  open_params (w->shape, &p);
  p.writable = writable;
  if (dedup_open (io, &p, &d, &f) < 0)
    die (w, "%s it does not open%s: %s", which, writable ? "" : " read-only",
         f.msg);
  data_attach (d, data);
  return d;
}

static void
report (void *opaque, bool is_leak, const char *line)
{
  fprintf (stderr, "%s: %s\n", is_leak ? "leak" : "problem", line);
}

static void
judge_check (struct world *w, struct io_store *io, const char *which)
{
  struct dedup_pool *d = open_again (w, io, NULL, false, which);
  struct qcow2_check_params p = { .problem = report };
  struct dedup_check_result r;
  struct dedup_stats s;
  struct fault f = { 0 };

  dedup_get_stats (d, &s);
  if (!s.has_store || s.needs_recovery)
    die (w, "%s and a clean close: no store, or not clean", which);
  if (dedup_check (d, &p, &r, &f) < 0)
    die (w, "%s: check: %s", which, f.msg);
  if (r.image.corruptions || r.image.leaks || r.image.errors ||
      r.store_errors)
    die (w, "%s: not clean", which);
  dedup_free (d);
}

void
read_disk (struct world *w, struct dedup_pool *d, uint64_t ids[NR],
           const char *which)
{
  int r = read_slots (w, d, ids);

  if (r < 0)
    die (w, "%s: reading: %s", which, strerror (-r));
}

/* Known and new contents over part of the disk, and read all of it back. */
void
judge_writing (struct world *w, struct dedup_pool *d, uint64_t ids[NR],
               const char *which)
{
  uint8_t buf[48 * CLUSTER];
  uint64_t got[NR];
  const size_t first = w->shape->disks ? 0 : 20;
  size_t i;

  for (i = 0; i < 48; i++) {
    ids[first + i] = i % 3 == 0 ? 900000 + i : 1 + i % 40;
    fill_cluster (buf + i * CLUSTER, ids[first + i]);
  }
  if (dedup_write (d, 0, buf, first, 48) < 0 || dedup_flush (d) < 0)
    die (w, "%s: it takes no writes", which);
  read_disk (w, d, got, which);
  if (memcmp (got, ids, sizeof got) != 0)
    die (w, "%s: what is written then reads as another", which);
}

/* A file that was never made into an image need not be one. */
static bool
never_was (struct world *w, struct io_store *io)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_pool *d;

  if (w->shape->base != BASE_NOTHING || w->sessions > 0)
    return false;
  open_params (w->shape, &p);
  p.writable = false;
  if (dedup_open (io, &p, &d, &f) < 0)
    return true;
  dedup_free (d);
  return false;
}

void
judge (struct world *w, struct io_store *io, const char *which)
{
  uint64_t got[NR], again[NR];
  struct dedup_pool *d;

  if (never_was (w, io))
    return;
  d = open_again (w, io, NULL, false, which);
  read_disk (w, d, got, which);
  dedup_free (d);
  if (!is_prefix (w, got))
    die (w, "%s: what is left is no prefix", which);
  judge_bitmaps (w, io, got, which);
  d = open_again (w, io, NULL, true, which);
  read_disk (w, d, again, which);
  if (memcmp (got, again, sizeof got) != 0)
    die (w, "%s: recovered, it holds something else", which);
  judge_writing (w, d, again, which);
  if (dedup_disks_settle (d) < 0)
    die (w, "%s: it does not pay for all tables", which);
  if (dedup_finish (d) < 0)
    die (w, "%s: it does not close", which);
  dedup_free (d);
  judge_check (w, io, which);
  judge_bitmaps (w, io, again, which);
}

/* --- which plans --------------------------------------------------------- */

const struct shape fault_shapes[] = {
  { .name = "freezes", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 2, .nr_ops = 160, .unique_in = 2 },
  { .name = "converts", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 4, .nr_ops = 200, .unique_in = 2,
    .limit_removed = true },
  { .name = "packs", .base = BASE_STORE, .order = 8, .journal_areas = 2,
    .nr_ops = 500, .unique_in = 20, .flush_always = true },
  { .name = "waits", .base = BASE_STORE, .order = 5, .journal_areas = 4,
    .nr_ops = 330, .unique_in = 12, .flush_always = true, .no_jobs = true },
  { .name = "exact", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 3, .nr_ops = 120, .unique_in = 3, .exact = true,
    .indexes = true },
  { .name = "compresses", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 2, .nr_ops = 120, .unique_in = 2, .compress = true },
  { .name = "complater", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 2, .nr_ops = 45, .unique_in = 2, .compress = true,
    .later = true },
  { .name = "compdisks", .base = BASE_STORE, .order = 5, .journal_areas = 3,
    .nr_ops = 120, .unique_in = 2, .disks = 4, .compress = true },
  { .name = "disks", .base = BASE_STORE, .order = 5, .journal_areas = 4,
    .nr_ops = 150, .unique_in = 3, .disks = 4 },
  { .name = "exactdisks", .base = BASE_STORE, .order = 4, .journal_areas = 4,
    .max_incarnations = 3, .nr_ops = 120, .unique_in = 3, .disks = 4,
    .exact = true },
  { .name = "fewdisks", .base = BASE_STORE, .order = 5, .journal_areas = 3,
    .nr_ops = 200, .unique_in = 3, .disks = 4, .no_jobs = true,
    .flush_always = true },
  { .name = "adopts", .base = BASE_PLAIN, .order = 5, .journal_areas = 3,
    .nr_ops = 20, .unique_in = 3, .indexes = true },
  { .name = "creates", .base = BASE_NOTHING, .order = 5, .journal_areas = 3,
    .nr_ops = 5, .unique_in = 3 },
  { .name = "mends", .base = BASE_QEMU, .order = 5, .journal_areas = 3,
    .nr_ops = 20, .unique_in = 3, .dirty = true, .bitmaps = true,
    .options = "lazy_refcounts=on", .whole = true },
  { .name = "v2", .base = BASE_QEMU, .nr_ops = 60, .unique_in = 2,
    .direct = true, .snapshot = true, .options = "compat=0.10" },
  { .name = "onebit", .base = BASE_QEMU, .nr_ops = 60, .unique_in = 2,
    .direct = true, .dirty = true, .bitmaps = true,
    .options = "refcount_bits=1,lazy_refcounts=on" },
  { .name = "datafile", .base = BASE_QEMU, .nr_ops = 60, .unique_in = 2,
    .direct = true, .empty = true, .bitmaps = true, .data_file = true,
    .options = "data_file=image.data" },
  { .name = "rawdata", .base = BASE_QEMU, .nr_ops = 60, .unique_in = 2,
    .direct = true, .data_file = true,
    .options = "data_file=image.data,data_file_raw=on" },
};
const size_t nr_fault_shapes = sizeof fault_shapes / sizeof fault_shapes[0];

static struct {
  bool all;
  double factor;
  uint64_t seed;
} scale = { .factor = 1, .seed = 88172645463325252u };

void
scale_init (void)
{
  const char *s = getenv ("FAULT_SCALE"), *seed = getenv ("FAULT_SEED");

  if (s && strcmp (s, "all") == 0)
    scale.all = true;
  else if (s)
    scale.factor = atof (s);
  if (seed)
    scale.seed = strtoull (seed, NULL, 0) | 1;
  printf ("FAULT_SCALE=%s FAULT_SEED=%llu\n", s ? s : "1",
          (unsigned long long) scale.seed);
}

unsigned long
scaled (unsigned long n)
{
  return MAX_OF (1, (unsigned long) ((double) n * scale.factor));
}

static struct world *
play_plan (const struct shape *s, const struct plan *p)
{
  struct world *w = world_new (s, p);

  alarm (SECONDS_PER_PLAY);     /* what hangs is killed, with its case known */
  if (getenv ("FAULT_VERBOSE"))
    fprintf (stderr, "%s:%s:%s:%s:%lu\n", s->name, fault_kind_names[p->kind],
             p->err ? strerrorname_np (p->err) : "-",
             plan_mode (p), p->k);
  play (w);
  alarm (0);
  return w;
}

static unsigned long
count_calls (const struct shape *s, unsigned kind)
{
  struct plan none = { .kind = kind };
  struct world *w = play_plan (s, &none);
  unsigned long n = w->calls[kind];

  world_free (w);
  return n;
}

#define SAMPLES 20     /* of each error, mode and kind, unless all are played */

/* One of each of SAMPLES parts of 1..N, by chance. */
static void
play_sampled (const struct shape *s, struct plan *p, unsigned long n,
              unsigned long *played, unsigned long *hits)
{
  unsigned long samples = scale.all || s->whole ? n : MIN_OF (n, scaled (SAMPLES)), i;
  unsigned long from, to;
  struct world *w;

  for (i = 0; i < samples; i++) {
    from = n * i / samples;
    to = n * (i + 1) / samples;
    p->k = 1 + from + rnd (&scale.seed, to - from);
    w = play_plan (s, p);
    ++*played;
    *hits += w->hit;
    world_free (w);
  }
}

void
play_all (const struct shape *s, unsigned kind, const int *errs)
{
  unsigned long n, played = 0, hits = 0;
  struct plan p = { .kind = kind };
  const char *only = getenv ("FAULT_WORKLOAD");

  if (only && strcmp (only, s->name) != 0)
    return;
  stage_init (s);
  n = count_calls (s, kind);
  for (; *errs; errs++) {
    p.err = *errs;
    p.for_ever = false;
    play_sampled (s, &p, n, &played, &hits);
    p.for_ever = true;
    play_sampled (s, &p, n, &played, &hits);
  }
  printf ("%-8s %-8s %6lu calls, %6lu plays, %6lu hit\n", s->name,
          fault_kind_names[kind], n, played, hits);
  fflush (stdout);
}

void
play_lifted (const struct shape *s)
{
  struct plan p = { .kind = IO_PWRITE, .err = ENOSPC, .lifted = true };
  unsigned long n, played = 0, hits = 0;
  const char *only = getenv ("FAULT_WORKLOAD");

  if (only && strcmp (only, s->name) != 0)
    return;
  stage_init (s);
  n = count_calls (s, IO_PWRITE);
  play_sampled (s, &p, n, &played, &hits);
  p.flaky = true;
  play_sampled (s, &p, n, &played, &hits);
  printf ("%-8s no space %6lu calls, %6lu plays, %6lu hit\n", s->name, n,
          played, hits);
  fflush (stdout);
}

static int
errno_by_name (const char *name)
{
  static const int errs[] = { EIO, ENOSPC, ENOMEM, EOPNOTSUPP };
  size_t i;

  for (i = 0; i < sizeof errs / sizeof errs[0]; i++)
    if (strcmp (strerrorname_np (errs[i]), name) == 0)
      return errs[i];
  return EIO;
}

bool
play_one (void)
{
  const char *c = getenv ("FAULT_CASE");
  char name[16], kind[16], err[16], mode[16];
  struct plan p = { 0 };
  size_t i;

  if (c == NULL)
    return false;
  if (sscanf (c, "%15[^:]:%15[^:]:%15[^:]:%15[^:]:%lu", name, kind, err, mode,
              &p.k) != 5) {
    fprintf (stderr, "FAULT_CASE is not WORKLOAD:CALL:ERRNO:once|ever:K\n");
    exit (2);
  }
  for (i = 0; i < FAULT_KINDS; i++)
    if (strcmp (fault_kind_names[i], kind) == 0)
      p.kind = (unsigned) i;
  p.err = errno_by_name (err);
  p.for_ever = strcmp (mode, "ever") == 0;
  p.flaky = strcmp (mode, "flaky") == 0;
  p.lifted = p.flaky || strcmp (mode, "lifted") == 0;
  for (i = 0; i < nr_fault_shapes; i++)
    if (strcmp (fault_shapes[i].name, name) == 0) {
      stage_init (&fault_shapes[i]);
      world_free (play_plan (&fault_shapes[i], &p));
    }
  return true;
}
