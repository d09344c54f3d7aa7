/* SPDX-License-Identifier: BSD-3-Clause */
/* Every maximum of the dedup room, with its reason; those of the index and
 * the journal are in headers of their own. */
#ifndef DEDUP_LIMITS_H
#define DEDUP_LIMITS_H

#include "index-limits.h"
#include "journal-limits.h"

#define DEDUP_AREA_UNIT (512u << 10)   /* an SSD erase block */
#define DEDUP_MAX_AREA (64u << 20)     /* of order 20; a recovery reads all */
#define DEDUP_MAX_CUTS 16              /* crashes since the oldest index entry */
#define DEDUP_CONFIG_SLOT 65536        /* 128 + 128*24 + 1024*40 + 80*16 +
                                        * 8 + 352*56 */
#define DEDUP_MAX_HINTS (1u << 20)     /* 8 MiB: the last 4 GiB at 4 KiB */
#define DEDUP_CENSUS_ENTRIES 8192      /* looked at to tell live from dead */
#define DEDUP_CENSUS_BYTES (256u << 20)   /* of data read for it */

#endif
