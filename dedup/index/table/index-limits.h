/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the sizes and limits of the index, with their reasons. */
#ifndef DEDUP_INDEX_LIMITS_H
#define DEDUP_INDEX_LIMITS_H

#define DEDUP_MAX_INCARNATIONS 1024    /* fits the configuration slot */
#define DEDUP_MAX_LIMBO 64             /* fits the configuration slot */
#define DEDUP_MAX_SEGMENTS 352         /* fits the configuration slot */
#define DEDUP_SPARE_SEGMENTS 16        /* of them, kept for the merges that make
                                        * the list shorter when it is full */
#define DEDUP_MAX_SHARDS 4096          /* of a filter; merges plan segments of
                                        * 2^26 entries, which are 2048 */
#define DEDUP_MAX_LEVEL 15             /* of a run */
#define DEDUP_MIN_ORDER 4              /* of a log store */
#define DEDUP_MAX_ORDER 20             /* 4 M slots: 176 MB */
#define DEDUP_SLOT_BYTES 42            /* of a log store, in RAM */
#define DEDUP_MAX_SPILLED 64           /* entries without a place in one log
                                        * store; more are lost, which costs
                                        * ratio */
#define DEDUP_PAGE_SIZE 4096           /* of a table on disk */
#define DEDUP_PAGE_ENTRIES 101         /* of a segment; an incarnation: 100 */

#endif
