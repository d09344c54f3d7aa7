/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the sizes and limits of the journal, with their reasons. */
#ifndef DEDUP_JOURNAL_LIMITS_H
#define DEDUP_JOURNAL_LIMITS_H

#define DEDUP_BLOCK_SIZE 4096          /* journal block, docs/on-disk.md 3.2 */
#define DEDUP_BLOCK_HEADER 48
#define DEDUP_MAX_JOURNAL_AREAS 128    /* fits the configuration slot */

#endif
