/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the images that workloads start from, and opens a disk.
 *
 * Plain images with data come from qemu-img, so that images that users adopt
 * are adopted here; without it (or for widths that it refuses) an empty plain
 * image is made here.
 */
#include "crash.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "dedup.h"
#include "disk-internal.h"
#include "wire.h"

static void
quiet (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("CRASH_VERBOSE"))
    fprintf (stderr, "  log: %s\n", line);
}

static const struct log_sink sink = { quiet, NULL };

int
open_disk (const struct world *w, struct io_store *io, bool writable,
           struct dedup_pool **d, struct fault *f)
{
  struct dedup_open_params p = {
    .path = "crash", .writable = writable, .dedup = !w->cfg.no_dedup,
    .verify = !w->cfg.no_verify, .hash = w->cfg.hash,
    .max_incarnations = w->session_limit ? w->session_limit
      : w->cfg.max_incarnations,
    .index_memory = w->cfg.index_memory, .cache_bytes = 1 << 20, .order = w->cfg.order,
    .journal_areas = w->cfg.journal_areas, .log = &sink,
    .compress = w->cfg.compress,
    .compress_later = w->cfg.compress_one_in > 0,
  };

  if (w->cfg.store_file) {
    p.store = store_file_of (io);
    p.store_path = "store";
  }
  memset (f, 0, sizeof *f);
  *d = NULL;
  return dedup_open (io, &p, d, f);
}

void
disk_begin (struct dedup_pool *d, struct srv_disk *disk)
{
  static struct srv_space space;        /* writes no lines */

  srv_disk_init (disk, d, QCOW2_ROOT_ACTIVE, true, &space);
}

void
disk_end (struct srv_disk *disk)
{
  srv_disk_destroy (disk);
}

/* --- made here ---------------------------------------------------------------- */

static int
make_created (struct world *w, struct bytes *out)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = slot_bytes (w),
               .cluster_bits = w->cfg.cluster_bits,
               .refcount_order = w->cfg.refcount_order },
    .order = w->cfg.order, .max_incarnations = w->cfg.max_incarnations,
    .journal_areas = w->cfg.journal_areas, .hash = w->cfg.hash,
    .compress = w->cfg.compress,
  };
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  if (io_memory_new (0, &io) < 0)
    return -1;
  r = dedup_create (io, &p, &f);
  if (r < 0)
    world_error (w, "create: %s", f.msg);
  else
    r = bytes_of_store (io, out);
  io_close (io);
  return r;
}

static int
make_empty (struct world *w, uint64_t size, struct bytes *out)
{
  struct qcow2_create_params p = {
    .virtual_size = size, .cluster_bits = w->cfg.cluster_bits,
    .refcount_order = w->cfg.refcount_order,
  };
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  if (io_memory_new (0, &io) < 0)
    return -1;
  r = qcow2_create (io, &p, &f);
  if (r < 0)
    world_error (w, "create: %s", f.msg);
  else
    r = bytes_of_store (io, out);
  io_close (io);
  return r;
}

#define HEADER_SIZE_AT 24      /* specification: size in bytes, be64 */
#define GROWN_BYTES (UINT64_C (2) << 30)

static void
set_virtual_size (struct bytes *b, uint64_t size)
{
  be64 wire = be64_make (size);

  memcpy (b->p + HEADER_SIZE_AT, &wire, sizeof wire);
}

/* Adopted while its virtual size was small, so that refcount table and anchor
 * L1 are too small for what it is raised to. */
static int
make_grown (struct world *w, struct bytes *out)
{
  struct bytes plain;
  struct io_store *io;
  struct dedup_pool *d;
  struct fault f;
  int r;

  if (make_empty (w, GROWN_BYTES, &plain) < 0)
    return -1;
  set_virtual_size (&plain, disk_bytes (w));
  io = store_of_bytes (&plain);
  free (plain.p);
  r = open_disk (w, io, true, &d, &f);
  if (r < 0)
    world_error (w, "open of the image to grow: %s", f.msg);
  else {
    r = dedup_finish (d);
    dedup_free (d);
  }
  if (r == 0)
    r = bytes_of_store (io, out);
  io_close (io);
  if (r == 0)
    set_virtual_size (out, GROWN_BYTES);
  return r;
}

/* --- made by qemu-img ------------------------------------------------------------- */

/* Half of the clusters, or nearly all of them and most of those twice. */
static uint64_t
base_id (const struct world *w, struct rng *r)
{
  if (w->cfg.base == BASE_DUPLICATES)
    return chance (r, 8) ? 0 : ID_ADOPTED + rnd (r, w->cfg.nr_clusters / 3) + 1;
  return chance (r, 2) ? ID_ADOPTED + rnd (r, 50) + 1 : 0;
}

