/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what pages of incarnations and of segments have in common. */
#ifndef DEDUP_PAGE_H
#define DEDUP_PAGE_H

#include "wire.h"

/* Returns the checksum of PAGE, DEDUP_PAGE_SIZE bytes, with its field at
 * CHECKSUM taken as 0.  PAGE is changed and restored meanwhile. */
uint64_t dedup_page_checksum (void *page, be64 *checksum);

#endif
