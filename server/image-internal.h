/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares an open image as the files of this room see it (image.c). */
#ifndef DEDUP_IMAGE_INTERNAL_H
#define DEDUP_IMAGE_INTERNAL_H

#include "clients.h"
#include "compact-due.h"
#include "defragment.h"
#include "events.h"
#include "exports.h"
#include "image-jobs.h"
#include "index-existing.h"
#include "io-errors.h"
#include "loop.h"
#include "watch.h"

struct srv_image {
  /* Constant after open: */
  struct io_store *io;
  struct io_store *store;       /* the store file, or NULL */
  struct dedup_pool *pool;
  char *path;                   /* for messages; owned */
  const struct log_sink *log;
  bool writable;
  const char *read_only_because;        /* the caller's, or NULL */
  unsigned commit_interval_ms;
  bool index_existing, dedup;

  struct srv_listener listener; /* set before srv_image_start */
  struct srv_accounts accounts;
  uint64_t opened_at, opened_ns;        /* seconds since 1970; CLOCK_MONOTONIC */

  /* Changed by srv_image_start and srv_image_close, while no request runs: */
  struct srv_loop *loop;        /* NULL: none runs */
  bool before_fork;             /* IO has no threads */

  struct srv_defragment defragment;     /* of its job */
  struct {                      /* compact=auto; of the thread of WATCH */
    bool on;
    struct srv_compact_due due;
  } compaction;

  /* Lock themselves: */
  struct srv_space space;
  struct srv_exports exports;
  struct srv_jobs jobs;
  struct srv_clients clients;
  struct srv_io_errors io_errors;
  struct srv_event_rate refusals;       /* of clients */
  struct srv_watch watch;
};

/* Writes BYTES to BUF in the largest unit of which it is a whole number, such
 * as "20 GiB".  Returns BUF. */
const char *srv_format_size (uint64_t bytes, char *buf, size_t len);
/* Writes what is served to BUF, for people: "a disk of 20 GiB", or "a pool of 3 disks
 * and 1 snapshot".  Returns BUF. */
const char *srv_describe_exports (struct srv_image *m, char *buf, size_t len);

#endif
