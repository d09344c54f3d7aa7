/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses new data and packs it into host clusters, many guest clusters in one
 * (pack.c; docs/on-disk.md 14.3).
 *
 * Everything is protected by the image lock, but for what is constant.
 */
#ifndef DEDUP_PACK_H
#define DEDUP_PACK_H

#include "gate.h"

/* Host clusters of one run at most. */
#define DEDUP_PACK_MAX 512

/* A run of host clusters that compressed data is appended to, or was. */
struct dedup_pack_run {
  uint64_t first, count;       /* host clusters, reserved when it was opened */
  uint64_t fill;               /* byte offset in the file of what is appended next */
  bool closed;                 /* nothing is appended any more */
  uint64_t users;              /* data in it that an operation has not given up */
  uint64_t held[DEDUP_PACK_MAX / 64];   /* a bit for each cluster that is in use:
                                         * the run holds it (qcow2_hold_locked) */
};

/* Bytes of a run that an operation writes, until their data is linked or durable. */
struct dedup_pack_piece {
  uint64_t host_off, end;
  struct dedup_pack_piece *next;        /* of all operations */
  struct dedup_pack_piece *next_own;    /* of this one */
};

struct dedup_pack {
  const struct dedup_base *b;
  /* Constant once there are other threads: */
  bool able;                   /* data of this image can be compressed */
  bool on;                     /* ... and new data is, unless its disk says otherwise */
  bool rewrites_only;          /* clients' writes are stored plain, and compressed
                                * later (../compress-idle.c) */
  struct dedup_pack_run *open; /* NULL: none */
  struct dedup_pack_piece *unsettled;   /* a list */
  struct dedup_codec_list *codecs;      /* that nobody uses */
  bool no_room_behind;         /* the host had none for a run of moved data */
  uint64_t stored;             /* clusters of data since open */
  uint64_t stored_bytes;       /* what they take */
};

/* Return whether new data of a root is compressed, at once or later; and whether that of
 * any root is. */
bool dedup_packs_locked (const struct dedup_pack *p, unsigned root);
bool dedup_packs_any (const struct dedup_pack *p);
/* Returns whether bytes that VALUE leads to may still be written, or are written by an
 * operation that has neither linked them nor made them durable (law 17). */
bool dedup_pack_unfinished_locked (const struct dedup_pack *p, uint64_t value);
/* Notes that host cluster HOST_IDX of a run is in use: it gets a hold.  Its refcount
 * is prepared, and 2 or more. */
void dedup_pack_hold_locked (struct qcow2_txn *txn, struct dedup_pack_run *run,
                             uint64_t host_idx);
/* Gives up one use of a run.  The last one of a closed run releases its clusters.  May
 * append records. */
void dedup_pack_put_locked (struct qcow2_txn *txn, struct dedup_pack *p,
                            struct dedup_pack_run *run);
/* Closes the open run, if there is one, so that its clusters are not kept any longer.
 * May append records. */
void dedup_pack_close_locked (struct qcow2_txn *txn, struct dedup_pack *p);
/* Does so at the end of a session, when no operation is under way: without the lock,
 * and outside the gate. */
struct dedup_writer;
void dedup_pack_end (struct dedup_writer *w);
/* Frees the memory; nothing is in use. */
void dedup_pack_free (struct dedup_pack *p);

#endif
