/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a file that is exported: a raw file, a block device, or a plain qcow2
 * image, which any program reads.
 *
 * A file gets its name when it is complete, so an export that is interrupted
 * leaves nothing, and a file that was there stays until then.  It is locked
 * meanwhile, so that no image in use is replaced; the pool itself is such an image.
 * A qcow2 image has the features that qemu-img's have, clusters of 64 KiB, and no
 * store: it is written as images are that cannot hold one (dedup/storeless.c).
 * One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"

#define RAW_UNIT 4096           /* the granularity of holes */
#define QCOW2_CLUSTER_BITS 16   /* qemu-img's default */

struct disk_target {
  const char *path;             /* the caller's */
  struct io_store *io;
  struct io_birth *birth;       /* NULL: a device */
  struct io_store *replaced;    /* the file that is there, locked; or NULL */
  struct dedup_pool *d;         /* NULL: raw */
  uint64_t size;
};

/* --- Files --------------------------------------------------------------- */

static int
open_device (struct disk_target *t, bool is_qcow2, struct fault *f)
{
  int r;

  if (is_qcow2)
    return fault_usage (f, "a qcow2 image is exported to a file, not to a "
                        "device");
  if (io_device_in_use (t->path))
    return fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX, "the device is mounted, "
                      "or part of another device");
  r = io_file_open (t->path, IO_FILE_WRITE, IO_LOCK_WRITE, &t->io, f);
  if (r == 0 && io_max_size (t->io) < t->size)
    r = fault_usage (f, "the device is smaller than the disk, which has %" PRIu64
                     " bytes", t->size);
  return r;
}

/* Begins a new file, and locks the one that it replaces. */
static int
open_file (struct disk_target *t, bool exists, struct fault *f)
{
  int r = 0;

  if (exists)
    r = io_file_open (t->path, IO_FILE_WRITE, IO_LOCK_WRITE, &t->replaced, f);
  return r < 0 ? r : io_birth_begin (t->path, 0, &t->birth, &t->io, f);
}

static int
open_path (struct disk_target *t, bool is_qcow2, bool force, struct fault *f)
{
  struct stat st;
  const bool exists = lstat (t->path, &st) == 0;
  const bool is_link = exists && S_ISLNK (st.st_mode);

  if (exists && !force)
    return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX,
                      "exists already; --force replaces it");
  if (exists && stat (t->path, &st) == 0 && S_ISBLK (st.st_mode))
    return open_device (t, is_qcow2, f);
  if (is_link)                  /* of /dev/stdout, for instance: the link would be lost */
    return fault_usage (f, "is a symbolic link: name the file that it leads to");
  return open_file (t, exists, f);
}

/* --- Formats ------------------------------------------------------------- */

static int
begin_qcow2 (struct disk_target *t, struct fault *f)
{
  const struct qcow2_create_params c = {
    .virtual_size = t->size, .cluster_bits = QCOW2_CLUSTER_BITS,
    .refcount_order = 4,
  };
  const struct dedup_open_params p = {
    .path = t->path, .writable = true, .no_store = true,
    .max_incarnations = -1, .cache_bytes = TOOL_CACHE_BYTES,
    .log = &tool_log_errors,
  };
  int r = qcow2_create (t->io, &c, f);

  return r < 0 ? r : dedup_open (t->io, &p, &t->d, f);
}

static int
begin_raw (struct disk_target *t, struct fault *f)
{
  int r = t->birth ? io_truncate (t->io, t->size) : 0;

  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot be made %" PRIu64
                           " bytes long: %s", t->size, strerror (-r)) : 0;
}

int
disk_target_new (const char *path, const char *format, uint64_t size,
                 bool force, struct disk_target **out, struct fault *f)
{
  const bool is_qcow2 = strcmp (format, "qcow2") == 0;
  struct disk_target *t = calloc (1, sizeof *t);
  int r;

  if (t == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  t->path = path;
  t->size = size;
  r = open_path (t, is_qcow2, force, f);
  if (r == 0)
    r = is_qcow2 ? begin_qcow2 (t, f) : begin_raw (t, f);
  if (r < 0)
    disk_target_cancel (t);
  else
    *out = t;
  return r;
}

/* --- Write --------------------------------------------------------------- */

size_t
disk_target_unit (const struct disk_target *t)
{
  return t->d ? (size_t) 1 << QCOW2_CLUSTER_BITS : RAW_UNIT;
}

bool
disk_target_is_dense (const struct disk_target *t)
{
  return t->birth == NULL;      /* what a device held is no hole */
}

int
disk_target_write (struct disk_target *t, const uint8_t *buf,
                   uint64_t guest_off, size_t len)
{
  if (t->d)
    return dedup_write (t->d, QCOW2_ROOT_ACTIVE, buf,
                        guest_off >> QCOW2_CLUSTER_BITS,
                        len >> QCOW2_CLUSTER_BITS);
  return io_pwrite (t->io, buf, MIN_OF (len, t->size - guest_off), guest_off);
}

/* --- End ------------------------------------------------------------------ */

/* Gives the new file its name, in place of the one that is there. */
static int
name_file (struct disk_target *t, struct fault *f)
{
  int r = io_sync (t->io);      /* before the old file is gone */

  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "%s", strerror (-r));
  if (t->replaced && unlink (t->path) < 0)
    return fault_io (f, errno, UINT64_MAX, "cannot be replaced: %s",
                     strerror (errno));
  r = io_birth_finish (t->birth, f);
  t->birth = NULL;
  return r;
}

int
disk_target_finish (struct disk_target *t, struct fault *f)
{
  int r = t->d ? dedup_finish (t->d) : 0;

  if (r == 0 && !t->birth)
    r = io_sync (t->io);
  if (r < 0)
    r = fault_io (f, -r, UINT64_MAX, "%s", strerror (-r));
  else if (t->birth)
    r = name_file (t, f);
  disk_target_cancel (t);
  return r;
}

void
disk_target_cancel (struct disk_target *t)
{
  if (t == NULL)
    return;
  if (t->d)
    dedup_free (t->d);
  io_birth_cancel (t->birth);
  io_close (t->io);
  io_close (t->replaced);
  free (t);
}
