/* SPDX-License-Identifier: BSD-3-Clause */
/* Every maximum of the dedup room, with its reason. */
#ifndef DEDUP_LIMITS_H
#define DEDUP_LIMITS_H

#define DEDUP_BLOCK_SIZE 4096          /* journal block, docs/on-disk.md 3.2 */
#define DEDUP_BLOCK_HEADER 48
#define DEDUP_AREA_UNIT (512u << 10)   /* an SSD erase block */
#define DEDUP_MAX_AREA (64u << 20)     /* of order 20; a recovery reads all */
#define DEDUP_MAX_JOURNAL_AREAS 128    /* fits the configuration slot */
#define DEDUP_MAX_INCARNATIONS 1024    /* fits the configuration slot */
#define DEDUP_MAX_LIMBO 64
#define DEDUP_MAX_CUTS 16              /* crashes since the oldest index entry */
#define DEDUP_MAX_SEGMENTS 352         /* fits the configuration slot */
#define DEDUP_CONFIG_SLOT 65536        /* 128 + 128*24 + 1024*40 + 80*16 +
                                        * 8 + 352*56 */
#define DEDUP_MAX_SHARDS 4096          /* of a filter; merges plan segments of
                                        * 2^26 entries, which are 2048 */
#define DEDUP_SPARE_SEGMENTS 16        /* of them, for merges to get on with */
#define DEDUP_MAX_LEVEL 15
#define DEDUP_MIN_ORDER 4
#define DEDUP_SLOT_BYTES 42            /* of a log store, in RAM */
#define DEDUP_MAX_ORDER 20             /* 4 M slots: 176 MB */
#define DEDUP_MAX_HINTS (1u << 20)     /* 8 MiB: the last 4 GiB at 4 KiB */
#define DEDUP_PAGE_SIZE 4096           /* incarnation page */
#define DEDUP_PAGE_ENTRIES 101         /* of a segment; 100 of an incarnation */
#define DEDUP_CENSUS_ENTRIES 8192      /* looked at to tell live from dead */
#define DEDUP_CENSUS_BYTES (256u << 20)   /* of data read for it */

#endif
