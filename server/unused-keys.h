/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_UNUSED_KEYS_H
#define DEDUP_UNUSED_KEYS_H

#include "server.h"

/* Logs a line for each of the parameters P that has no effect, because the
 * image exists already.  D is its active disk. */
void srv_log_unused_keys (const struct srv_image_params *p,
                          const struct srv_disk *d);
/* Logs a line for each of those that are for images on NBD exports, where this one is
 * not. */
void srv_log_unused_uri_keys (const struct srv_image_params *p);

#endif
