/* SPDX-License-Identifier: BSD-3-Clause */
/* Provides contents, base images, and a byte store whose k-th call fails.
 *
 * Beside the bytes that other processes see, the store keeps those that a power
 * cut would leave.  Each sync brings them up to date.  Where a sync fails, they
 * never get what was written before it, as on a host that drops the dirty pages
 * and reports it once.  (For a disk without a store, which depends on the order
 * alone, some pages got there before.)
 */
#include "fault-world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "image.h"

const char *const fault_kind_names[FAULT_KINDS] = {
  "pread", "pwrite", "sync", "discard", "allocate", "truncate", "malloc",
};

struct world *fault_running;

struct bytes { uint8_t *p; size_t size; };

static struct {
  struct bytes image, data;     /* data: p is NULL where there is none */
  uint64_t ids[NR];
  char dir[32];                 /* of BASE_QEMU: images name files in it */
  char path[64];
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

const char *
plan_mode (const struct plan *p)
{
  return p->flaky ? "flaky" : p->lifted ? "lifted" : p->for_ever ? "ever"
    : "once";
}

void
die (struct world *w, const char *fmt, ...)
{
  va_list ap;

  w->armed = false;
  fprintf (stderr, "\nFAULT_CASE=%s:%s:%s:%s:%lu\n", w->shape->name,
           fault_kind_names[w->plan.kind],
           w->plan.err ? strerrorname_np (w->plan.err) : "-",
           plan_mode (&w->plan), w->plan.k);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fprintf (stderr, "\n(after %zu operations, %zu of them durable, session "
           "%lu%s)\n", w->nr_ops, w->durable, w->sessions,
           w->hit ? "" : ", no fault hit");
  exit (1);
}

/* --- faults -------------------------------------------------------------- */

/* A host without space: writes and reservations find none. */
static int
ask_full_host (struct world *w, unsigned kind, uint64_t len)
{
  const struct plan *p = &w->plan;

  if (p->k == 0 || w->calls[IO_PWRITE] < p->k || w->healed ||
      (kind != IO_PWRITE && (kind != IO_ALLOCATE || !w->hit)))
    return 0;
  if (p->flaky && w->hit && rnd (&w->chance, 2))
    return 0;
  w->hit = true;
  /* Without a store data is overwritten in place: a client's write that failed
   * may leave anything where it was to go. */
  if (kind == IO_PWRITE && len > 512 && !w->shape->direct &&
      rnd (&w->chance, 2))
    return (int) (512 * rnd (&w->chance, len / 512));   /* 0: all of it */
  return -p->err;
}

int
fault_ask (struct world *w, unsigned kind, uint64_t len)
{
  const struct plan *p = &w->plan;

  if (!w->armed)
    return 0;
  w->calls[kind]++;
  if (p->lifted)
    return ask_full_host (w, kind, len);
  if (kind != p->kind || p->k == 0 || w->calls[kind] < p->k ||
      (w->calls[kind] > p->k && !p->for_ever))
    return 0;
  w->hit = true;
  if (getenv ("FAULT_ABORT"))   /* for a debugger: where is it? */
    abort ();
  return -p->err;
}

static uint64_t
get_be64 (const uint8_t *p)
{
  be64 wire;

  memcpy (&wire, p, sizeof wire);
  return be64_load (wire);
}

static void
must (struct world *w, int r, const char *what)
{
  if (r < 0)
    die (w, "the test itself: %s: %s", what, strerror (-r));
}

/* A host keeps track by pages. */
static void
note_dirty (struct fault_file *t, uint64_t off, uint64_t len)
{
  uint64_t end = round_up_pow2 (off + len, 4096);

  off = round_down_pow2 (off, 4096);
  len = end - off;
  if (t->nr_dirty == t->max_dirty) {
    t->max_dirty = t->max_dirty ? 2 * t->max_dirty : 256;
    t->dirty = realloc (t->dirty, t->max_dirty * sizeof *t->dirty);
  }
  t->dirty[t->nr_dirty].off = off;
  t->dirty[t->nr_dirty++].len = len;
}

static void
settle (struct fault_file *t, uint64_t *chance)
{
  int64_t size = io_size (t->mem);
  uint8_t *buf;
  size_t i;

  for (i = 0; i < t->nr_dirty; i++) {
    uint64_t off = t->dirty[i].off, len = t->dirty[i].len;

    if (chance && rnd (chance, 2))
      continue;
    buf = malloc (len);
    must (t->w, io_pread (t->mem, buf, len, off), "settle");
    must (t->w, io_pwrite (t->power, buf, len, off), "settle");
    free (buf);
  }
  must (t->w, io_truncate (t->power, (uint64_t) size), "settle");
  t->nr_dirty = 0;
}

void
world_settle (struct world *w, uint64_t *chance)
{
  settle (&w->image, chance);
  if (w->data.mem)
    settle (&w->data, chance);
}

static void
sync_called (struct fault_file *t, int r)
{
  if (r == 0)
    settle (t, NULL);
  else {
    t->w->sync_failed = true;
    if (t->w->shape->direct)
      settle (t, &t->w->chance);
    if (!t->w->remembers)
      t->nr_dirty = 0;          /* thrown away */
  }
}

static int
before_call (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  struct fault_file *t = opaque;
  struct world *running = fault_running;
  int r;

  fault_running = NULL;         /* the test's own memory */
  r = fault_ask (t->w, call, len);
  if (call == IO_SYNC)
    sync_called (t, r);
  else if (r >= 0 && (call == IO_PWRITE || call == IO_DISCARD ||
                      call == IO_ALLOCATE))
    note_dirty (t, off, len);
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
    .path = stage.dir[0] ? stage.path : "test", .writable = true,
    .dedup = !s->direct, .verify = !s->exact, .host_files = QCOW2_FILES_ANY,
    .max_incarnations = s->max_incarnations, .cache_bytes = 1 << 16,
    .order = s->order, .journal_areas = s->journal_areas, .log = &sink,
    .compress = s->compress ? DEDUP_COMPRESS_ZLIB : DEDUP_COMPRESS_KEEP,
    .compress_later = s->later,
  };
}

