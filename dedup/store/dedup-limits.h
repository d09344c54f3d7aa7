/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the maximums of the dedup room, with their reasons; those of the
 * index and of the journal are in headers of their own. */
#ifndef DEDUP_LIMITS_H
#define DEDUP_LIMITS_H

#include "index-limits.h"
#include "journal-limits.h"

#define DEDUP_AREA_UNIT (512u << 10)   /* an SSD erase block */
#define DEDUP_MAX_AREA (64u << 20)     /* of order 20; a recovery reads all */
#define DEDUP_MAX_CUTS 16              /* crashes since the oldest entry */
#define DEDUP_CONFIG_SLOT 65536        /* 128 + 128*24 + 1024*40 + 80*16 +
                                        * 8 + 352*56 + 16 + 48 + 8 + 16*16 */
#define DEDUP_MAX_BAD 256              /* known bad clusters: 12 KiB of the slot,
                                        * fewer where it is full */
#define DEDUP_MAX_HINTS (1u << 20)     /* 8 MiB: the last 4 GiB at 4 KiB */
#define DEDUP_SAMPLE_ENTRIES 8192      /* looked at to tell live from dead */
#define DEDUP_SAMPLE_BYTES (256u << 20)   /* of data read for them */

/* The unit of qcow2's compressed data, in bytes. */
#define DEDUP_SECTOR 512u

/* Records of an operation, a cluster: its link, the drop of its old reference
 * (up to three clusters if compressed), and its share of new tables. */
#define DEDUP_RECORDS_PER_CLUSTER 8
/* Records that an operation takes at most besides those of its clusters, and of
 * lent tables that it copies: setting the log store aside closes a block (63
 * records) and logs FREEZE and what was spilled (DEDUP_MAX_SPILLED). */
#define DEDUP_OPERATION_RECORDS 200

#endif
