/* SPDX-License-Identifier: BSD-3-Clause */
/* The bytes of a lease: docs/on-disk.md section 13.1.  Private to io/ and its
 * tests. */
#ifndef DEDUP_LEASE_RECORD_H
#define DEDUP_LEASE_RECORD_H

#include "lease.h"

#define LEASE_RECORD 512u                   /* bytes that say something */
#define LEASE_SLOT 4096u
#define LEASE_SLOTS (IO_LEASE_BYTES / LEASE_SLOT)

/* Generations above this are not valid, so that there is always a next one. */
#define LEASE_GENERATION_MAX (UINT64_C (1) << 62)

/* Encodes H into a slot; the rest of it becomes zero. */
void lease_record_encode (const struct io_lease_holder *h,
                          uint8_t slot[LEASE_SLOT]);

/* Decodes the record of a slot.  Returns 1, 0 if the slot is all zero, or
 * -EINVAL if it holds anything else. */
int lease_record_decode (const uint8_t slot[LEASE_SLOT],
                         struct io_lease_holder *h) MUST_CHECK;

#endif
