/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the format room: the open image and what its files offer each
 * other.  Everybody else includes qcow2.h only. */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <pthread.h>

#include "limits.h"
#include "qcow2.h"
#include "wire.h"

/* --- flat.c: a table that is contiguous in the file and whole in RAM:
 * L1, anchor L1, refcount table ------------------------------------- */
struct qcow2_flat {
  uint64_t host_off;
  uint64_t nr;                 /* entries */
  uint64_t *v;                 /* owned; host byte order */
  uint8_t *dirty;              /* one byte per 512 entries (4096 bytes) */
  uint64_t nr_dirty;           /* how many of those are set */
};

/* Read NR entries at HOST_OFF. */
int qcow2_flat_load (struct io_store *io, struct qcow2_flat *t,
                     uint64_t host_off, uint64_t nr) MUST_CHECK;
/* Replace place and size; entries are kept, new ones 0, all dirty. */
int qcow2_flat_move (struct qcow2_flat *t, uint64_t host_off, uint64_t nr)
  MUST_CHECK;
void qcow2_flat_set (struct qcow2_flat *t, uint64_t i, uint64_t value);
void qcow2_flat_free (struct qcow2_flat *t);

/* --- snapshot.c ------------------------------------------------------ */
struct qcow2_snapshot_table {
  struct qcow2_snapshot *v;    /* owned, with its strings */
  size_t nr;
  int anchor;                  /* index of the anchor, -1: none */
  uint8_t *raw;                /* the table as on disk */
  size_t raw_len;
  size_t *raw_off;             /* of each entry in raw, nr + 1 of them */
};

int qcow2_snapshot_load (struct qcow2_image *img, struct fault *f) MUST_CHECK;
void qcow2_snapshot_free (struct qcow2_snapshot_table *t);
/* Encode the table with the anchor's L1 at L1_OFF (L1_ENTRIES of them),
 * added at the end if there is none.  *BUF is the caller's. */
int qcow2_snapshot_encode (struct qcow2_image *img, uint64_t anchor_l1_off,
                           uint32_t anchor_l1_entries, uint8_t **buf,
                           size_t *len, uint32_t *nr) MUST_CHECK;

/* --- cache.c: L2 tables and refcount blocks by host offset -------------- */
struct qcow2_table {           /* one cached cluster-sized table */
  uint64_t host_off;
  uint8_t *data;               /* cluster_size bytes, as on disk */
  unsigned pins;
  bool loading, dirty, writing, failed;
  bool recently_used;
  struct qcow2_table *next;    /* in its hash chain */
  size_t slot;                 /* in the clock */
};

struct qcow2_cache {
  struct qcow2_table **chains;
  size_t nr_chains;            /* power of two */
  struct qcow2_table **clock;
  size_t nr_tables, max_clock, hand;
  size_t budget;               /* tables; pinned or dirty ones may exceed it */
  size_t nr_dirty;
  pthread_cond_t loaded;
};

int qcow2_cache_init (struct qcow2_image *img, size_t budget_bytes)
  MUST_CHECK;
void qcow2_cache_free (struct qcow2_image *img);

/* The table at HOST_OFF if it is in memory and loaded, pinned in TXN (once);
 * NULL with txn->missing set if not.  *ERR is then -EAGAIN or -ENOMEM. */
struct qcow2_table *qcow2_cache_get_locked (struct qcow2_txn *txn,
                                            uint64_t host_off, int *err);
/* A new table at HOST_OFF, all zero or a copy of SOURCE, dirty, pinned in
 * TXN.  A table that is there already is overwritten (replay). */
int qcow2_cache_create_locked (struct qcow2_txn *txn, uint64_t host_off,
                               const struct qcow2_table *source,
                               struct qcow2_table **out) MUST_CHECK;
/* Forget the table at HOST_OFF: its cluster was freed. */
void qcow2_cache_forget_locked (struct qcow2_image *img, uint64_t host_off);
void qcow2_cache_dirty_locked (struct qcow2_image *img,
                               struct qcow2_table *t);

/* What a transaction can miss. */
enum { QCOW2_MISSING_NONE, QCOW2_MISSING_TABLE, QCOW2_MISSING_ANCHOR };

struct qcow2_pin {
  struct qcow2_table *table;
};

/* --- anchor.c: one bit per host cluster, loaded per anchor L2 table -------- */
struct qcow2_anchor_part {     /* what one anchor L2 table says */
  uint64_t *bits;              /* l2_entries bits; NULL: not loaded */
  bool dirty, writing, loading;
};

struct qcow2_anchor {
  struct qcow2_flat l1;        /* nr 0: no anchor */
  struct qcow2_anchor_part *parts;   /* one per L1 entry */
  uint64_t nr_loaded, nr_dirty;
};

/* --- alloc.c ------------------------------------------------------------- */
struct qcow2_bitmap;           /* bitmap.c: sparse, one bit per cluster */

