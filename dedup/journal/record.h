/* SPDX-License-Identifier: BSD-3-Clause */
/* Journal records, and their encoding inside a block (docs/on-disk.md 3.2). */
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
  DEDUP_REC_ENTRY = 14,       /* 14 to 17: in images with disks */
  DEDUP_REC_TABLE = 15,
  DEDUP_REC_HASHAT = 16,
  DEDUP_REC_WRITEAT = 17,
  DEDUP_REC_REFLIST = 18,
  DEDUP_REC_PACKED = 19,      /* 19 and 20: where data is compressed */
  DEDUP_REC_PACKEDAT = 20,    /* ... in images with disks */
  DEDUP_REC_NONE = 0xff,
};

#define DEDUP_REC_MAX 64    /* bytes of the longest record */
#define DEDUP_LIST_MAX (DEDUP_REC_MAX - 11)   /* of that, the list of REFLIST */

struct dedup_record {
  enum dedup_record_type type;
  uint16_t root;              /* HASH, WRITE, PACKED */
  struct dedup_hash hash;     /* HASH, HASHAT, INDEX, DELETE, PACKED, PACKEDAT */
  uint64_t checksum;          /* WRITE, WRITEAT */
  uint64_t host_idx;          /* HASH, WRITE, HASHAT, WRITEAT, INDEX, REFLIST;
                               * PACKED, PACKEDAT: the descriptor */
  uint64_t guest_idx;         /* HASH, WRITE, PACKED */
  uint64_t place;             /* HASHAT, WRITEAT, PACKEDAT: of the L2 entry, a byte
                               * offset in the file */
  uint8_t entry_kind;         /* ENTRY: 1 if it is not CHANGE.is_l1 */
  union {
    struct qcow2_change change; /* L2 to TABLE */
    struct {
      uint8_t len;              /* bytes in use */
      uint8_t bytes[DEDUP_LIST_MAX];
    } list;                     /* REFLIST; see dedup_reflist_next */
  };
};

/* Returns whether a record says that new data, compressed, is where its descriptor
 * says, and that an L2 entry is that descriptor from now on. */
static inline bool
dedup_record_is_packed (const struct dedup_record *r)
{
  return r->type == DEDUP_REC_PACKED || r->type == DEDUP_REC_PACKEDAT;
}

/* Returns whether a record says that new data is at a host cluster, which an L2
 * entry refers to from now on. */
static inline bool
dedup_record_is_new_data (const struct dedup_record *r)
{
  return r->type == DEDUP_REC_HASH || r->type == DEDUP_REC_WRITE ||
    r->type == DEDUP_REC_HASHAT || r->type == DEDUP_REC_WRITEAT;
}

/* Encodes R; returns the size in bytes, at most DEDUP_REC_MAX. */
size_t dedup_record_encode (const struct dedup_record *r,
                            uint8_t buf[DEDUP_REC_MAX]);
/* Decodes the record at the start of the LEN bytes of BUF.  Returns its size,
 * or -EBADMSG.  Does not check that values fit an image: qcow2_apply does. */
int dedup_record_decode (const uint8_t *buf, size_t len,
                         struct dedup_record *r) MUST_CHECK;
/* Checks the record as dedup_record_decode does, without decoding its
 * fields. */
int dedup_record_check (const uint8_t *buf, size_t len) MUST_CHECK;
/* Fills in R as the record that carries the format change C.  That of an L2
 * change with a place is ENTRY. */
void dedup_record_of_change (const struct qcow2_change *c,
                             struct dedup_record *r);

/* --- REFLIST: the refcounts of clusters near each other ------------------ */

/* Returns the size in bytes of the encoded record R. */
#define DEDUP_REFLIST_SIZE(r) \
  (DEDUP_REC_MAX - DEDUP_LIST_MAX + (uint32_t) (r)->list.len)

/* Begins the record R with one cluster, whose refcount is below 2^32. */
void dedup_reflist_begin (struct dedup_record *r, uint64_t host_idx,
                          uint64_t refcount, bool anchored);
/* Adds the cluster GAP behind the last one to an encoded record, which has ROOM
 * more bytes behind it.  Returns by how many bytes it grew; 0 if the cluster does
 * not fit. */
size_t dedup_reflist_extend (uint8_t *rec, size_t room, uint64_t gap,
                             uint64_t refcount, bool anchored);
/* Sets C to the next change of a decoded record, one of one cluster.  *AT, 0
 * before the first call, is where the list goes on; C stays the caller's in
 * between.  Returns false at the end. */
bool dedup_reflist_next (const struct dedup_record *r, size_t *at,
                         struct qcow2_change *c);

#endif
