/* SPDX-License-Identifier: BSD-3-Clause */
/* Moves scattered data that was read in sequence, a step at a time
 * (defragment.c). */
#ifndef DEDUP_DEFRAGMENT_H
#define DEDUP_DEFRAGMENT_H

#include "disk-internal.h"
#include "server-jobs.h"

struct srv_defragment {         /* DISK is enough to begin */
  /* Constant: */
  struct srv_disk *disk;
  const char *path;             /* for messages */
  const struct log_sink *log;

  /* One step at a time: */
  /* Clusters of the unit that is under way; atomic: */
  uint64_t guest_idx, end_idx;
  uint64_t done;                /* bytes that were looked at; atomic */
  uint64_t pieces, bytes;       /* moved since the last line */
  uint64_t failed;              /* pieces that could not be moved since then, */
  int why;                      /* and the last one's -errno */
};

/* Calls dedup_defragment with the range lock. */
int srv_defragment_piece (struct srv_disk *d, uint64_t guest_idx, size_t nr)
  MUST_CHECK;

/* Moves the next piece of the marked units, if it can be moved.  Returns 1 if
 * there is more, or 0 if nothing is marked; never an error, as a piece that could
 * not be moved is not tried again. */
int srv_defragment_step (struct srv_defragment *j) MUST_CHECK;
/* Returns true if something is marked and nobody has read in sequence for some
 * seconds. */
bool srv_defragment_is_due (const struct srv_defragment *j);

/* The job "defragment", which is a struct srv_defragment. */
extern const struct srv_job_ops srv_job_defragment;

#endif
