/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests: makes a byte store in memory with the contents of another one. */
#ifndef TESTS_IO_COPY_H
#define TESTS_IO_COPY_H

#include <stdlib.h>

#include "io.h"

/* The caller closes it.  NULL has none. */
static inline struct io_store *
copy_of (struct io_store *io)
{
  const uint64_t size = io ? (uint64_t) io_size (io) : 0;
  struct io_store *copy;
  uint8_t *buf;

  if (io == NULL)
    return NULL;
  buf = malloc (size + 1);
  if (buf == NULL || io_memory_new (size, &copy) < 0 ||
      io_pread (io, buf, size, 0) < 0 || io_pwrite (copy, buf, size, 0) < 0)
    abort ();
  free (buf);
  return copy;
}

#endif
