/* SPDX-License-Identifier: BSD-3-Clause */
/* Joins the image and the store file to one byte store, at the offsets that the
 * configuration uses: those with DEDUP_IN_STORE_FILE are the store file's.
 *
 * It also keeps whether the store file can still be used.  All functions but
 * init and destroy may be called from any thread.
 */
#ifndef DEDUP_JOINED_FILES_H
#define DEDUP_JOINED_FILES_H

#include "config.h"
#include "io.h"
#include "log.h"

struct dedup_joined_files {
  struct io_store store;         /* reads and writes both files */
  struct io_store *image, *file; /* the caller's */
  const struct log_sink *log;
  char *image_path, *path;       /* for messages; PATH: the store file's */
  bool failed;                   /* atomic: a write or sync of FILE did */
  bool full;                     /* atomic: the next area goes to the image */
  bool full_logged;              /* atomic: since FILE had space last */
};

/* Returns the offset in the store file that HOST_OFF stands for. */
static inline uint64_t
dedup_store_file_off (uint64_t host_off)
{
  return host_off & ~DEDUP_IN_STORE_FILE;
}

/* Fills in J.  The paths are copied; PATH may be NULL.  -ENOMEM: J must still
 * be destroyed. */
int dedup_joined_files_init (struct dedup_joined_files *j,
                             struct io_store *image, const char *image_path,
                             struct io_store *file, const char *path,
                             const struct log_sink *log) MUST_CHECK;
void dedup_joined_files_destroy (struct dedup_joined_files *j);

/* Returns whether a new area may be tried in the store file: it has not failed,
 * and nothing was refused for want of space since dedup_joined_files_retry. */
bool dedup_joined_files_usable (struct dedup_joined_files *j);
/* Makes a full store file usable again. */
void dedup_joined_files_retry (struct dedup_joined_files *j);
/* Notes that the store file had space for an area: when it is full again, a
 * line in the log says so again. */
void dedup_joined_files_had_space (struct dedup_joined_files *j);
/* Notes, and logs once, that an operation on the store file failed with ERR
 * (negative).  -ENOSPC: it is full, and nothing is lost, because the area is
 * written elsewhere.  Else it is not used any more in this session.  WHAT names
 * the operation for the log, as in "writing". */
void dedup_joined_files_failed (struct dedup_joined_files *j, const char *what,
                                int err);
/* Makes durable what was written to the store file.  -EIO also if it has failed
 * before. */
int dedup_joined_files_sync_file (struct dedup_joined_files *j) MUST_CHECK;

#endif
