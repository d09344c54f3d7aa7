/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens an image for a subcommand that works through all of it, runs jobs in between,
 * and closes it (whole-image.h).
 *
 * No loop runs jobs beside such a subcommand, so it runs those that are urgent itself, and
 * gives freed space back as it goes along.  A close that fails says so, and leaves an image
 * that is recovered at the next open.
 *
 * One thread; no globals.
 */
#include "whole-image.h"

#include <string.h>

/* --- Opening ------------------------------------------------------------------ */

int
whole_on_files (const struct tool_args *a, bool writable,
                int (*run) (struct io_store *io, struct io_store *store,
                            const struct tool_args *a))
{
  struct io_store *io, *store = NULL;
  struct fault f = { 0 };
  int r = io_place_open (a->path, writable ? IO_FILE_WRITE : 0,
                         writable ? IO_LOCK_WRITE : IO_LOCK_READ, &io, &f);

  if (r < 0)
    return tool_fault (a->path, r, &f);
  r = tool_open_store (a->store_path, writable, &store, &f);
  if (r < 0) {
    io_close (io);
    return tool_fault (a->path, r, &f);
  }
  tool_catch_signals ();
  r = run (io, store, a);
  io_close (store);
  io_close (io);
  return r;
}

static struct dedup_open_params
open_params (const struct tool_args *a, struct io_store *store, bool writable)
{
  return (struct dedup_open_params) {
    .path = a->path, .writable = writable, .dedup = true, .verify = !writable,
    .max_incarnations = -1, .cache_bytes = WHOLE_CACHE_BYTES,
    .log = &tool_log_errors, .host_files = QCOW2_FILES_IGNORE,
    .store = store, .store_path = a->store_path, .no_disk_ok = !writable,
  };
}

int
whole_open (struct io_store *io, struct io_store *store, const struct tool_args *a,
            struct dedup_pool **d, struct fault *f)
{
  struct dedup_open_params p = open_params (a, store, true);
  int r = dedup_open (io, &p, d, f);

  if (r == 0 || f->kind != FAULT_USAGE)
    return r;
  *f = (struct fault) { 0 };
  p.verify = true;
  return dedup_open (io, &p, d, f);
}

int
whole_open_read_only (struct io_store *io, struct io_store *store,
                      const struct tool_args *a, struct dedup_pool **d,
                      struct fault *f)
{
  const struct dedup_open_params p = open_params (a, store, false);

  return dedup_open (io, &p, d, f);
}

int
whole_has_store (struct io_store *io, struct io_store *store,
                 const struct tool_args *a, bool *has_store, struct fault *f)
{
  struct dedup_open_params p = open_params (a, store, false);
  struct dedup_pool *d;
  struct dedup_stats s;
  int r;

  p.log = NULL;                 /* the open that counts says it */
  r = dedup_open (io, &p, &d, f);
  if (r < 0)
    return r;
  dedup_get_stats (d, &s);
  *has_store = s.has_store;
  dedup_free (d);
  return 0;
}

/* --- Closing ------------------------------------------------------------------ */

int
whole_close (struct dedup_pool *d, const char *path, bool give_back)
{
  const int r = dedup_writable (d) ? dedup_finish (d) : 0;

  if (r == 0 && give_back)
    dedup_give_back_all (d);
  dedup_free (d);
  return r == 0 ? TOOL_OK
    : tool_error (path, "the image could not be closed cleanly: %s; it is recovered "
                  "when it is opened next", strerror (-r));
}

/* --- Jobs --------------------------------------------------------------------- */

int
whole_run_urgent (struct dedup_pool *d)
{
  unsigned urgent, job;
  int r = 0;

  dedup_due (d, &urgent);
  for (job = 1; urgent >= job && r >= 0; job <<= 1)
    if (urgent & job)
      r = dedup_run (d, job);
  return r;
}

int
whole_give_back (struct dedup_pool *d)
{
  int i, r = 0;

  for (i = 0; i < 3 && r >= 0; i++)
    if (dedup_due (d, NULL) & DEDUP_JOB_COMMIT)
      r = dedup_run (d, DEDUP_JOB_COMMIT);
  return r;
}
