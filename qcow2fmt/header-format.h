/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the bytes on disk of the first cluster, the snapshot table and
 * persistent bitmaps (QEMU docs/interop/qcow2.txt, "Header", "Snapshots" and
 * "Bitmaps"), and the walk over the header extensions that decoding and
 * rebuilding share. */
#ifndef QCOW2_HEADER_FORMAT_H
#define QCOW2_HEADER_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "wire.h"

/* The first bytes of an image while it is being created (create.c). */
#define QCOW2_MAKING_MARK "DDUPUNFINISHED"
#define QCOW2_MAGIC UINT32_C (0x514649fb)      /* "QFI\xfb" */
#define QCOW2_V2_HEADER_LENGTH 72
#define QCOW2_V3_HEADER_LENGTH 104             /* the least */

struct qcow2_wire_header {
  be32 magic;
  be32 version;
  be64 backing_off;
  be32 backing_len;
  be32 cluster_bits;
  be64 size;
  be32 crypt_method;
  be32 l1_entries;
  be64 l1_off;
  be64 reftable_off;
  be32 reftable_clusters;
  be32 nr_snapshots;
  be64 snapshots_off;
  /* The fields from here on exist in version 3 only. */
  be64 incompatible;
  be64 compatible;
  be64 autoclear;
  be32 refcount_order;
  be32 header_length;
  /* The fields from here on exist if header_length covers them. */
  uint8_t compression_type;
  uint8_t padding[7];
};
WIRE_FIELD_AT (struct qcow2_wire_header, magic, 0);
WIRE_FIELD_AT (struct qcow2_wire_header, version, 4);
WIRE_FIELD_AT (struct qcow2_wire_header, backing_off, 8);
WIRE_FIELD_AT (struct qcow2_wire_header, backing_len, 16);
WIRE_FIELD_AT (struct qcow2_wire_header, cluster_bits, 20);
WIRE_FIELD_AT (struct qcow2_wire_header, size, 24);
WIRE_FIELD_AT (struct qcow2_wire_header, crypt_method, 32);
WIRE_FIELD_AT (struct qcow2_wire_header, l1_entries, 36);
WIRE_FIELD_AT (struct qcow2_wire_header, l1_off, 40);
WIRE_FIELD_AT (struct qcow2_wire_header, reftable_off, 48);
WIRE_FIELD_AT (struct qcow2_wire_header, reftable_clusters, 56);
WIRE_FIELD_AT (struct qcow2_wire_header, nr_snapshots, 60);
WIRE_FIELD_AT (struct qcow2_wire_header, snapshots_off, 64);
WIRE_FIELD_AT (struct qcow2_wire_header, incompatible, 72);
WIRE_FIELD_AT (struct qcow2_wire_header, compatible, 80);
WIRE_FIELD_AT (struct qcow2_wire_header, autoclear, 88);
WIRE_FIELD_AT (struct qcow2_wire_header, refcount_order, 96);
WIRE_FIELD_AT (struct qcow2_wire_header, header_length, 100);
WIRE_FIELD_AT (struct qcow2_wire_header, compression_type, 104);
_Static_assert (sizeof (struct qcow2_wire_header) == 112, "header length");

#define QCOW2_EXT_END             UINT32_C (0)
#define QCOW2_EXT_BACKING_FORMAT  UINT32_C (0xe2792aca)
#define QCOW2_EXT_FEATURE_NAMES   UINT32_C (0x6803f857)
#define QCOW2_EXT_DATA_FILE       UINT32_C (0x44415441)
#define QCOW2_EXT_BITMAPS         UINT32_C (0x23852875)
#define QCOW2_EXT_STORE           UINT32_C (0xcd8e819b)   /* ours */

struct qcow2_wire_ext {
  be32 type;
  be32 len;                    /* of the data, which is padded to 8 */
};
WIRE_FIELD_AT (struct qcow2_wire_ext, len, 4);

struct qcow2_wire_feature {    /* an entry of the feature name table */
  uint8_t type;                /* 0 incompatible, 1 compatible, 2 autoclear */
  uint8_t bit;
  char name[46];               /* zero padded */
};
WIRE_FIELD_AT (struct qcow2_wire_feature, name, 2);
_Static_assert (sizeof (struct qcow2_wire_feature) == 48, "feature name");

