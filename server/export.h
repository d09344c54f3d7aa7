/* SPDX-License-Identifier: BSD-3-Clause */
/* An open image as an export: the request path of any alignment, requests
 * kept apart, background work.  NBD's terms (flags, errnos that NBD has:
 * EIO, ENOSPC, ENOMEM, EINVAL, EPERM, EROFS, ENOTSUP, ESHUTDOWN), but no
 * nbdkit.  Safe from any number of threads.
 */
#ifndef DEDUP_EXPORT_H
#define DEDUP_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"

struct srv_export;

struct srv_params {
  const char *path;
  bool read_only;
  int64_t create_size;          /* -1: do not create */
  uint64_t cluster_size;        /* of an image to create */
  bool dedup, verify;
  const char *hash;             /* NULL: as stored, sha256 for a new store */
  const char *backing;          /* policy for files that the image names: off
                                 * (also NULL), same-dir or any */
  int64_t max_incarnations;     /* -1: as stored */
  int64_t l2_cache_bytes;       /* -1: default, by image size */
  unsigned commit_interval_ms;  /* 0: no timer */
  const struct log_sink *log;
};

void srv_params_default (struct srv_params *p);

/* Open (create, recover): no threads yet.  Nothing is changed on error but
 * what recovery completed. */
int srv_open (const struct srv_params *p, struct srv_export **out,
              struct fault *f) MUST_CHECK;
/* Start the background loop: after the process has forked. */
int srv_start (struct srv_export *e) MUST_CHECK;
/* Stop the loop, close cleanly, free.  The result says whether the image is
 * clean.  NULL is fine. */
int srv_close (struct srv_export *e);

uint64_t srv_size (const struct srv_export *e);
bool srv_writable (const struct srv_export *e);
uint32_t srv_preferred_block (const struct srv_export *e);

int srv_pread (struct srv_export *e, void *buf, uint64_t guest_off,
               uint32_t len) MUST_CHECK;
int srv_pwrite (struct srv_export *e, const void *buf, uint64_t guest_off,
                uint32_t len, bool fua) MUST_CHECK;
int srv_trim (struct srv_export *e, uint64_t guest_off, uint32_t len,
              bool fua) MUST_CHECK;
/* FAST: -EOPNOTSUPP rather than writing data (never needed here but for
 * ends that are no whole cluster, which are written). */
int srv_zero (struct srv_export *e, uint64_t guest_off, uint32_t len,
              bool may_trim, bool fast, bool fua) MUST_CHECK;
int srv_flush (struct srv_export *e) MUST_CHECK;
int srv_cache (struct srv_export *e, uint64_t guest_off, uint32_t len)
  MUST_CHECK;

enum srv_extent_type { SRV_DATA, SRV_HOLE_ZERO, SRV_ZERO };
/* Calls CB for extents in order, covering a prefix of the range (all of it
 * unless CB returns non-zero, which is passed on). */
int srv_extents (struct srv_export *e, uint64_t guest_off, uint32_t len,
                 bool only_one,
                 int (*cb) (void *opaque, uint64_t guest_off, uint64_t len,
                            enum srv_extent_type type),
                 void *opaque) MUST_CHECK;

#endif
