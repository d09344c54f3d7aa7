/* SPDX-License-Identifier: BSD-3-Clause */
/* The stage: contents, base images, and a byte store whose k-th call fails.
 *
 * Beside the bytes that other processes see there are those that a power cut
 * would leave: brought up to date by each sync, and where a sync fails, never
 * given what was written before it, as a host does that throws the dirty
 * pages away and tells it once.
 */
#include "fault-world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"

const char *const fault_kind_names[FAULT_KINDS] = {
  "pread", "pwrite", "sync", "discard", "allocate", "truncate", "malloc",
};

struct world *fault_running;

static struct {
  uint8_t *bytes;
  size_t size;
} stage;

/* --- contents ------------------------------------------------------------ */

void
fill_cluster (uint8_t *p, uint64_t id)
{
  size_t i;
  uint64_t v;

  for (i = 0; i < CLUSTER / 8; i++) {
    v = id ? id * 0x100000001b3u + i * (id | 1) : 0;
    if (i == 0)
      v = id;
    memcpy (p + 8 * i, &v, 8);
  }
}

bool
identify_cluster (const uint8_t *p, uint64_t *id)
{
  uint8_t want[CLUSTER];

  memcpy (id, p, 8);
  fill_cluster (want, *id);
  return memcmp (p, want, CLUSTER) == 0;
}

uint64_t
rnd (uint64_t *rng, uint64_t n)
{
  *rng ^= *rng << 13;
  *rng ^= *rng >> 7;
  *rng ^= *rng << 17;
  return (*rng >> 11) % n;
}

void
die (struct world *w, const char *fmt, ...)
{
  va_list ap;

  w->armed = false;
  fprintf (stderr, "\nFAULT_CASE=%s:%s:%s:%s:%lu\n", w->shape->name,
           fault_kind_names[w->plan.kind],
           w->plan.err ? strerrorname_np (w->plan.err) : "-",
           w->plan.for_ever ? "ever" : "once", w->plan.k);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fprintf (stderr, "\n(after %zu operations, %zu of them durable, session "
           "%lu%s)\n", w->nr_ops, w->durable, w->sessions,
           w->hit ? "" : ", no fault hit");
  exit (1);
}

/* --- faults -------------------------------------------------------------- */

int
fault_ask (struct world *w, unsigned kind)
{
  const struct plan *p = &w->plan;

  if (!w->armed)
    return 0;
  w->calls[kind]++;
  if (kind != p->kind || p->k == 0 || w->calls[kind] < p->k ||
      (w->calls[kind] > p->k && !p->for_ever))
    return 0;
  w->hit = true;
  if (getenv ("FAULT_ABORT"))   /* for a debugger: where is it? */
    abort ();
  return -p->err;
}

static void
must (struct world *w, int r, const char *what)
{
  if (r < 0)
    die (w, "the test itself: %s: %s", what, strerror (-r));
}

/* A host keeps track by pages. */
static void
note_dirty (struct world *w, uint64_t off, uint64_t len)
{
  uint64_t end = round_up_pow2 (off + len, 4096);

  off = round_down_pow2 (off, 4096);
  len = end - off;
  if (w->nr_dirty == w->max_dirty) {
    w->max_dirty = w->max_dirty ? 2 * w->max_dirty : 256;
    w->dirty = realloc (w->dirty, w->max_dirty * sizeof *w->dirty);
  }
  w->dirty[w->nr_dirty].off = off;
  w->dirty[w->nr_dirty++].len = len;
}

void
world_settle (struct world *w, uint64_t *chance)
{
  int64_t size = io_size (w->mem);
  uint8_t *buf;
  size_t i;

  for (i = 0; i < w->nr_dirty; i++) {
    uint64_t off = w->dirty[i].off, len = w->dirty[i].len;

    if (chance && rnd (chance, 2))
      continue;
    buf = malloc (len);
    must (w, io_pread (w->mem, buf, len, off), "settle");
    must (w, io_pwrite (w->power, buf, len, off), "settle");
    free (buf);
  }
  must (w, io_truncate (w->power, (uint64_t) size), "settle");
  w->nr_dirty = 0;
}

static void
sync_called (struct world *w, int r)
{
  if (r == 0)
    world_settle (w, NULL);
  else {
    w->sync_failed = true;
    if (!w->remembers)
      w->nr_dirty = 0;          /* thrown away */
  }
}

static int
before_call (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  struct world *w = opaque;
  struct world *running = fault_running;
  int r;

  fault_running = NULL;         /* the test's own memory */
  r = fault_ask (w, call);
  if (call == IO_SYNC)
    sync_called (w, r);
  else if (r == 0 && (call == IO_PWRITE || call == IO_DISCARD ||
                      call == IO_ALLOCATE))
    note_dirty (w, off, len);
  fault_running = running;
  return r;
}

/* --- base images --------------------------------------------------------- */

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("FAULT_VERBOSE"))
    fprintf (stderr, "  log: %s\n", line);
}

void
open_params (const struct shape *s, struct dedup_open_params *p)
{
  static const struct log_sink sink = { print_line, NULL };

  *p = (struct dedup_open_params) {
    .path = "test", .writable = true, .dedup = true, .verify = !s->exact,
    .max_incarnations = s->max_incarnations, .cache_bytes = 1 << 16,
    .order = s->order, .journal_areas = s->journal_areas, .log = &sink,
  };
}

/* dedup_create makes a store for verify=on. */
static int
make_exact (const struct shape *s, struct io_store *io,
            const struct qcow2_create_params *image)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_disk *d;
  int r;

  open_params (s, &p);
  r = qcow2_create (io, image, &f);
  if (r == 0)
    r = dedup_open (io, &p, &d, &f);
  if (r == 0) {
    r = dedup_finish (d);
    dedup_free (d);
  }
  return r;
}

static int
make_base (const struct shape *s, struct io_store *io)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = (uint64_t) NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = s->order, .journal_areas = s->journal_areas,
    .max_incarnations = s->max_incarnations,
  };
  struct fault f = { 0 };

  switch (s->base) {
  case BASE_STORE: return s->exact ? make_exact (s, io, &p.image)
    : dedup_create (io, &p, &f);
  case BASE_PLAIN: return qcow2_create (io, &p.image, &f);
  case BASE_NOTHING: return 0;
  }
  return -EINVAL;
}

void
stage_init (const struct shape *s)
{
  struct io_store *io;
  int64_t size;

  free (stage.bytes);
  if (io_memory_new (0, &io) < 0 || make_base (s, io) < 0 ||
      (size = io_size (io)) < 0)
    abort ();
  stage.size = (size_t) size;
  stage.bytes = malloc (stage.size + 1);
  if (io_pread (io, stage.bytes, stage.size, 0) < 0)
    abort ();
  io_close (io);
}

static struct io_store *
base_copy (struct world *w)
{
  struct io_store *io;

  must (w, io_memory_new (stage.size, &io), "base");
  if (stage.size > 0)
    must (w, io_pwrite (io, stage.bytes, stage.size, 0), "base");
  return io;
}

struct world *
world_new (const struct shape *s, const struct plan *p)
{
  struct world *w = calloc (1, sizeof *w);

  w->shape = s;
  w->plan = *p;
  w->rng = 0x9e3779b97f4a7c15u;
  w->next_id = 1000;
  w->mem = base_copy (w);
  w->power = base_copy (w);
  must (w, io_faulty_new (w->mem, before_call, w, &w->io), "faulty");
  return w;
}

void
world_free (struct world *w)
{
  fault_running = NULL;
  dedup_free (w->d);
  io_close (w->io);
  io_close (w->power);
  free (w->dirty);
  free (w);
}
