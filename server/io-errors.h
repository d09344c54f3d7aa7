/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells the listener of an image that requests failed (io-errors.c). */
#ifndef DEDUP_IO_ERRORS_H
#define DEDUP_IO_ERRORS_H

#include "disk-internal.h"
#include "events.h"

struct srv_io_errors {
  struct srv_event_rate rates[SRV_NR_REQUESTS];
};

/* Emits SRV_EVENT_IO_ERROR, at most once a second for each type of request.  OPAQUE
 * is the image; for struct srv_accounts. */
void srv_io_failed (void *opaque, struct srv_disk *d, enum srv_request type,
                    uint64_t guest_off, uint64_t len, int err);

#endif
