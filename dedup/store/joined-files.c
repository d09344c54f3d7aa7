/* SPDX-License-Identifier: BSD-3-Clause */
/* Joins the image and the store file to one byte store.
 *
 * Each call is passed on to the file that its offset names; no request spans
 * both.  A write or sync of the store file that fails is noted here, so that
 * the owner (store-file.c) stops using the file; what is in it costs entries
 * of the index at most.
 *
 * Reads and writes come from any thread: the flags are atomic, all else is
 * constant.
 */
#include "joined-files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mutation.h"

/* --- What became of the store file -------------------------------------- */

static void
note_full (struct dedup_joined_files *j)
{
  __atomic_store_n (&j->full, true, __ATOMIC_RELAXED);
  if (!__atomic_exchange_n (&j->full_logged, true, __ATOMIC_RELAXED))
    log_line (j->log, LOG_ERROR, "%s: store=%s: no space left there: the "
              "index grows in the image", j->image_path, j->path);
}

void
dedup_joined_files_failed (struct dedup_joined_files *j, const char *what,
                           int err)
{
  if (err == -ENOSPC)
    note_full (j);
  else if (!__atomic_exchange_n (&j->failed, true, __ATOMIC_RELAXED))
    log_line (j->log, LOG_ERROR, "%s: store=%s: %s: %s: the index grows in "
              "the image until it is opened again", j->image_path, j->path,
              what, strerror (-err));
}

bool
dedup_joined_files_usable (struct dedup_joined_files *j)
{
  return !__atomic_load_n (&j->failed, __ATOMIC_RELAXED) &&
    !__atomic_load_n (&j->full, __ATOMIC_RELAXED);
}

void
dedup_joined_files_retry (struct dedup_joined_files *j)
{
  __atomic_store_n (&j->full, false, __ATOMIC_RELAXED);
}

void
dedup_joined_files_had_space (struct dedup_joined_files *j)
{
  __atomic_store_n (&j->full_logged, false, __ATOMIC_RELAXED);
}

int
dedup_joined_files_sync_file (struct dedup_joined_files *j)
{
  int r;

  if (mutation (MUTATION_STORE_FILE_NO_SYNC))
    return 0;
  if (__atomic_load_n (&j->failed, __ATOMIC_RELAXED))
    return -EIO;
  r = io_sync (j->file);
  if (r < 0)
    dedup_joined_files_failed (j, "making it durable", r);
  return r;
}

/* --- The byte store ----------------------------------------------------- */

static int
joined_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  struct dedup_joined_files *j = (struct dedup_joined_files *) s;

  return dedup_in_store_file (host_off)
    ? io_preadv (j->file, iov, iovcnt, dedup_store_file_off (host_off))
    : io_preadv (j->image, iov, iovcnt, host_off);
}

static int
joined_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off)
{
  struct dedup_joined_files *j = (struct dedup_joined_files *) s;
  int r;

  if (!dedup_in_store_file (host_off))
    return io_pwritev (j->image, iov, iovcnt, host_off);
  r = io_pwritev (j->file, iov, iovcnt, dedup_store_file_off (host_off));
  if (r < 0)
    dedup_joined_files_failed (j, "writing", r);
  return r;
}

static uint64_t
joined_next_hole (struct io_store *s, uint64_t host_off)
{
  struct dedup_joined_files *j = (struct dedup_joined_files *) s;
  uint64_t hole;

  if (!dedup_in_store_file (host_off))
    return io_next_hole (j->image, host_off);
  hole = io_next_hole (j->file, dedup_store_file_off (host_off));
  return hole == UINT64_MAX ? hole : hole | DEDUP_IN_STORE_FILE;
}

static void
joined_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct dedup_joined_files *j = (struct dedup_joined_files *) s;

  if (dedup_in_store_file (host_off))
    io_write_out (j->file, dedup_store_file_off (host_off), len);
  else
    io_write_out (j->image, host_off, len);
}

static const struct io_ops joined_ops = {
  .preadv = joined_preadv, .pwritev = joined_pwritev,
  .next_hole = joined_next_hole, .write_out = joined_write_out,
};

/* --- Init and destroy --------------------------------------------------- */

int
dedup_joined_files_init (struct dedup_joined_files *j, struct io_store *image,
                         const char *image_path, struct io_store *file,
                         const char *path, const struct log_sink *log)
{
  *j = (struct dedup_joined_files) {
    .store.ops = &joined_ops, .image = image, .file = file, .log = log,
    .image_path = strdup (image_path),
    .path = strdup (path ? path : "store file"),
  };
  return j->image_path && j->path ? 0 : -ENOMEM;
}

void
dedup_joined_files_destroy (struct dedup_joined_files *j)
{
  free (j->image_path);
  free (j->path);
}
