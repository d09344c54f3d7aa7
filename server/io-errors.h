/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the listener of an image that requests failed (io-errors.c). */
#ifndef DEDUP_IO_ERRORS_H
#define DEDUP_IO_ERRORS_H

#include "disk-internal.h"

struct srv_io_errors {          /* all atomic; by type of request */
  uint64_t told_ns[SRV_NR_REQUESTS];    /* when the last event was; 0: never */
  uint64_t untold[SRV_NR_REQUESTS];     /* errors since then */
};

/* Emits SRV_EVENT_IO_ERROR, at most once a second for each type of request.  OPAQUE
 * is the image; for struct srv_accounts. */
void srv_io_failed (void *opaque, struct srv_disk *d, enum srv_request type,
                    uint64_t guest_off, uint64_t len, int err);

#endif
