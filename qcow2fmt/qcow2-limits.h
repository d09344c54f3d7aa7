/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists every limit of the format room, with its reason. */
#ifndef QCOW2_LIMITS_H
#define QCOW2_LIMITS_H

#define QCOW2_MIN_CLUSTER_BITS 9      /* specification, header byte 20 */
#define QCOW2_MAX_CLUSTER_BITS 21     /* QEMU's limit */

/* An extended L2 entry has 32 subclusters, of 512 bytes or more. */
#define QCOW2_SUBCLUSTERS 32
#define QCOW2_MIN_EXTENDED_CLUSTER (512u * QCOW2_SUBCLUSTERS)
#define QCOW2_EXTENDED_L2_ENTRY 16    /* bytes */

/* QEMU's limits for tables: it refuses to open an image with larger ones. */
#define QCOW2_MAX_L1_BYTES (UINT64_C (32) << 20)
#define QCOW2_MAX_REFTABLE_BYTES (UINT64_C (8) << 20)
#define QCOW2_MAX_SNAPSHOTS 65536
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (UINT64_C (1024) * QCOW2_MAX_SNAPSHOTS)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024

#define QCOW2_MAX_BACKING_NAME 1023   /* specification, header byte 16 */
#define QCOW2_MAX_BACKING_DEPTH 64    /* deeper chains: a loop, or a mistake */

/* The table cache of each image of a backing chain: 2^20 L2 entries, 64 GiB of
 * disk with clusters of 64 KiB.  The deepest chain takes 512 MiB. */
#define QCOW2_BACKING_CACHE_BYTES (UINT64_C (8) << 20)

/* QEMU's limits for persistent bitmaps. */
#define QCOW2_MAX_BITMAPS 65535
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES (UINT64_C (1024) * QCOW2_MAX_BITMAPS)

/* Host offsets fit in bits 9-55 of an entry. */
#define QCOW2_MAX_HOST_OFF (UINT64_C (1) << 56)

#endif