struct qcow2_quarantined {
  uint64_t seq;
  struct qcow2_run run;
};

struct qcow2_alloc {
  struct qcow2_bitmap *free;         /* known free */
  struct qcow2_bitmap *busy;         /* quarantined: the scan skips them */
  uint64_t nr_free;
  uint64_t cursor;                   /* next-fit */
  uint64_t frontier;                 /* first cluster past all used ones */
  uint64_t bound;                    /* the frontier may not pass this */
  uint64_t scan_next, scan_end;      /* clusters; [scan_next, scan_end) of
                                      * the file is not scanned yet */
  struct qcow2_quarantined *q;       /* a ring, in order of seq */
  size_t q_head, q_len, q_max;
  uint64_t nr_quarantined;
};

int qcow2_alloc_init (struct qcow2_image *img) MUST_CHECK;
void qcow2_alloc_free (struct qcow2_image *img);

/* --- hold.c ---------------------------------------------------------------- */
struct qcow2_holds {
  struct { uint64_t host_idx; unsigned count; bool zombie; } *v;
  size_t nr, max;              /* few: linear */
};

/* --- backing.c --------------------------------------------------------------- */
struct qcow2_backing;          /* raw file or another qcow2_image */

/* Open the chain that the header names; depth counts from 0. */
int qcow2_backing_open (struct qcow2_image *img, const char *name,
                        const char *format, unsigned depth,
                        struct fault *f) MUST_CHECK;
void qcow2_backing_close (struct qcow2_backing *b);
/* Read; zeroes past its end. */
int qcow2_backing_read (struct qcow2_backing *b, void *buf,
                        uint64_t guest_off, size_t len) MUST_CHECK;

/* --- compressed.c --------------------------------------------------------------- */
/* Where the compressed bytes of an L2 entry lie: offset and length in bytes. */
void qcow2_compressed_extent (const struct qcow2_image *img, uint64_t entry,
                              uint64_t *host_off, uint64_t *len);
/* Read and expand one cluster into OUT (cluster_size bytes). */
int qcow2_compressed_read (struct qcow2_image *img, uint64_t entry,
                           uint8_t *out) MUST_CHECK;

/* --- header.c -------------------------------------------------------------------- */
struct qcow2_header {          /* decoded, valid by construction */
  struct qcow2_geometry geo;
  uint64_t backing_off;
  uint32_t backing_len;
  uint32_t crypt_method;
  uint32_t l1_entries;
  uint64_t l1_off;
  struct qcow2_header_fields fields;   /* anchor_l1_* filled by snapshot.c */
  uint32_t header_length;
  char backing_name[QCOW2_MAX_BACKING_NAME + 1];
  char backing_format[64];
  bool has_store_ext;
  uint8_t store_ext[QCOW2_STORE_EXTENSION_SIZE];
};

/* Decode the first cluster (LEN bytes of it, at least 512).  Refuses what
 * is not served, by name. */
int qcow2_header_decode (const uint8_t *buf, size_t len, bool writable,
                         struct qcow2_header *h, struct fault *f) MUST_CHECK;
/* Rebuild the first cluster BUF (as read, cluster_size bytes) in place: new
 * header fields, bit 48 ON, the store's extension, its feature name; other
 * extensions and the backing name are kept.  -ENOSPC if it does not fit. */
int qcow2_header_rebuild (uint8_t *buf, const struct qcow2_header *h,
                          const struct qcow2_header_fields *fields,
                          const uint8_t *ext, struct fault *f) MUST_CHECK;

/* --- the image ---------------------------------------------------------------------- */
struct qcow2_image {
  /* Constant after open: */
  struct io_store *io;
  char *path;                  /* may be NULL */
  const struct log_sink *log_sink;
  bool writable;
  unsigned depth;              /* in a backing chain */
  struct qcow2_header header;  /* but for fields, see below */
  uint64_t file_size;          /* at open */
  struct qcow2_backing *backing;

  struct lock lock;

  /* Protected by lock: */
  struct qcow2_header_fields fields;   /* as in memory; header_dirty: not yet
                                        * in the file */
  bool header_dirty;
  struct qcow2_flat l1;
  struct qcow2_flat reftable;
  struct qcow2_snapshot_table snapshots;
  struct qcow2_cache cache;
  struct qcow2_anchor anchor;
  struct qcow2_alloc alloc;
  struct qcow2_holds holds;
  struct qcow2_log log;
  pthread_cond_t loaded;       /* a table or anchor part finished loading */
};

/* Report CHANGE to the log, if there is one.  The log is part of "live"
 * changes only; replay does not call this. */
static inline void
qcow2_report_locked (struct qcow2_image *img, const struct qcow2_change *c)
{
  assert (lock_held (&img->lock));
  if (img->log.append_locked)
    img->log.append_locked (img->log.opaque, c);
}

#endif
