/* SPDX-License-Identifier: BSD-3-Clause */
/* What an administrator asks of an image that is served.  A part of server.h, which
 * includes it.  Between srv_image_start and srv_image_close, any thread may call these
 * functions.
 */
#ifndef DEDUP_SERVER_MANAGE_H
#define DEDUP_SERVER_MANAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"

struct srv_image;

struct srv_image_info {
  uint64_t virtual_size;        /* of the active disk, in bytes */
  uint32_t cluster_size;        /* bytes */
  bool writable;                /* was opened for writing */
  bool failed;                  /* but clients cannot write any more */
  char read_only_reason[200];   /* why clients cannot write; "" if they can */
};

/* Tells what the image is.  Asks the host nothing, so it does not block. */
void srv_image_info (struct srv_image *m, struct srv_image_info *i);
/* Returns the bytes that the file takes on the host; UINT64_MAX: not known.  Asks the
 * host, whose storage may hang. */
uint64_t srv_image_allocated_bytes (struct srv_image *m);

/* Makes all requests durable that were answered before the call.  -ENOSPC, -EIO. */
int srv_image_flush (struct srv_image *m) MUST_CHECK;
/* Does the same, and writes all changed tables in their places, so that a recovery has
 * little to read.  -EROFS: the image is open for reading only. */
int srv_image_checkpoint (struct srv_image *m, struct fault *f) MUST_CHECK;

/* Sets how often writes become durable that clients do not flush; 0: never. */
void srv_image_set_commit_interval (struct srv_image *m, unsigned ms);
unsigned srv_image_commit_interval (const struct srv_image *m);

#endif
