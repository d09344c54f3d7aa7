/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk as the files of this room see it: one root of an image, as an export
 * (disk.c). */
#ifndef DEDUP_DISK_INTERNAL_H
#define DEDUP_DISK_INTERNAL_H

#include "dedup.h"
#include "clock.h"
#include "meter.h"
#include "range-lock.h"
#include "read-ahead.h"
#include "request-gate.h"
#include "scattered.h"
#include "server.h"
#include "space.h"

/* What all disks of an image count together, and who is told of errors. */
struct srv_accounts {           /* constant */
  struct srv_meter *meter;
  /* A request to D failed with -ERR.  Called without locks, outside of the
   * disk's gate. */
  void (*failed) (void *opaque, struct srv_disk *d, enum srv_request type,
                  uint64_t guest_off, uint64_t len, int err);
  void *opaque;
};

struct srv_disk {
  /* Constant after init: */
  struct dedup_pool *pool;      /* the image, with all roots */
  unsigned root;                /* of the image */
  bool writable;                /* never for a snapshot */
  unsigned cluster_bits;
  struct srv_space *space;      /* the image's */
  uint64_t *last_change_ns;     /* atomic, CLOCK_MONOTONIC: see below */
  struct srv_accounts *accounts;        /* the image's; NULL: not counted */

  /* Atomic; changed while no request is inside the gate, so that it is constant
   * for a request: */
  uint64_t size_bytes;
  uint64_t nr_clusters;         /* the last one may be partial */

  /* Lock themselves: */
  struct srv_gate gate;         /* each request is inside it */
  struct srv_range_lock ranges; /* not used where nobody can write */
  struct srv_read_ahead read_ahead;
  struct srv_scattered scattered;       /* off but for the active disk */

  /* Atomic: */
  uint64_t own_last_change_ns;

  /* Atomic, on lines that nothing else uses: */
  char pad_before[64];
  struct srv_counters counters;
  char pad_behind[64];

  /* Of the owner, exports.c; protected by its lock: */
  unsigned nr_clients;
  bool ended;                   /* new clients get another disk */
  struct srv_disk *next;
};

/* Fills D for ROOT of POOL.  WRITABLE: clients may change the disk, unless it is
 * a snapshot.  SPACE is told the results of requests that need space. */
void srv_disk_init (struct srv_disk *d, struct dedup_pool *pool, unsigned root,
                    bool writable, struct srv_space *space);
/* Frees what D owns, but not D itself, when no request uses it. */
void srv_disk_destroy (struct srv_disk *d);

/* Makes all requests fail with -ESHUTDOWN from now on, also those that wait for
 * a range, and returns when none is under way. */
void srv_disk_shut (struct srv_disk *d);
/* Takes over the size that the root has now, if it is larger, between two
 * requests. */
void srv_disk_grow (struct srv_disk *d);

/* Notes in *last_change_ns that a request which may change the disk begins
 * now. */
void srv_disk_note_change (struct srv_disk *d);

/* Counts a request that began at START_NS (clock_now_ns) and had the result R, one
 * for NBD, and returns R. */
int srv_disk_count (struct srv_disk *d, enum srv_request type,
                    uint64_t guest_off, uint64_t len, uint64_t start_ns, int r);

/* The most clusters that the pool takes as one operation. */
uint64_t srv_disk_max_piece (const struct srv_disk *d);
/* Writes LEN bytes (not 0) that are no client's: neither as a request that is counted
 * nor as a sign that clients are busy.  0, or -errno of the rooms below. */
int srv_disk_fill (struct srv_disk *d, const void *buf, uint64_t guest_off,
                   uint64_t len) MUST_CHECK;
/* The NBD error for R, the result of a call of a room below. */
int srv_nbd_result (int r);
/* -EINVAL if the range is not inside the disk. */
int srv_disk_check_range (const struct srv_disk *d, uint64_t guest_off,
                          uint64_t len) MUST_CHECK;

#endif
