/* SPDX-License-Identifier: BSD-3-Clause */
/* Fills a disk with the contents of an NBD export, a piece at a time; the job
 * "import".
 *
 * The data go to a new disk, NAME.importing.  When it is complete, it gets the
 * name NAME; or, to replace the contents of a disk that exists, that disk is
 * reset to it and it is deleted.  So a disk NAME never has a part of the
 * contents, whatever ends the job.  A job that fails, is cancelled, or ends
 * with the server deletes NAME.importing.  Three things leave it: a crash; that the
 * import was asked to be one that can be resumed; and a last step that is refused when
 * all is copied (the name was taken meanwhile, or a client opened the disk to be
 * replaced), as it is complete then.
 *
 * A resumed import goes on behind the last data in NAME.importing.  All before is
 * there, because data are written in order and what a crash leaves is a prefix.  NBD
 * has no version or time of change, so the server cannot know that the export still
 * has the contents of which a part was copied, and comparing all takes as long as
 * copying.  Therefore no import resumes by itself: who asks for it knows.  Another
 * size, or other bytes shortly before the end of what was copied, are refused.
 *
 * The export is read by a thread of the source (nbd-source.h), ahead of the
 * job.  The job takes a turn only when a piece is there: a slow server keeps no
 * other job waiting, and one that hangs does not keep the image from being
 * closed.  What the export says reads as zeroes is not read, and takes nothing.
 *
 * The source is an export and no file, on purpose.  Whoever may use the control
 * socket could name any file that the server can read, and a file of an image
 * format can name further ones; a URI names what another process has chosen to
 * give away, and programs such as qemu-nbd give any format away.
 *
 * Threads: one step at a time; the other calls of srv_job_ops on any thread.
 */
#include "import-job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "image-internal.h"
#include "nbd-source.h"

#define SUFFIX ".importing"
#define COMPARE (4 * IO_NBD_PIECE)      /* bytes before the end of what was copied */
#define EXTENTS 64
#define REFCOUNT_BITS 32        /* of images that can reset disks */
#define MAX_URI 8192            /* bytes: a host, an export name of 4096, some paths */

/* A step writes a part of a piece while clients change something, because they wait
 * for as long as it has the image's lock and a processor. */
#define BUSY_BYTES (UINT64_C (64) << 10)
/* It rests longer than other jobs, as reading and sending the export take processors,
 * too. */
#define REST_FACTOR 9

enum import_state {
  CONNECTING,                   /* nothing was changed */
  COPYING,                      /* NAME.importing is there */
  COPIED,                       /* and is complete */
  MOVED,                        /* NAME has the contents */
  DONE,                         /* and NAME.importing is gone */
};

struct srv_import {
  /* Constant: */
  struct srv_image *image;
  char *name, *temp, *uri;      /* owned */
  bool replace, force, resume;
  bool is_there;                /* NAME.importing, with a part of the contents: */
  uint64_t temp_size, copied;   /* its size; all before this byte is there */
  uint64_t size;                /* of the disk; 0: that of the export */
  struct io_nbd_source *source;

  /* One step at a time: */
  enum import_state state;
  struct srv_disk *disk;        /* NAME.importing, from COPYING to COPIED */
  uint64_t written;             /* bytes of the piece, from its begin on */

  /* Atomic: */
  uint64_t done;                /* bytes */

  struct lock lock;

  /* Protected by lock: */
  struct fault why;             /* it has failed; no message: it has not */
};

/* --- Failure -------------------------------------------------------------- */

/* Keeps and logs why the job fails with R. */
static int
failed (struct srv_import *x, int r, const struct fault *f)
{
  struct fault why = *f;

  if (why.msg[0] == '\0')
    fault_io (&why, -r, UINT64_MAX, "%s", strerror (-r));
  lock_acquire (&x->lock);
  x->why = why;
  lock_release (&x->lock);
  log_line (x->image->log, LOG_ERROR, "%s: import of '%s': %s", x->image->path,
            x->name, why.msg);
  return r;
}

/* Likewise for a change of disks, unless the step will be tried again. */
static int
change_result (struct srv_import *x, int r, const struct fault *f)
{
  if (r >= 0 || srv_is_no_space (r) || r == -ENOMEM)
    return MIN_OF (r, 0);
  return failed (x, r, f);
}

