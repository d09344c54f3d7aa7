/* SPDX-License-Identifier: BSD-3-Clause */
/* Works on a disk that may be anything, as a server and its clients do.
 *
 * Errors are fine, crashes and hangs are not.  Data that was written without an
 * error reads back, or the read fails, until it is written again.
 */
#include "fuzz.h"

#include <errno.h>

#include "checked.h"
#include "dedup.h"
#include "image.h"
#include "disk-internal.h"

#define GRAIN 512u             /* bytes; what requests are multiples of */
#define TRACKED 512u           /* grains of which the content is known */
#define MAX_OPS 48

struct work {
  struct dedup_pool *pool;
  struct srv_disk disk;         /* the active one */
  struct srv_space space;
  struct io_store *io;
  struct io_store *data;       /* the external data file, where there is one */
  uint8_t known[TRACKED];      /* 0: not written; else the byte */
};

static uint64_t
known_bytes (const struct work *w)
{
  uint64_t max = TRACKED * (uint64_t) GRAIN;

  return w->disk.size_bytes < max ? w->disk.size_bytes : max;
}

static void
note (struct work *w, uint64_t off, uint64_t len, uint8_t byte)
{
  for (uint64_t g = off / GRAIN; g < TRACKED && g * GRAIN < off + len; g++)
    w->known[g] = byte;
}

static void
do_write (struct work *w, uint64_t off, uint32_t len, uint8_t byte)
{
  CLEANUP_FREE uint8_t *buf = malloc (len);
  int r;

  MUST (buf);
  memset (buf, byte, len);
  r = srv_pwrite (&w->disk, buf, off, len, false);
  note (w, off, len, r == 0 ? byte : 0);
}

static bool
all_bytes_are (const uint8_t *buf, uint64_t len, uint8_t byte)
{
  return buf[0] == byte && memcmp (buf, buf + 1, len - 1) == 0;
}

/* From a multiple of GRAIN on. */
static void
do_read (struct work *w, uint64_t off, uint32_t len)
{
  CLEANUP_FREE uint8_t *buf = malloc (len);
  uint64_t i;

  MUST (buf);
  if (srv_pread (&w->disk, buf, off, len) < 0)
    return;
  for (i = 0; i < len && (off + i) / GRAIN < TRACKED; i += GRAIN)
    if (w->known[(off + i) / GRAIN])
      MUST (all_bytes_are (buf + i, MIN_OF (GRAIN, len - i),
                           w->known[(off + i) / GRAIN]));
}

static int
count_cb (void *opaque, uint64_t off, uint64_t len, enum srv_extent_type type)
{
  *(uint64_t *) opaque += len;
  return 0;
}

/* The disk of a snapshot, which nobody can write to, or another disk, as its
 * clients see it. */
static void
use_snapshot (struct srv_disk *d, struct input *in)
{
  uint64_t size = srv_disk_size (d), off, len, covered = 0;
  CLEANUP_FREE uint8_t *buf = NULL;
  int r;

  MUST (srv_pread (d, &covered, size, 1) == -EINVAL);
  r = srv_pwrite (d, &covered, 0, 0, false);
  MUST (d->writable || r == -EROFS);
  if (size == 0)
    return;
  off = take (in, 3) * GRAIN % size;
  len = MIN_OF (1 + take (in, 2), size - off);
  buf = malloc (len);
  MUST (buf);
  r = srv_pread (d, buf, off, len);
  r = srv_cache (d, off, len);
  r = srv_extents (d, off, len, false, count_cb, &covered);
  MUST (r < 0 || covered == len);
  memset (buf, (int) take (in, 1), len);
  r = srv_pwrite (d, buf, off, (uint32_t) len, false);
  MUST (r < 0 || d->writable);
  r = srv_trim (d, off, (uint32_t) len / 2, false);
}

/* One of the internal snapshots, where there are any. */
static void
do_snapshot (struct work *w, unsigned which, struct input *in)
{
  const struct qcow2_snapshot *v;
  size_t nr = qcow2_snapshots (dedup_image (w->pool), &v);

  struct srv_disk d;

  if (nr == 0 || v[which % nr].is_anchor || v[which % nr].dead ||
      (v[which % nr].disk_flags & QCOW2_DISK_DOOMED))
    return;
  srv_disk_init (&d, w->pool, 1 + (unsigned) (which % nr), w->disk.writable,
                 &w->space);
  use_snapshot (&d, in);
  srv_disk_destroy (&d);
}

static void
do_jobs (struct work *w, unsigned jobs)
{
  unsigned due;
  int r = 0;

  for (unsigned n = 0; n < 64 && r >= 0; n++) {
    due = dedup_due (w->pool, NULL) & jobs;
    if (due == 0)
      break;
    r = dedup_run (w->pool, (enum dedup_job) (due & -due));
  }
}

/* A place in the tracked part three times out of four. */
static uint64_t
choose_offset (struct work *w, struct input *in)
{
  uint64_t v = take (in, 3);

  if (v & 3)
    return known_bytes (w) ? (v >> 2) * GRAIN % known_bytes (w) : 0;
  if (w->disk.size_bytes == 0)
    return 0;
  return take (in, 8) % w->disk.size_bytes / GRAIN * GRAIN;
}

