/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares reads that bypass the page cache.  Private to io/. */
#ifndef DEDUP_FILE_MEDIUM_H
#define DEDUP_FILE_MEDIUM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "file-aio.h"

/* A second descriptor of a file, opened with O_DIRECT at the first use. */
struct io_medium {
  pthread_mutex_t lock;          /* while it is being opened */
  bool tried;                    /* atomic */
  int fd;                        /* -1: the host has no O_DIRECT here */
  struct io_aio aio;             /* has a lock of its own */
};

void io_medium_init (struct io_medium *m);
void io_medium_destroy (struct io_medium *m);

/* Reads LEN bytes at HOST_OFF of the file that FD is a descriptor of, for
 * io_pread_medium.  Bytes past the end are zero.  0, or the host's -errno. */
int io_medium_read (struct io_medium *m, int fd, void *buf, size_t len,
                    uint64_t host_off) MUST_CHECK;

#endif