static int
write_raw (struct world *w, const char *path)
{
  uint8_t *buf = calloc (1, w->slot_units * w->unit);
  struct rng r = rng_of (w->seed, 5);
  FILE *fp = fopen (path, "w");
  size_t u;
  int ok;

  for (u = 0; u < w->data_units; u++) {
    if (u % UNITS_PER_CLUSTER == 0)
      w->base_ids[u] = base_id (w, &r);
    else
      w->base_ids[u] = w->base_ids[u - 1];
    fill_unit (buf + u * w->unit, unit_bytes (w, u), w->base_ids[u]);
  }
  ok = fp && fwrite (buf, 1, slot_bytes (w), fp) == slot_bytes (w);
  if (fp)
    fclose (fp);
  free (buf);
  return ok ? 0 : -1;
}

static int
read_file (const char *path, struct bytes *out)
{
  struct io_store *io;
  struct fault f = { 0 };
  int r;

  r = io_file_open (path, 0, IO_LOCK_NONE, &io, &f);
  if (r < 0)
    return r;
  r = bytes_of_store (io, out);
  io_close (io);
  return r;
}

static int
run_qemu_img (struct world *w, const char *raw, const char *image)
{
  char cmd[1000];
  size_t n;

  n = (size_t) snprintf (cmd, sizeof cmd, "qemu-img convert -q %s -f raw "
                         "-O qcow2 -o cluster_size=%u,refcount_bits=%u%s "
                         "%s %s 2>/dev/null",
                         w->cfg.base == BASE_COMPRESSED ? "-c" :
                         w->cfg.base == BASE_DUPLICATES ? "-S 0" : "",
                         1u << w->cfg.cluster_bits,
                         1u << w->cfg.refcount_order,
                         w->cfg.base == BASE_EXTENDED ? ",extended_l2=on" : "",
                         raw, image);
  if (w->cfg.base == BASE_SNAPSHOT || w->cfg.base == BASE_EXTENDED ||
      w->cfg.base == BASE_DUPLICATES)
    n += (size_t) snprintf (cmd + n, sizeof cmd - n, " && qemu-img snapshot -q "
                            "-c s1 %s 2>/dev/null", image);
  /* Written again, the first half is the snapshot's no longer. */
  if (w->cfg.base == BASE_DUPLICATES)
    snprintf (cmd + n, sizeof cmd - n, " && truncate -s %llu %s && qemu-img "
              "convert -q -n -S 0 -f raw -O qcow2 %s %s 2>/dev/null",
              (unsigned long long) w->nr_units / 2 * w->unit, raw, raw, image);
  if (w->cfg.base == BASE_BITMAPS)
    snprintf (cmd + n, sizeof cmd - n,
              " && qemu-img bitmap --add %s b1 && qemu-img bitmap --add "
              "-g 512 %s b2 && qemu-img bitmap --add --disable %s b3",
              image, image, image);
  return system (cmd) == 0 ? 0 : -1;
}

static int
make_stock (struct world *w, struct bytes *out)
{
  char raw[] = "/tmp/crash-raw-XXXXXX", image[] = "/tmp/crash-img-XXXXXX";
  int fd1 = mkstemp (raw), fd2 = mkstemp (image), r;

  close (fd1);
  close (fd2);
  r = write_raw (w, raw);
  if (r == 0)
    r = run_qemu_img (w, raw, image);
  if (r == 0)
    r = read_file (image, out);
  unlink (raw);
  unlink (image);
  if (r < 0) {
    memset (w->base_ids, 0, w->data_units * sizeof *w->base_ids);
    return make_empty (w, slot_bytes (w), out);
  }
  return 0;
}

/* --- with bytes of an earlier use behind it --------------------------------- */

#define STALE_BYTES (UINT64_C (3) << 20)

/* As on a device, or in a file that was made large: behind the image lie random
 * bytes, and copies of the image itself, with blocks of its own journal. */
static int
add_stale (struct bytes *b, struct rng *r)
{
  struct io_store *io = store_of_bytes (b);
  const uint64_t end = b->size + STALE_BYTES;
  uint64_t at, n, i, word[512];
  int res = 0;

  for (at = b->size; at < end && res == 0; at += n) {
    n = MIN_OF (b->size, end - at);
    res = io_pwrite (io, b->p, n, at);
  }
  for (at = b->size; at + sizeof word <= end && res == 0;
       at += rnd (r, 64) << 12) {
    for (i = 0; i < 512; i++)
      word[i] = rnd (r, UINT64_MAX);
    res = io_pwrite (io, word, sizeof word, at);
    at += sizeof word;
  }
  bytes_free (b);
  if (res == 0)
    res = bytes_of_store (io, b);
  io_close (io);
  return res;
}

static int
make_image (struct world *w, struct bytes *out)
{
  switch (w->cfg.base) {
  case BASE_CREATED:
    return make_created (w, out);
  case BASE_GROWN:
    return make_grown (w, out);
  default:
    return make_stock (w, out);
  }
}

int
make_base (struct world *w, struct bytes *out)
{
  struct rng r = rng_of (w->seed, 77);
  int res = make_image (w, out);

  out->block = w->cfg.block;
  if (res == 0 && w->cfg.rotten_one_in)
    res = let_rot (w, out);
  if (res == 0 && w->cfg.cut_one_in)
    make_export (out);
  return res == 0 && w->cfg.stale ? add_stale (out, &r) : res;
}
