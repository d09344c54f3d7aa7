/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexes the data that a disk holds already, a step at a time
 * (index-existing.c). */
#ifndef DEDUP_INDEX_EXISTING_H
#define DEDUP_INDEX_EXISTING_H

#include "disk-internal.h"
#include "server-jobs.h"

struct srv_index_existing {     /* DISK is enough to begin */
  /* Constant: */
  struct srv_disk *disk;
  const char *path;             /* for messages */
  const struct log_sink *log;

  /* One step at a time: */
  uint64_t guest_idx;           /* the next cluster */
  bool remember;                /* the image is to note that it runs */
  struct dedup_existing counts;
  uint64_t found;               /* clusters to be read, as counted before */
  uint64_t count_idx;           /* the next one to be counted */

  /* Atomic, for srv_job_ops.progress; bytes: */
  uint64_t done, total;

  /* One step at a time: */
  uint64_t logged_ns;           /* CLOCK_MONOTONIC, of the last progress line */
  unsigned logged_percent;
};

/* Indexes the next clusters that hold data.  Returns 1, or 0 at the end of the
 * disk.  On error nothing was changed, and the next call tries the same
 * clusters again.  ALL: also index clusters that are anchored, which are
 * otherwise taken to be in the index. */
int srv_index_existing_step (struct srv_index_existing *x, bool all) MUST_CHECK;

/* --- The job ------------------------------------------------------------- */

/* The job is a struct srv_index_existing. */
extern const struct srv_job_ops srv_job_index_existing;

/* Makes one for the active disk DISK; srv_job_ops.end frees it.  REMEMBER: the image
 * notes that it runs, so that the next server goes on with it.  NULL: out of
 * memory. */
struct srv_index_existing *
srv_index_existing_new (struct srv_disk *disk, const char *path,
                        const struct log_sink *log, bool remember) MUST_CHECK;

#endif
