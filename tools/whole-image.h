/* SPDX-License-Identifier: BSD-3-Clause */
/* The code that index, scrub and compact share: each works through all of an image,
 * which nobody serves, and closes it.
 *
 * Functions without locks or state; one thread.
 */
#ifndef DEDUP_WHOLE_IMAGE_H
#define DEDUP_WHOLE_IMAGE_H

#include "dedup.h"
#include "tool-image.h"

/* Size of the table cache: holds the L2 tables and refcount blocks of 100 GiB
 * at 4 KiB clusters.  Of a larger disk some are read more than once. */
#define WHOLE_CACHE_BYTES (256u << 20)

/* Opens the image and the store file of A, from now on lets the first signal only end
 * loops, and hands both to RUN.  Returns the exit code. */
int whole_on_files (const struct tool_args *a, bool writable,
                    int (*run) (struct io_store *io, struct io_store *store,
                                const struct tool_args *a));
/* Opens the image for a subcommand that finds no new duplicates: with verify=off, which
 * keeps an index exact, if its hash allows that. */
int whole_open (struct io_store *io, struct io_store *store,
                const struct tool_args *a, struct dedup_pool **d, struct fault *f)
  MUST_CHECK;
/* Opens the image without writing, and with verify=on. */
int whole_open_read_only (struct io_store *io, struct io_store *store,
                          const struct tool_args *a, struct dedup_pool **d,
                          struct fault *f) MUST_CHECK;
/* Tells whether the image has a store; one that is opened for writing gets one. */
int whole_has_store (struct io_store *io, struct io_store *store,
                     const struct tool_args *a, bool *has_store, struct fault *f)
  MUST_CHECK;
/* Closes and frees an image, if it is writable with its last work done.  GIVE_BACK:
 * freed space goes back to the host, too.  Returns TOOL_OK, or TOOL_FAILED after a
 * message. */
int whole_close (struct dedup_pool *d, const char *path, bool give_back) MUST_CHECK;

/* Runs the jobs that are urgent.  0 or -errno. */
int whole_run_urgent (struct dedup_pool *d) MUST_CHECK;
/* Gives the space of freed clusters back to the host.  That may happen only
 * when a durable block says that the records which freed them are durable (law
 * 6), and so takes up to three commits.  0 or -errno. */
int whole_give_back (struct dedup_pool *d) MUST_CHECK;

#endif
