/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of this room share: the export itself. */
#ifndef DEDUP_SERVER_INTERNAL_H
#define DEDUP_SERVER_INTERNAL_H

#include "dedup.h"
#include "export.h"
#include "loop.h"
#include "range-lock.h"
#include "read-ahead.h"
#include "space.h"

struct srv_existing {           /* how far indexing is */
  uint64_t guest_idx;
  struct dedup_existing counts;
  uint64_t said_ns;             /* CLOCK_MONOTONIC, of the last line on it */
  unsigned said_percent;
};

struct srv_name;                /* snapshot.c */

struct srv_export {
  /* Constant after open: */
  struct io_store *io;
  struct io_store *store;       /* the store file, or NULL */
  struct dedup_disk *disk;
  char *path;                   /* for messages; owned */
  const struct log_sink *log;
  bool writable;
  const char *read_only_because;        /* the caller's, or NULL */
  unsigned commit_interval_ms;
  bool index_existing, dedup;
  unsigned cluster_bits;
  uint64_t nr_clusters;         /* the last one may be partial */
  uint64_t size_bytes;
  struct srv_name *names;       /* of snapshots, sorted; owned */
  size_t nr_names;

  /* Set by srv_start, cleared by srv_close, when no request runs: */
  struct srv_loop *loop;

  /* One step at a time: */
  struct srv_existing existing;

  /* Lock themselves: */
  struct srv_range_lock ranges;
  struct srv_space space;
  struct srv_read_ahead read_ahead;

  /* Atomic: */
  uint64_t last_change_ns;      /* CLOCK_MONOTONIC, of the last request that
                                 * may have changed something */
};

/* Index the next clusters that hold data: 1, or 0 at the end of the disk.  On
 * failure nothing was changed, and the next call tries the same again. */
int srv_existing_step (struct srv_export *e, bool all,
                       struct srv_existing *x) MUST_CHECK;

/* The same as a step of the loop (loop.h); OPAQUE: the export. */
int srv_existing_background (void *opaque) MUST_CHECK;

/* unused-keys.c: log what P asks for and the image that is there, not created
 * just now, does not get. */
void srv_say_unused_keys (const struct srv_export *e,
                          const struct srv_params *p);

/* snapshot.c: make and free e->names. */
int srv_names_init (struct srv_export *e) MUST_CHECK;

#endif
