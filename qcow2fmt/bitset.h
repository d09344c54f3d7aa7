/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a sparse set of bits, one bit per host cluster. */
#ifndef QCOW2_BITSET_H
#define QCOW2_BITSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

/* The bits of one chunk.  A chunk exists only while one of its bits is set. */
#define QCOW2_BITSET_CHUNK 32768u   /* bits: 4 KiB */

/* The most chunk pointers.  Their array may grow to 32 MiB, for clusters up to
 * 2^37: 512 TiB in clusters of 4 KiB.  Clusters past that are not tracked. */
#define QCOW2_BITSET_MAX_TOP (UINT64_C (1) << 22)

/* The most chunks: 64 MiB of bits for 2^29 clusters, 2 TiB in clusters of
 * 4 KiB. */
#define QCOW2_BITSET_MAX_CHUNKS 16384u

#define QCOW2_BITSET_NONE UINT64_MAX

struct qcow2_bitset;

struct qcow2_bitset *qcow2_bitset_new (void);   /* NULL: out of memory */
void qcow2_bitset_free (struct qcow2_bitset *b);

/* Sets COUNT bits from IDX on.  -ENOMEM, with some of them set, where memory is
 * short or one of the limits above is reached. */
int qcow2_bitset_set (struct qcow2_bitset *b, uint64_t idx, uint64_t count)
  MUST_CHECK;
void qcow2_bitset_clear (struct qcow2_bitset *b, uint64_t idx,
                         uint64_t count);
bool qcow2_bitset_test (const struct qcow2_bitset *b, uint64_t idx);

/* Returns the first set bit at or after FROM, QCOW2_BITSET_NONE if there is
 * none. */
uint64_t qcow2_bitset_next (const struct qcow2_bitset *b, uint64_t from);
/* Returns how many bits in a row are set from FROM on, at most MAX. */
uint64_t qcow2_bitset_run (const struct qcow2_bitset *b, uint64_t from,
                           uint64_t max);
uint64_t qcow2_bitset_count (const struct qcow2_bitset *b);
size_t qcow2_bitset_memory (const struct qcow2_bitset *b);

#endif