/* Likewise for the source, which is never tried again. */
static int
source_failed (struct srv_import *x, int r, const struct fault *f)
{
  return failed (x, srv_is_no_space (r) || r == -ENOMEM || r == -EINTR ||
                 r == -ECANCELED ? -EIO : r, f);
}

/* --- What an earlier import has left --------------------------------------- */

/* Sets *END to behind the last data in LEN bytes from AT on.  Returns whether there
 * are any, or -errno. */
static int MUST_CHECK
find_last (struct qcow2_image *img, unsigned root, uint64_t at, uint64_t len,
           uint64_t *end)
{
  const uint64_t to = at + len;
  struct qcow2_extent ext[EXTENTS];
  int nr, found = 0;

  while (at < to) {
    nr = qcow2_map (img, root, at, to - at, ext, EXTENTS);
    if (nr <= 0)
      return nr < 0 ? nr : -EIO;
    for (int i = 0; i < nr; i++)
      if (ext[i].kind != QCOW2_UNALLOCATED) {
        *end = ext[i].guest_off + ext[i].len;
        found = 1;
      }
    at = ext[nr - 1].guest_off + ext[nr - 1].len;
  }
  return found;
}

/* Sets *END to behind the last data of a disk, 0 if it has none.  What lies behind
 * costs little, as it has no tables. */
static int MUST_CHECK
find_end (struct qcow2_image *img, unsigned root, uint64_t size, uint64_t *end)
{
  const uint64_t part = MAX_OF (UINT64_C (1) << 30, size / 1024);
  uint64_t to = size, from;
  int r = 0;

  for (*end = 0; to > 0 && r == 0; to = from) {
    from = to - MIN_OF (to, part);
    r = find_last (img, root, from, to - from, end);
  }
  return MIN_OF (r, 0);
}

/* Sets *COPIED to how much of the export has surely been copied to a disk: all before
 * the piece, or cluster, that has the last data. */
static int MUST_CHECK
find_copied (struct qcow2_image *img, unsigned root, uint64_t size,
             uint64_t *copied)
{
  const uint64_t grain = MAX_OF (IO_NBD_PIECE, qcow2_geometry (img)->cluster_size);
  uint64_t end;
  int r = find_end (img, root, size, &end);

  *copied = end > 0 ? round_down_pow2 (end - 1, grain) : 0;
  return r;
}

/* Finds out how much of the contents NAME.importing has, which is ROOT. */
static int MUST_CHECK
look_at_temp (struct srv_import *x, unsigned root, struct fault *f)
{
  struct qcow2_image *img = dedup_image (x->image->exports.pool);
  struct srv_root info;
  int r;

  srv_root_look (img, root, &info);
  if (!info.is_disk || info.is_snapshot)
    return fault_usage (f, "'%s' is no disk that an import has left", x->temp);
  r = find_copied (img, root, info.size, &x->copied);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "reading the tables of '%s': %s", x->temp,
                     strerror (-r));
  x->is_there = true;
  x->temp_size = info.size;
  return 0;
}

/* Returns where the export is read from. */
static uint64_t
read_from (const struct srv_import *x)
{
  return x->copied - MIN_OF (x->copied, COMPARE);
}

/* Checks that NAME.importing, which is open, is as it was when the job was made, and
 * that no other job has it. */
static int MUST_CHECK
check_temp (struct srv_import *x, struct fault *f)
{
  struct srv_exports *e = &x->image->exports;
  unsigned nr_clients;
  uint64_t copied = 0;
  int r = find_copied (dedup_image (e->pool), x->disk->root, srv_disk_size (x->disk),
                       &copied);

  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "reading the tables of '%s': %s", x->temp,
                     strerror (-r));
  lock_acquire (&e->lock);
  nr_clients = srv_exports_nr_clients_locked (e, x->disk->root);
  lock_release (&e->lock);
  if (nr_clients == 1 && copied == x->copied && srv_disk_size (x->disk) == x->temp_size)
    return 0;
  return fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX, "the disk '%s' is in use",
                    x->temp);
}


/* --- The disk ------------------------------------------------------------- */