/* dedup_create makes a store for verify=on. */
static int
make_exact (const struct shape *s, struct io_store *io,
            const struct qcow2_create_params *image)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_pool *d;
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

static void
take_bytes (struct io_store *io, struct bytes *b)
{
  int64_t size = io_size (io);

  if (size < 0)
    abort ();
  b->size = (size_t) size;
  b->p = malloc (b->size + 1);
  if (io_pread (io, b->p, b->size, 0) < 0)
    abort ();
}

static struct io_store *
host_file (const char *name)
{
  struct fault f = { 0 };
  struct io_store *io;
  char path[64];

  snprintf (path, sizeof path, "%s/%s", stage.dir, name);
  if (io_file_open (path, 0, IO_LOCK_NONE, &io, &f) < 0)
    abort ();
  return io;
}

/* Every second run of clusters holds something. */
static void
write_raw (const struct shape *s)
{
  uint8_t buf[CLUSTER];
  char path[64];
  size_t i;
  FILE *fp;

  snprintf (path, sizeof path, "%s/raw", stage.dir);
  fp = fopen (path, "wb");
  for (i = 0; fp && i < NR; i++) {
    stage.ids[i] = !s->empty && i % 16 < 8 ? 1 + i % 40 : 0;
    fill_cluster (buf, stage.ids[i]);
    if (fwrite (buf, 1, sizeof buf, fp) != sizeof buf)
      abort ();
  }
  if (fp == NULL || fclose (fp) != 0)
    abort ();
}

/* As lazy refcounts may leave it: all above the first few are 0. */
static void
make_dirty (struct bytes *b)
{
  uint64_t reftable = get_be64 (b->p + 48);
  uint64_t block = get_be64 (b->p + reftable);

  b->p[79] |= 1;
  memset (b->p + block + CLUSTER / 16, 0, CLUSTER - CLUSTER / 16);
}

