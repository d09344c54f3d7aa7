/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a new image at a path, so that a process that is killed meanwhile, or
 * another one that makes the same image, leaves nothing that a later start
 * refuses.
 *
 * Where there is no file, one is made without a name, and named when the image
 * in it is complete (io_birth_*).  What has its name already (a device, an
 * NBD export, or an empty file) is written in place.  Such an image begins with a mark
 * until the last write puts the header there (qcow2fmt/create.c): a file that
 * begins with the mark is written again from the start.
 *
 * Only these are written over: a file that is empty, as touch makes them; one
 * of at most 64 MiB that holds only zeroes, as earlier versions left them when
 * they were killed; a device or export whose first and last MiB are zero, where
 * partition tables, file systems, and members of LVM, RAID and ZFS have their
 * marks; and a device or export, whatever it holds, if the caller says so.  A device
 * that the kernel uses is never written over.
 *
 * A lease at the end of a device or export is none of what it holds: a server that was
 * started without size=, or killed before it made the image, left its record there.  But
 * an image may have been there, too, so more than the first MiB must be zero then: an
 * image has its journal and first data near its start.
 *
 * One thread; other processes are kept out by the file's lock.
 */
#include "dedup.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/stat.h>

#include "aligned.h"
#include "checked.h"
#include "zero.h"

#define MAX_UNFINISHED (INT64_C (64) << 20)

#define LOOK_BYTES (UINT64_C (1) << 20)
/* Behind the largest header and tables of most images, and some of the journal. */
#define LOOK_LEASED_BYTES (UINT64_C (16) << 20)

/* --- What the path holds ------------------------------------------------ */

/* Returns 1 if all of LEN bytes at HOST_OFF are zero, 0 if not, or -errno. */
static int
zeroes_at (struct io_store *io, uint64_t host_off, uint64_t len)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (LOOK_BYTES);
  uint64_t n;
  int r;

  if (buf == NULL)
    return -ENOMEM;
  for (; len > 0; host_off += n, len -= n) {
    n = MIN_OF (len, LOOK_BYTES);
    r = io_pread (io, buf, n, host_off);
    if (r < 0)
      return r;
    if (!all_zero (buf, n))
      return 0;
  }
  return 1;
}

/* Returns 1 if an image may be written over what IO holds, 0 if not, or
 * -errno. */
static int
may_be_filled (struct io_store *io, bool overwrite_device)
{
  const bool device = io_max_size (io) != UINT64_MAX;
  const int64_t size = io_size (io);
  uint64_t leased, end, look;
  int r;

  if (size < 0)
    return (int) size;
  if (device && overwrite_device)
    return 1;
  r = qcow2_is_unfinished (io);
  if (r != 0)
    return r;
  if (!device)
    return size > MAX_UNFINISHED ? 0 : zeroes_at (io, 0, (uint64_t) size);
  leased = io_lease_bytes (io);
  end = (uint64_t) size - leased;
  r = zeroes_at (io, 0, MIN_OF (end, leased ? LOOK_LEASED_BYTES : LOOK_BYTES));
  look = MIN_OF (end, LOOK_BYTES);
  return r == 1 ? zeroes_at (io, end - look, look) : r;
}

/* --- Making the image --------------------------------------------------- */

static int
make_named (const char *path, const struct dedup_create_params *p,
            struct io_store **io, struct fault *f)
{
  struct io_birth *b;
  int r = io_birth_begin (path, 0, &b, io, f);

  if (r < 0)
    return r;
  r = dedup_create (*io, p, f);
  if (r == 0)
    r = io_birth_finish (b, f);
  else
    io_birth_cancel (b);
  if (r < 0) {
    io_close (*io);
    *io = NULL;
  }
  return r;
}

/* Makes the image in IO.  On failure a file that was empty is empty again. */
static int
create_over (struct io_store *io, const struct dedup_create_params *p,
             struct fault *f)
{
  int r = dedup_create (io, p, f);

  if (r < 0 && io_truncate (io, 0) < 0)
    return r;                   /* the mark stays: it may be filled again */
  return r;
}

static int
fill_in_place (const char *path, const struct dedup_create_params *p,
               bool overwrite_device, struct io_store **io, struct fault *f)
{
  int r;

  if (io_device_in_use (path))
    return fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX, "is in use: mounted, "
                      "or part of another device");
  r = io_place_open (path, IO_FILE_WRITE |
                     (overwrite_device ? IO_PLACE_OVERWRITE : 0),
                     IO_LOCK_WRITE, io, f);
  if (r < 0)
    return r;
  r = may_be_filled (*io, overwrite_device);
  if (r < 0)
    (void) fault_io (f, -r, UINT64_MAX, "reading what it holds: %s",
                     strerror (-r));
  else
    r = r == 1 ? create_over (*io, p, f) : -EEXIST;
  if (r < 0) {
    io_close (*io);
    *io = NULL;
  }
  return r;
}

/* Looks without a lock whether PATH may be filled, since a locked file is
 * usually an image.  1: it may be, and is looked at again with the lock. */
static int
worth_filling (const char *path, bool overwrite_device)
{
  struct fault ignored = { 0 };
  struct io_store *io;
  int r = io_place_open (path, 0, IO_LOCK_NONE, &io, &ignored);

  if (r < 0)
    return 0;                   /* the caller opens it and reports */
  r = may_be_filled (io, overwrite_device);
  io_close (io);
  return MAX_OF (r, 0);
}

int
dedup_make (const char *path, const struct dedup_create_params *p,
            bool overwrite_device, struct io_store **io, bool *named,
            struct fault *f)
{
  struct stat st;

  *named = false;
  *io = NULL;
  if (io_is_uri (path) || stat (path, &st) == 0)
    return worth_filling (path, overwrite_device)
      ? fill_in_place (path, p, overwrite_device, io, f) : -EEXIST;
  if (errno == ENOENT && lstat (path, &st) == 0)
    return fault_io (f, ELOOP, UINT64_MAX,
                     "is a symbolic link to a file that does not exist");
  if (errno == ENOENT) {
    int r = make_named (path, p, io, f);

    *named = r == 0;
    return r;
  }
  return -EEXIST;               /* the caller opens it, and reports */
}