static int MUST_CHECK
choose_size (struct srv_import *x, uint64_t export_size, uint64_t *size,
             struct fault *f)
{
  if (export_size == 0)
    return fault_usage (f, "%s: the export is empty", x->uri);
  if (export_size > INT64_MAX - 511)
    return fault_usage (f, "%s: the export is too large", x->uri);
  *size = x->size ? x->size : round_up_pow2 (export_size, 512);
  if (export_size > *size)
    return fault_usage (f, "%s: the export has %" PRIu64 " bytes, more than "
                        "the %" PRIu64 " of the disk", x->uri, export_size,
                        *size);
  return 0;
}

static int
begin_disk (struct srv_import *x)
{
  uint64_t export_size, size = 0;
  struct fault f = { 0 };
  int r = io_nbd_source_size (x->source, &export_size, &f);

  if (r < 0)
    return r == -EAGAIN ? 1 : source_failed (x, r, &f);
  r = choose_size (x, export_size, &size, &f);
  if (r < 0)
    return failed (x, r, &f);
  if (x->is_there && size != x->temp_size)
    return failed (x, fault_usage (&f, "%s: the disk of the export would have %" PRIu64
                                   " bytes, and '%s' has %" PRIu64, x->uri, size,
                                   x->temp, x->temp_size), &f);
  r = x->is_there ? 0 : srv_disk_create (x->image, x->temp, size, &f);
  if (r < 0)
    return change_result (x, r, &f);
  x->state = COPYING;
  return 1;
}

static int
open_disk (struct srv_import *x)
{
  struct fault f = { 0 };
  int r = srv_exports_get (&x->image->exports, x->temp, &x->disk, &f);

  if (r < 0)
    return change_result (x, r, &f);
  r = x->is_there ? check_temp (x, &f) : 0;
  return r < 0 ? failed (x, r, &f) : 1;
}

static void
put_disk (struct srv_import *x)
{
  if (x->disk)
    srv_exports_put (&x->image->exports, x->disk);
  x->disk = NULL;
}

/* --- Copy ----------------------------------------------------------------- */

static int
copied (struct srv_import *x)
{
  put_disk (x);
  x->state = COPIED;
  return 1;
}

/* Returns how many bytes of a piece a step writes at the most. */
static uint64_t
max_bytes (const struct srv_import *x)
{
  if (!srv_exports_changed_lately (&x->image->exports))
    return UINT64_MAX;
  return MAX_OF (BUSY_BYTES, UINT64_C (1) << x->disk->cluster_bits);
}

/* Writes the next part of a piece, or all of it. */
static int
write_piece (struct srv_import *x, const struct io_nbd_piece *p)
{
  const uint64_t len = MIN_OF (p->len - x->written, max_bytes (x));
  const uint64_t off = p->off + x->written;
  int r = srv_disk_fill (x->disk, (const uint8_t *) p->data + x->written, off,
                         len);
  struct fault f = { 0 };

  if (r < 0) {
    fault_io (&f, -r, UINT64_MAX, "writing to '%s' at 0x%" PRIx64 ": %s",
              x->temp, off, strerror (-r));
    return change_result (x, r, &f);
  }
  x->written += len;
  __atomic_fetch_add (&x->done, len, __ATOMIC_RELAXED);
  if (x->written == p->len) {
    x->written = 0;
    io_nbd_source_done (x->source);
  }
  return 1;
}

/* Compares a piece that an earlier import has copied. */
static int
compare_piece (struct srv_import *x, const struct io_nbd_piece *p)
{
  CLEANUP_FREE uint8_t *bytes = aligned_new (p->len);
  struct fault f = { 0 };
  int r = bytes ? srv_pread (x->disk, bytes, p->off, (uint32_t) p->len) : -ENOMEM;

  if (r < 0)
    return change_result (x, r, &f);
  if (memcmp (bytes, p->data, p->len) != 0)
    return failed (x, fault_usage (&f, "%s: the export has changed at 0x%" PRIx64
                                   " since a part of it was copied to '%s'; if that "
                                   "is deleted, all is copied", x->uri, p->off,
                                   x->temp), &f);
  io_nbd_source_done (x->source);
  return 1;
}

static int
copy (struct srv_import *x)
{
  struct io_nbd_piece piece;
  struct fault f = { 0 };
  int r;

  if (x->disk == NULL)
    return open_disk (x);
  r = io_nbd_source_next (x->source, &piece, &f);
  if (r == -EAGAIN)
    return 1;
  if (r < 0)
    return source_failed (x, r, &f);
  if (r == 0)
    return copied (x);
  return x->is_there && piece.off + piece.len <= x->copied
    ? compare_piece (x, &piece) : write_piece (x, &piece);
}

