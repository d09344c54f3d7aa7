/* SPDX-License-Identifier: BSD-3-Clause */
/* A sparse bitmap with one bit per host cluster. */
#ifndef QCOW2_BITMAP_H
#define QCOW2_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

/* Bits live in chunks that exist only while one of their bits is set. */
#define QCOW2_BITMAP_CHUNK 32768u   /* bits: 4 KiB */

/* The array of chunk pointers may grow to 32 MiB: clusters up to 2^37,
 * 512 TiB in clusters of 4 KiB.  Clusters past that are not tracked. */
#define QCOW2_BITMAP_MAX_TOP (UINT64_C (1) << 22)

/* At most 64 MiB of bits: 2^29 clusters, 2 TiB in clusters of 4 KiB. */
#define QCOW2_BITMAP_MAX_CHUNKS 16384u

#define QCOW2_BITMAP_NONE UINT64_MAX

struct qcow2_bitmap;

struct qcow2_bitmap *qcow2_bitmap_new (void);   /* NULL: no memory */
void qcow2_bitmap_free (struct qcow2_bitmap *b);

/* Set COUNT bits from IDX.  -ENOMEM, with some of them set, where memory or
 * the limits above end. */
int qcow2_bitmap_set (struct qcow2_bitmap *b, uint64_t idx, uint64_t count)
  MUST_CHECK;
void qcow2_bitmap_clear (struct qcow2_bitmap *b, uint64_t idx,
                         uint64_t count);
bool qcow2_bitmap_test (const struct qcow2_bitmap *b, uint64_t idx);

/* First set bit at or after FROM, QCOW2_BITMAP_NONE if there is none. */
uint64_t qcow2_bitmap_next (const struct qcow2_bitmap *b, uint64_t from);
/* How many bits from FROM on are set, at most MAX. */
uint64_t qcow2_bitmap_run (const struct qcow2_bitmap *b, uint64_t from,
                           uint64_t max);
uint64_t qcow2_bitmap_count (const struct qcow2_bitmap *b);
size_t qcow2_bitmap_memory (const struct qcow2_bitmap *b);

#endif
