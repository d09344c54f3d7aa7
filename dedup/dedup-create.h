/* SPDX-License-Identifier: BSD-3-Clause */
/* A part of dedup.h, which includes it: making new images.
 */
#ifndef DEDUP_DEDUP_CREATE_H
#define DEDUP_DEDUP_CREATE_H

#include "dedup-types.h"
#include "hash.h"
#include "qcow2.h"

struct dedup_create_params {
  struct qcow2_create_params image;
  enum dedup_hash_alg hash;
  uint32_t max_incarnations;
  unsigned order;                  /* 0: by image size */
  unsigned journal_areas;          /* 0: by order */
  enum dedup_compress compress;    /* new data; sets image.compression_type */
};
/* Makes an empty image with a store, closed cleanly, in the empty IO. */
int dedup_create (struct io_store *io, const struct dedup_create_params *p,
                  struct fault *f) MUST_CHECK;

struct dedup_measure {             /* bytes of an image made with P */
  uint64_t required;               /* empty */
  uint64_t fully_allocated;        /* an upper bound, for all it can hold */
};
/* Computes how large an image made with P gets.  Errors as dedup_create. */
int dedup_measure (const struct dedup_create_params *p,
                   struct dedup_measure *m, struct fault *f) MUST_CHECK;

/* Makes an image at PATH as dedup_create does, and opens it for writing,
 * locked: *IO is the caller's.  A new file appears under PATH only when it is
 * complete (*NAMED: a caller who gives up may remove it).  An empty file, an
 * empty device or an unfinished image (make.c) is written in place; with
 * OVERWRITE_DEVICE a device may hold anything.  -EEXIST without a fault: PATH
 * holds something else. */
int dedup_make (const char *path, const struct dedup_create_params *p,
                bool overwrite_device, struct io_store **io, bool *named,
                struct fault *f) MUST_CHECK;

#endif