/* --- The end of the copy -------------------------------------------------- */

/* Gives the contents to NAME.  The change is durable when it is made, and so is
 * all that was written before. */
static int
move (struct srv_import *x)
{
  struct fault f = { 0 };
  int r = x->replace
    ? srv_disk_reset (x->image, x->name, x->temp, x->force, &f)
    : srv_disk_rename (x->image, x->temp, x->name, &f);

  if (r < 0)
    return change_result (x, r, &f);
  x->state = x->replace ? MOVED : DONE;
  log_line (x->image->log, LOG_INFO, "%s: '%s' was imported from %s, %" PRIu64
            " bytes of data", x->image->path, x->name, x->uri, x->done);
  return x->replace ? 1 : 0;
}

static int
delete_temp (struct srv_import *x)
{
  struct fault f = { 0 };
  int r = srv_disk_delete (x->image, x->temp, true, &f);

  if (r < 0)
    return change_result (x, r, &f);
  x->state = DONE;
  return 0;
}

/* --- The job -------------------------------------------------------------- */

static int
step (void *opaque)
{
  struct srv_import *x = opaque;

  switch (x->state) {
  case CONNECTING: return begin_disk (x);
  case COPYING: return copy (x);
  case COPIED: return move (x);
  case MOVED: return delete_temp (x);
  case DONE: break;
  }
  return 0;
}

/* Nobody has a turn when this is called, so the state is known. */
static bool
is_ready (void *opaque)
{
  struct srv_import *x = opaque;

  switch (x->state) {
  case CONNECTING: return io_nbd_source_has_size (x->source);
  case COPYING: return x->disk == NULL || io_nbd_source_has_next (x->source);
  case COPIED: case MOVED: case DONE: break;
  }
  return true;
}

static void
progress (void *opaque, uint64_t *done, uint64_t *total)
{
  struct srv_import *x = opaque;

  *done = __atomic_load_n (&x->done, __ATOMIC_RELAXED);
  *total = io_nbd_source_data_bytes (x->source);
}

static void
describe (void *opaque, char *buf, size_t len)
{
  struct srv_import *x = opaque;
  LOCK_FOR_SCOPE (&x->lock);

  if (x->why.msg[0])
    snprintf (buf, len, "%s", x->why.msg);
  else
    snprintf (buf, len, "'%s' from %s", x->name, x->uri);
}

static void
free_import (struct srv_import *x)
{
  io_nbd_source_close (x->source);
  lock_destroy (&x->lock);
  free (x->name);
  free (x->temp);
  free (x->uri);
  free (x);
}

/* Deletes NAME.importing, or says that it stays. */
static void
clean_up (struct srv_import *x, int result)
{
  const bool ended = result == -ECANCELED || result == -ESHUTDOWN;
  const struct srv_image *m = x->image;
  struct fault f = { 0 };
  int r;

  put_disk (x);
  if (x->state == CONNECTING || x->state == DONE)
    return;
  if (x->state == COPIED && !ended) {
    log_line (m->log, LOG_ERROR, "%s: import of '%s': all of it is in the disk "
              "'%s'", m->path, x->name, x->temp);
    return;
  }
  if (x->resume && result != -ECANCELED) {
    log_line (m->log, LOG_INFO, "%s: import of '%s': the disk '%s' stays, and can be "
              "continued", m->path, x->name, x->temp);
    return;
  }
  r = srv_disk_delete (x->image, x->temp, true, &f);
  if (r < 0 && r != -ENOENT)
    log_line (m->log, LOG_ERROR, "%s: import of '%s': the disk '%s' stays: %s",
              m->path, x->name, x->temp, f.msg);
}

static void
end (void *opaque, int result)
{
  struct srv_import *x = opaque;

  if (result < 0)
    clean_up (x, result);
  free_import (x);
}

const struct srv_job_ops srv_job_import = {
  .type = "import", .can_pause = true, .can_cancel = true, .changes = true,
  .rest_factor = REST_FACTOR,
  .step = step, .progress = progress, .describe = describe,
  .is_ready = is_ready, .end = end,
};

/* --- Checks before it begins ---------------------------------------------- */

