/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens a byte store whose bytes are an NBD export, through libnbd.
 *
 * It is a place that does not grow, as a device is: io_max_size is the size of
 * the export (rounded down to its minimum block), a write past it fails with
 * -ENOSPC, and io_allocate does nothing.  Requests are asynchronous on up
 * to NBD_MAX_CONNECTIONS connections, any number of them at a time, and cut to
 * what the server takes.
 *
 * A lost connection is made again, for reconnect_delay seconds; calls wait
 * meanwhile.  What was written since the last io_sync is kept in memory (some
 * 64 MiB at the most; then the store syncs by itself) and written again, as the
 * server may have lost it.  Then the calls go on as if nothing had happened.
 * A server that does not answer for three quarters of that time counts as a
 * lost connection, too.  When the time is over, all calls fail with -EIO for
 * good, and one line says so.
 *
 * What had been sent when a connection broke, and had no answer or was not flushed, may
 * still land later.  That does no harm while the same bytes are there.  So its range is
 * tainted until the store is closed (io_tainted): a new write or discard that
 * touches it fails with -ESTALE, whatever its bytes.  Not so if the storage is fenced.
 */
#ifndef DEDUP_IO_NBD_H
#define DEDUP_IO_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "io.h"
#include "log.h"

#define NBD_MAX_CONNECTIONS 16

struct io_nbd_params {
  const char *uri;              /* as libnbd spells it; copied */
  bool writable;
  /* The most connections, 0: as many as measured best.  Without multi-conn the
   * server gets one only: a flush there covers its own connection. */
  unsigned connections;
  /* How many seconds requests wait for a lost connection to come back; 0: they
   * fail at once. */
  unsigned reconnect_delay;
  /* What was sent on a connection that broke cannot land after what is sent on a later
   * one: the storage sees to that, and nothing is tainted. */
  bool fenced;
  /* Lines on lost connections; must outlive the store.  May be NULL. */
  const struct log_sink *log;

  /* Is called when a connection is back, before anything else is sent; < 0: all
   * requests fail from then on.  It may read, write and sync through the store
   * itself: calls of its thread pass, those of others wait.  So it must not
   * wait for another thread that may be in such a call.  A call that fails with
   * -EIO may mean that the connection broke again: then it is called once more
   * when there is another one, whatever it returns.  May be NULL. */
  int (*may_resume) (void *opaque);
  void *opaque;
};

/* Connects to the export and sets *OUT.  Fails, with a line in F that does not
 * name the URI, if nobody answers within some seconds, if the export is
 * read-only or has no flush and PARAMS asks to write, or if its minimum block
 * is above 4096 bytes.
 *
 * What differs from a local file: io_discard needs a server that trims
 * (-EOPNOTSUPP otherwise), and the range reads as zeroes or as before.  Holes
 * are known where the server tells them (base:allocation). */
int io_nbd_open (const struct io_nbd_params *params, struct io_store **out,
                 struct fault *f) MUST_CHECK;

#endif
