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
  bool read_only;               /* change nothing; share it with other readers */
  const char *read_only_because;        /* what asked for that, for messages;
                                         * must outlive the export */
  int64_t create_size;          /* -1: do not create */
  uint64_t cluster_size;        /* of an image to create */
  bool cluster_size_given;      /* else it is a default */
  bool dedup, verify;
  const char *hash;             /* NULL: as stored, sha256 for a new store */
  const char *backing;          /* policy for files that the image names: off
                                 * (also NULL), same-dir or any */
  const char *store;            /* path of the store file; NULL: none */
  int64_t max_incarnations;     /* -1: as stored */
  int64_t index_memory;         /* bytes of RAM for the index; 0: no bound */
  int64_t l2_cache_bytes;       /* -1: default, by image size */
  unsigned commit_interval_ms;  /* 0: no timer */
  bool index_existing;          /* in the background, what is there already */
  const struct log_sink *log;
};

void srv_params_default (struct srv_params *p);

/* Open (create, recover): no threads yet.  Nothing is changed on error but
 * what recovery completed. */
int srv_open (const struct srv_params *p, struct srv_export **out,
              struct fault *f) MUST_CHECK;
/* Start the background loop: after the process has forked. */
int srv_start (struct srv_export *e) MUST_CHECK;
/* One line for the log that says what is served. */
void srv_log_serving (struct srv_export *e);
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
typedef int (*srv_extent_cb) (void *opaque, uint64_t guest_off, uint64_t len,
                              enum srv_extent_type type);
/* Calls CB for extents in order, covering a prefix of the range (all of it
 * unless CB returns non-zero, which is passed on). */
int srv_extents (struct srv_export *e, uint64_t guest_off, uint32_t len,
                 bool only_one, srv_extent_cb cb, void *opaque) MUST_CHECK;

/* --- Snapshots: other roots of the same image, read-only ------------------ */

#define SRV_ROOT_ACTIVE 0

/* The root with the export name NAME ("" is the active disk): -ENOENT. */
int srv_find_root (const struct srv_export *e, const char *name,
                   unsigned *root) MUST_CHECK;
/* The snapshots' export names, in order of their names: the name of a
 * snapshot, or its id where another one has the same name or it is no name
 * for NBD.  The anchor is none.  CB returns non-zero to stop. */
int srv_list_snapshots (const struct srv_export *e,
                        int (*cb) (void *opaque, const char *name),
                        void *opaque) MUST_CHECK;

uint64_t srv_root_size (const struct srv_export *e, unsigned root);
int srv_root_pread (struct srv_export *e, unsigned root, void *buf,
                    uint64_t guest_off, uint32_t len) MUST_CHECK;
int srv_root_cache (struct srv_export *e, unsigned root, uint64_t guest_off,
                    uint32_t len) MUST_CHECK;
int srv_root_extents (struct srv_export *e, unsigned root, uint64_t guest_off,
                      uint32_t len, bool only_one, srv_extent_cb cb,
                      void *opaque) MUST_CHECK;

#endif