static int MUST_CHECK
check_replaced (struct srv_import *x, unsigned root, struct fault *f)
{
  struct srv_exports *e = &x->image->exports;
  struct qcow2_image *img = dedup_image (e->pool);
  struct srv_root info;
  unsigned nr_clients;

  srv_root_look (img, root, &info);
  if (root == QCOW2_ROOT_ACTIVE || !info.is_disk || info.is_snapshot)
    return fault_usage (f, "'%s' is no disk of the pool, so it cannot be "
                        "replaced", x->name);
  if (qcow2_geometry (img)->refcount_bits != REFCOUNT_BITS)
    return fault_set (f, FAULT_UNSUPPORTED, ENOTSUP, UINT64_MAX, "replacing a "
                      "disk needs refcounts of 32 bits: close the image, and "
                      "run qemu-img amend -o refcount_bits=32 %s", x->image->path);
  lock_acquire (&e->lock);
  nr_clients = srv_exports_nr_clients_locked (e, root);
  lock_release (&e->lock);
  if (nr_clients > 0 && !x->force)
    return fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX, "'%s' has %u clients",
                      x->name, nr_clients);
  x->size = info.size;
  return 0;
}

static int MUST_CHECK
check_names (struct srv_import *x, struct fault *f)
{
  struct srv_exports *e = &x->image->exports;
  struct fault other = { 0 };
  unsigned root, nr_clients;
  int r;

  if (srv_exports_find (e, x->temp, &root, &other) == 0) {
    lock_acquire (&e->lock);
    nr_clients = srv_exports_nr_clients_locked (e, root);
    lock_release (&e->lock);
    if (!x->resume || nr_clients > 0)
      return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "there is a disk "
                        "'%s': '%s' is being imported, or a crash ended that, and "
                        "then \"resume\" continues it, or the disk can be deleted",
                        x->temp, x->name);
    r = look_at_temp (x, root, f);
    if (r < 0)
      return r;
  }
  r = srv_exports_find (e, x->name, &root, x->replace ? f : &other);
  if (x->replace)
    return r < 0 ? r : check_replaced (x, root, f);
  return r < 0 ? 0 : fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "there is "
                                "a disk or snapshot '%s' already", x->name);
}

static int MUST_CHECK
check (struct srv_import *x, struct fault *f)
{
  int r;

  if (x->replace && x->size)
    return fault_usage (f, "a disk that is replaced keeps its size");
  if (x->size % 512 != 0)
    return fault_usage (f, "the size of a disk must be a multiple of 512 "
                        "bytes");
  if (strlen (x->uri) > MAX_URI)
    return fault_usage (f, "the URI of an export has %u bytes at the most", MAX_URI);
  if ((r = dedup_disk_check_name (x->name, false, f)) < 0 ||
      (r = dedup_disk_check_name (x->temp, false, f)) < 0)
    return r;
  pthread_mutex_lock (&x->image->exports.operation);
  r = check_names (x, f);
  pthread_mutex_unlock (&x->image->exports.operation);
  return r;
}

/* --- Begin ---------------------------------------------------------------- */

static void
wake_cb (void *opaque)
{
  struct srv_import *x = opaque;

  srv_jobs_poke (&x->image->jobs);
}

static struct srv_import *
allocate (struct srv_image *m, const struct srv_import_params *p)
{
  struct srv_import *x = calloc (1, sizeof *x);

  if (x == NULL)
    return NULL;
  lock_init (&x->lock);
  x->image = m;
  x->replace = p->replace;
  x->force = p->force;
  x->resume = p->resume;
  x->size = p->size;
  x->name = strdup (p->name);
  x->uri = strdup (p->uri);
  if (asprintf (&x->temp, "%s" SUFFIX, p->name) < 0)
    x->temp = NULL;
  if (x->name && x->uri && x->temp)
    return x;
  free_import (x);
  return NULL;
}

int
srv_import_new (struct srv_image *m, const struct srv_import_params *p,
                struct srv_import **out, struct fault *f)
{
  struct srv_import *x = allocate (m, p);
  int r;

  if (x == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = check (x, f);
  if (r == 0)
    r = io_nbd_source_open (p->uri, read_from (x), wake_cb, x, &x->source, f);
  if (r < 0) {
    free_import (x);
    return r;
  }
  *out = x;
  return 0;
}
