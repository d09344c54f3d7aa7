/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_IMAGE_FILE_H
#define DEDUP_IMAGE_FILE_H

#include "dedup.h"
#include "server.h"

/* Opens the file of the image that P describes, locked, or creates it if it is
 * missing and P has a size for it; HASH is that of a new store.  *CREATED: the
 * path is new, so a caller who gives up may remove it. */
int srv_image_file_open (const struct srv_image_params *p,
                         enum dedup_hash_alg hash, enum dedup_compress compress,
                         struct io_store **io, bool *created, struct fault *f) MUST_CHECK;

#endif