static int
make_by_qemu (const struct shape *s, struct io_store *io)
{
  struct io_store *file;
  struct bytes b;
  char cmd[512];
  int r;

  strcpy (stage.dir, "/tmp/fault-XXXXXX");
  if (mkdtemp (stage.dir) == NULL)
    return -errno;
  snprintf (stage.path, sizeof stage.path, "%s/image", stage.dir);
  write_raw (s);
  snprintf (cmd, sizeof cmd, "cd %s && qemu-img convert -f raw -O qcow2 "
            "-o cluster_size=4k,%s raw image%s%s", stage.dir, s->options,
            s->snapshot ? " && qemu-img snapshot -c s image" : "",
            s->bitmaps ? " && qemu-img bitmap --add image b0 && "
            "qemu-img bitmap --add -g 4k image b1" : "");
  if (system (cmd) != 0)
    return -EIO;
  file = host_file ("image");
  take_bytes (file, &b);
  io_close (file);
  if (s->dirty)
    make_dirty (&b);
  r = io_pwrite (io, b.p, b.size, 0);
  free (b.p);
  return r;
}

static int
make_base (const struct shape *s, struct io_store *io)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = (uint64_t) NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = s->disks ? 5 : 4 },
    .order = s->order, .journal_areas = s->journal_areas,
    .max_incarnations = s->max_incarnations,
  };
  struct fault f = { 0 };

  switch (s->base) {
  case BASE_STORE: return s->exact ? make_exact (s, io, &p.image)
    : dedup_create (io, &p, &f);
  case BASE_PLAIN: return qcow2_create (io, &p.image, &f);
  case BASE_NOTHING: return 0;
  case BASE_QEMU: return make_by_qemu (s, io);
  }
  return -EINVAL;
}

static void
remove_dir (void)
{
  char cmd[64];

  snprintf (cmd, sizeof cmd, "rm -rf %s", stage.dir);
  if (stage.dir[0] && system (cmd) != 0)
    fprintf (stderr, "%s is left\n", stage.dir);
  stage.dir[0] = '\0';
}

void
stage_init (const struct shape *s)
{
  static bool once;
  struct io_store *io;

  if (!once)
    atexit (remove_dir);
  once = true;
  remove_dir ();
  free (stage.image.p);
  free (stage.data.p);
  memset (&stage, 0, sizeof stage);
  if (io_memory_new (0, &io) < 0 || make_base (s, io) < 0)
    abort ();
  take_bytes (io, &stage.image);
  io_close (io);
  for (size_t i = s->disks ? NR / s->disks : NR; i < NR; i++)
    stage.ids[i] = ID_ABSENT;
  if (s->data_file) {
    io = host_file ("image.data");
    take_bytes (io, &stage.data);
    io_close (io);
  }
}

static struct io_store *
copy_of (struct world *w, const struct bytes *b)
{
  struct io_store *io;

  must (w, io_memory_new (b->size, &io), "base");
  if (b->size > 0)
    must (w, io_pwrite (io, b->p, b->size, 0), "base");
  return io;
}

static void
file_init (struct world *w, struct fault_file *t, const struct bytes *b)
{
  t->w = w;
  if (b->p == NULL)
    return;
  t->mem = copy_of (w, b);
  t->power = copy_of (w, b);
  must (w, io_faulty_new (t->mem, before_call, t, &t->io), "faulty");
}

struct world *
world_new (const struct shape *s, const struct plan *p)
{
  struct world *w = calloc (1, sizeof *w);

  w->shape = s;
  w->plan = *p;
  w->rng = 0x9e3779b97f4a7c15u;
  w->chance = p->k + 1;
  w->next_id = 1000;
  memcpy (w->first_ids, stage.ids, sizeof w->first_ids);
  memcpy (w->base_ids, stage.ids, sizeof w->base_ids);
  memcpy (w->now, stage.ids, sizeof w->now);
  file_init (w, &w->image, &stage.image);
  file_init (w, &w->data, &stage.data);
  return w;
}

/* What the engine opened, by its name in the image, is not used. */
void
data_attach (struct dedup_pool *d, struct io_store *data)
{
  struct qcow2_image *img = dedup_image (d);

  if (data == NULL)
    return;
  io_close (img->data);
  img->data = data;
}

void
world_close (struct world *w)
{
  if (w->d && w->data.io)
    dedup_image (w->d)->data = NULL;
  dedup_free (w->d);
  w->d = NULL;
}

static void
file_free (struct fault_file *t)
{
  if (t->w == NULL)
    return;
  io_close (t->io);
  io_close (t->power);
  free (t->dirty);
}

void
world_free (struct world *w)
{
  fault_running = NULL;
  world_close (w);
  file_free (&w->image);
  file_free (&w->data);
  free (w);
}
