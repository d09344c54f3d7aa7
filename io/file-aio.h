/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares direct reads that hold up no writer of the file.  Private to io/. */
#ifndef DEDUP_FILE_AIO_H
#define DEDUP_FILE_AIO_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "cleanup.h"

struct io_aio_context;          /* file-aio.c */

struct io_aio {
  pthread_mutex_t lock;

  /* Protected by lock: */
  struct io_aio_context *idle;  /* list */
  unsigned nr_reads;            /* counted as far as FIRST_READS */
};

void io_aio_init (struct io_aio *a);
/* Nobody reads any more. */
void io_aio_destroy (struct io_aio *a);

/* Reads as pread does, from FD, which was opened with O_DIRECT.  Returns how many bytes,
 * or -errno.  -ENOSYS: nothing was read, and the caller is to call pread. */
ssize_t io_aio_pread (struct io_aio *a, int fd, void *buf, size_t len,
                      uint64_t host_off) MUST_CHECK;

#endif