struct qcow2_wire_snapshot {
  be64 l1_off;
  be32 l1_entries;
  be16 id_len;
  be16 name_len;
  be32 date_sec;
  be32 date_nsec;
  be64 vm_clock_nsec;
  be32 vm_state_size;
  be32 extra_len;
};
WIRE_FIELD_AT (struct qcow2_wire_snapshot, l1_entries, 8);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, id_len, 12);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, name_len, 14);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, date_sec, 16);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, date_nsec, 20);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, vm_clock_nsec, 24);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, vm_state_size, 32);
WIRE_FIELD_AT (struct qcow2_wire_snapshot, extra_len, 36);
_Static_assert (sizeof (struct qcow2_wire_snapshot) == 40, "snapshot entry");

struct qcow2_wire_snapshot_extra {
  be64 vm_state_size;
  be64 disk_size;
};
WIRE_FIELD_AT (struct qcow2_wire_snapshot_extra, disk_size, 8);

/* The extra data of a disk of this program (docs/on-disk.md section 11): the
 * fields of QEMU, and from byte 24 on ours. */
#define QCOW2_DISK_MAGIC "DDUPDISK"
#define QCOW2_DISK_VERSION 1u

struct qcow2_wire_disk {
  be64 vm_state_size;
  be64 disk_size;
  be64 icount;                 /* all ones: none */
  char magic[8];
  be32 version;
  be32 flags;
  uint8_t uuid[16];
  uint8_t origin[16];
  be64 created;                /* seconds since 1970 */
  uint8_t compress;            /* QCOW2_COMPRESS_* */
  uint8_t reserved[7];
};
WIRE_FIELD_AT (struct qcow2_wire_disk, disk_size, 8);
WIRE_FIELD_AT (struct qcow2_wire_disk, icount, 16);
WIRE_FIELD_AT (struct qcow2_wire_disk, magic, 24);
WIRE_FIELD_AT (struct qcow2_wire_disk, version, 32);
WIRE_FIELD_AT (struct qcow2_wire_disk, flags, 36);
WIRE_FIELD_AT (struct qcow2_wire_disk, uuid, 40);
WIRE_FIELD_AT (struct qcow2_wire_disk, origin, 56);
WIRE_FIELD_AT (struct qcow2_wire_disk, created, 72);
WIRE_FIELD_AT (struct qcow2_wire_disk, compress, 80);
WIRE_FIELD_AT (struct qcow2_wire_disk, reserved, 81);
_Static_assert (sizeof (struct qcow2_wire_disk) == 88, "extra data of a disk");

/* --- The walk over the extensions (header.c) ------------------------- */

struct qcow2_ext {
  uint32_t type;
  uint32_t len;
  const uint8_t *data;         /* in the buffer that is walked */
};

struct qcow2_ext_walk {
  const uint8_t *buf;
  size_t at, end;              /* at <= end */
};

/* Starts a walk at the first extension in BUF, LEN bytes of the first cluster.
 * The area of the extensions ends where the backing name begins. */
struct qcow2_ext_walk qcow2_ext_first (const uint8_t *buf, size_t len,
                                       uint32_t header_length);
/* Moves to the next extension: 1 and sets *E; 0 at the end; -EINVAL if the
 * extension reaches past the area. */
int qcow2_ext_next (struct qcow2_ext_walk *w, struct qcow2_ext *e) MUST_CHECK;

/* --- Persistent bitmaps ("Bitmaps extension") ------------------------ */
struct qcow2_wire_bitmaps {    /* payload of the extension */
  be32 nr_bitmaps;
  be32 reserved;
  be64 directory_size;
  be64 directory_off;
};
WIRE_FIELD_AT (struct qcow2_wire_bitmaps, directory_off, 16);

struct qcow2_wire_bitmap {     /* directory entry, fixed part */
  be64 table_off;
  be32 table_entries;
  be32 flags;
  uint8_t type;
  uint8_t granularity_bits;
  be16 name_size;
  be32 extra_size;
};
WIRE_FIELD_AT (struct qcow2_wire_bitmap, flags, 12);
WIRE_FIELD_AT (struct qcow2_wire_bitmap, extra_size, 20);

#endif
