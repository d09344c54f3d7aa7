/* SPDX-License-Identifier: BSD-3-Clause */
/* Journal records: their coding inside a block (docs/on-disk.md 3.2). */
#ifndef DEDUP_RECORD_H
#define DEDUP_RECORD_H

#include "hash.h"
#include "qcow2.h"

enum dedup_record_type {
  DEDUP_REC_END = 1,
  DEDUP_REC_HASH = 2,
  DEDUP_REC_WRITE = 3,
  DEDUP_REC_INDEX = 4,
  DEDUP_REC_DELETE = 5,
  DEDUP_REC_L2 = 6,
  DEDUP_REC_REFCOUNT = 7,
  DEDUP_REC_L2TABLE = 8,
  DEDUP_REC_REFBLOCK = 9,
  DEDUP_REC_ANCHORTABLE = 10,
  DEDUP_REC_FREEZE = 11,
  DEDUP_REC_HEADER = 12,
  DEDUP_REC_BITMAP = 13,
  DEDUP_REC_NONE = 0xff,
};

#define DEDUP_REC_MAX 64    /* bytes of the longest record */

struct dedup_record {
  enum dedup_record_type type;
  uint16_t root;              /* HASH, WRITE */
  struct dedup_hash hash;     /* HASH, INDEX, DELETE */
  uint64_t checksum;          /* WRITE */
  uint64_t host_idx;          /* HASH, WRITE, INDEX */
  uint64_t guest_idx;         /* HASH, WRITE */
  struct qcow2_change change; /* L2 to BITMAP */
};

/* Encode; returns the size, at most DEDUP_REC_MAX. */
size_t dedup_record_encode (const struct dedup_record *r,
                            uint8_t buf[DEDUP_REC_MAX]);
/* Decode the record at BUF (LEN bytes follow).  Returns its size, or
 * -EBADMSG.  Does not check that values fit an image: qcow2_apply does. */
int dedup_record_decode (const uint8_t *buf, size_t len,
                         struct dedup_record *r) MUST_CHECK;
/* The same, without its fields. */
int dedup_record_check (const uint8_t *buf, size_t len) MUST_CHECK;
/* The record that carries a format change. */
void dedup_record_of_change (const struct qcow2_change *c,
                             struct dedup_record *r);

#endif
