/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the functions that file.c and file-birth.c share.  Private to
 * io/. */
#ifndef DEDUP_FILE_STORE_H
#define DEDUP_FILE_STORE_H

#include "io.h"

/* Returns the -errno that this room returns for the errno of a failed host
 * call. */
int io_host_error (int err);

/* Fills F with a message for the administrator about a file that could not be
 * opened or created because of ERR; returns -ERR. */
int io_open_failed (int err, struct fault *f);

/* Makes a byte store of the open descriptor FD, which becomes the store's (it
 * is closed on failure), and takes LOCK. */
int io_file_wrap (int fd, bool writable, enum io_file_lock lock,
                  struct io_store **out, struct fault *f) MUST_CHECK;

#endif