static void
one_op (struct work *w, struct input *in)
{
  unsigned op = (unsigned) take (in, 1);
  uint64_t off = choose_offset (w, in), covered = 0;
  uint64_t left = w->disk.size_bytes - off;
  uint32_t len = (uint32_t) (1 + take (in, 1) % 16) * GRAIN;
  int r = 0;

  len = (uint32_t) (len < left ? len : left);
  if (len == 0)
    return;
  switch (op % 8) {
  case 0: case 1: case 2:
    do_write (w, off, len, (uint8_t) (1 + op / 8 % 7));
    break;
  case 3:
    if (op & 8)
      do_snapshot (w, op / 16, in);
    do_read (w, off, len);
    break;
  case 4:
    r = srv_trim (&w->disk, off, len, false);
    note (w, off, len, 0);
    break;
  case 5:
    r = srv_zero (&w->disk, off, len, op & 8, false, false);
    note (w, off, len, 0);
    break;
  case 6:
    r = srv_extents (&w->disk, off, len, false, count_cb, &covered);
    MUST (r < 0 || covered == len);
    break;
  case 7:
    r = op & 8 ? srv_flush (&w->disk) : 0;
    if (op & 16)
      do_jobs (w, ~0u);
    break;
  }
  (void) r;
}

/* In memory, whatever name the image has for it, and from open to open. */
static void
attach_data (struct work *w)
{
  struct qcow2_image *img = dedup_image (w->pool);

  if (!qcow2_geometry (img)->has_data_file)
    return;
  if (w->data == NULL)
    MUST (io_memory_new (0, &w->data) == 0);
  img->data = w->data;
}

static void
free_disk (struct work *w)
{
  dedup_image (w->pool)->data = NULL;
  dedup_free (w->pool);
}

static int
open_disk (struct work *w, bool writable)
{
  struct dedup_open_params p = {
    .path = "fuzz", .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 16, .order = 4,
    .host_files = QCOW2_FILES_IGNORE,
  };
  struct fault f = { 0 };
  int r;

  r = dedup_open (w->io, &p, &w->pool, &f);
  MUST (r == 0 || f.msg[0] != '\0');
  if (r < 0)
    return r;
  attach_data (w);
  srv_disk_init (&w->disk, w->pool, QCOW2_ROOT_ACTIVE, writable, &w->space);
  return 0;
}

static int
close_disk (struct work *w)
{
  int r = w->disk.writable ? dedup_finish (w->pool) : 0;

  srv_disk_destroy (&w->disk);
  free_disk (w);
  return r;
}

static void
read_all_known (struct work *w)
{
  for (uint64_t off = 0; off < known_bytes (w); off += GRAIN)
    do_read (w, off, (uint32_t)
             (known_bytes (w) - off < GRAIN ? known_bytes (w) - off : GRAIN));
}

static void
work_and_look_again (struct work *w, struct input *in, bool writable)
{
  struct dedup_stats s;
  bool killed;

  if (open_disk (w, writable) < 0)
    return;
  killed = take (in, 1) & 1;
  for (unsigned n = 0; n < MAX_OPS && in->left > 0; n++)
    one_op (w, in);
  read_all_known (w);
  dedup_get_stats (w->pool, &s);
  if (killed) {                 /* what was not flushed may be gone */
    srv_disk_destroy (&w->disk);
    free_disk (w);
    memset (w->known, 0, sizeof w->known);
  }
  else if (close_disk (w) < 0)
    return;
  if (open_disk (w, false) < 0)
    return;
  read_all_known (w);
  close_disk (w);
}

void
work_on_disk (struct io_store *io, struct input *in, bool writable)
{
  struct work w = { .io = io };

  work_and_look_again (&w, in, writable);
  io_close (w.data);
}

/* --- Without a store ------------------------------------------------------- */

static void
read_root (struct qcow2_image *img, unsigned root, uint64_t size)
{
  struct qcow2_extent ext[16];
  CLEANUP_FREE uint8_t *buf = malloc (1 << 16);
  uint64_t at = 0;
  int nr, i;

  MUST (buf);
  size = size < 1 << 22 ? size : 1 << 22;
  for (unsigned n = 0; n < 256 && at < size; n++) {
    nr = qcow2_map (img, root, at, size - at, ext, 16);
    if (nr < 0)
      at += qcow2_geometry (img)->cluster_size;
    for (i = 0; i < nr; i++) {
      uint64_t len = ext[i].len < 1 << 16 ? ext[i].len : 1 << 16;

      MUST (ext[i].len > 0 && ext[i].guest_off == at);
      if (qcow2_read (img, root, buf, at, len) == 0 && len > 0)
        buf[0] ^= buf[len - 1];
      at += ext[i].len;
    }
  }
}

static void
ignore_problem (void *opaque, bool is_leak, const char *line)
{
  for (; *line; line++)
    MUST (*line != '\n');
}

void
look_at_image (struct io_store *io)
{
  const struct qcow2_open_params p = {
    .path = "fuzz", .allow_recovery = true, .cache_bytes = 1 << 16,
    .host_files = QCOW2_FILES_IGNORE,
  };
  const struct qcow2_check_params cp = { .problem = ignore_problem };
  const struct qcow2_snapshot *snaps;
  struct qcow2_check_result res;
  struct qcow2_image *img;
  struct fault f = { 0 };
  size_t nr;
  int r = qcow2_open (io, &p, &img, &f);

  if (r < 0) {
    MUST (f.msg[0] != '\0');
    return;
  }
  if (qcow2_geometry (img)->has_data_file)
    MUST (io_memory_new (1 << 16, &img->data) == 0);
  read_root (img, QCOW2_ROOT_ACTIVE, qcow2_geometry (img)->virtual_size);
  nr = qcow2_snapshots (img, &snaps);
  for (size_t i = 0; i < nr && i < 8; i++)
    if (!snaps[i].is_anchor)
      read_root (img, (unsigned) i + 1, snaps[i].disk_size);
  r = qcow2_check (img, &cp, &res, &f);
  (void) r;
  qcow2_close (img);
}
