/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the fault, which carries an error to the one place that reports it.
 *
 * Libraries return 0 or -errno.  Where a bare errno would not tell an
 * administrator enough, they also fill a fault that the caller allocated.  Only
 * the consumer (plugin or tool) prints it, with the name of the file.
 */
#ifndef DEDUP_FAULT_H
#define DEDUP_FAULT_H

#include <stdint.h>

enum fault_kind {
  FAULT_NONE = 0,
  FAULT_IO,          /* an I/O call failed, or memory ran out */
  FAULT_CORRUPT,     /* bytes on disk contradict the format */
  FAULT_UNSUPPORTED, /* valid, but not served by this version */
  FAULT_USAGE,       /* a parameter asks for something impossible */
  FAULT_BUSY,        /* another process holds the image */
};

struct fault {
  int err;           /* positive errno */
  enum fault_kind kind;
  uint64_t off;      /* byte offset in the file, UINT64_MAX: none */
  char msg[512];     /* one line, without the file's name; printable */
};

/* Fills *F (which may be NULL) and returns -ERR.  The first fault stands: a
 * later one does not overwrite it. */
int fault_set (struct fault *f, enum fault_kind kind, int err, uint64_t off,
               const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 5, 6)));

/* Replaces control characters in S by '?': messages quote names from images,
 * and are one line each.  fault_set and log_line call it. */
void fault_make_printable (char *s);

/* Call fault_set with one kind each. */
#define fault_corrupt(f, off, ...) \
  fault_set ((f), FAULT_CORRUPT, EINVAL, (off), __VA_ARGS__)
#define fault_unsupported(f, ...) \
  fault_set ((f), FAULT_UNSUPPORTED, ENOTSUP, UINT64_MAX, __VA_ARGS__)
#define fault_usage(f, ...) \
  fault_set ((f), FAULT_USAGE, EINVAL, UINT64_MAX, __VA_ARGS__)
#define fault_io(f, err, off, ...) \
  fault_set ((f), FAULT_IO, (err), (off), __VA_ARGS__)

#endif
