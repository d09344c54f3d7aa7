/* SPDX-License-Identifier: BSD-3-Clause */
/* Serves a qcow2 image: its roots as disks, requests of any alignment, and work in
 * the background.
 *
 * An image (struct srv_image) is a file that is open, with the background work
 * that belongs to it.  Its roots are served as disks (struct srv_disk): the
 * active disk and the further disks of a pool, which clients may write if the
 * image is open for writing, and every snapshot, which is read-only.  A program
 * calls, in this order:
 *
 *   srv_image_open    opens, creates or recovers the image; starts no thread,
 *                     so that the process may still fork
 *   srv_image_start   starts the background work
 *   srv_image_disk    finds the disk that has an export name, for a client
 *   srv_pread, ...    requests to a disk
 *   srv_disk_put      the client is gone
 *   srv_image_close   makes all writes durable and closes the image; no request
 *                     may be in flight any more
 *
 * Requests may come from any number of threads.  The terms are those of NBD,
 * but nothing here knows nbdkit.
 *
 * Further headers belong to this one: server-disks.h lists the disks and changes them,
 * server-events.h tells what happens, server-jobs.h is about work in the background
 * that takes long, server-stats.h tells what was counted, and server-manage.h is for
 * administrators.
 */
#ifndef DEDUP_SERVER_H
#define DEDUP_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "log.h"
#include "server-disks.h"
#include "server-events.h"
#include "server-jobs.h"
#include "server-manage.h"
#include "server-stats.h"

struct srv_image;
struct srv_disk;

/* --- The image ------------------------------------------------------------ */

struct srv_image_params {
  const char *path;
  bool read_only;               /* change nothing, and share the file with other
                                 * readers */
  bool lease;                   /* a block device has a lease, too */
  unsigned reconnect_delay, connections;        /* as in struct io_place_params */
  bool fenced;                                  /* as there */
  const char *read_only_because;        /* what asked for that, for messages;
                                         * must outlive the image */
  int64_t create_size;          /* bytes; -1: do not create an image */
  uint64_t cluster_size;        /* bytes, of an image that is created */
  bool cluster_size_given;      /* false: cluster_size is the default */
  bool dedup, verify;
  const char *compress;         /* zstd, zlib or off; NULL: as recorded in the image */
  bool compress_idle;           /* not when it is written, but when idle */
  const char *hash;             /* NULL: as stored, sha256 for a new store */
  const char *backing;          /* which files that the image names are opened:
                                 * off (also NULL), same-dir or any */
  const char *store;            /* path of the store file; NULL: none */
  int64_t max_incarnations;     /* -1: as stored */
  int64_t index_memory;         /* bytes of RAM for the index; 0: no bound */
  int64_t l2_cache_bytes;       /* -1: chosen by the size of the image */
  unsigned commit_interval_ms;  /* 0: no commit timer */
  bool index_existing;          /* index existing data, in the background */
  bool defragment;              /* move scattered data that is read in sequence,
                                 * when idle */
  bool compact;                 /* compact when much of what is stored is dead */
  uint64_t space_low_bytes;     /* srv_image_set_space_low */
  const struct log_sink *log;
};

void srv_image_params_default (struct srv_image_params *p);

/* Opens the image, creates it if it is missing and P has a size for it, and
 * recovers it if it was not closed.  On error a file that the call created is
 * removed again; else nothing has changed, but for a completed recovery. */
int srv_image_open (const struct srv_image_params *p, struct srv_image **out,
                    struct fault *f) MUST_CHECK;
/* Starts the background threads.  Called after the process has forked. */
int srv_image_start (struct srv_image *m) MUST_CHECK;
/* Logs one line that says what is served. */
void srv_image_log_serving (struct srv_image *m);
/* Stops the background work, closes the image, and frees it and its disks.  0:
 * the image is clean; on error it is recovered when it is opened next.  M may
 * be NULL. */
int srv_image_close (struct srv_image *m);

bool srv_image_writable (const struct srv_image *m);

/* Finds the disk with the export name NAME for one more client; "" is the active
 * disk, unless that is the empty one of a pool.  The export name of a disk or
 * snapshot is its own name, or its id if another one has the same name or NBD
 * cannot carry it.  The disk belongs to the image and is valid until srv_disk_put,
 * or until the image is closed.  Waits for a change of the disk that is under
 * way.  -ENOENT with a fault that says which names there are; -ENOMEM. */
int srv_image_disk (struct srv_image *m, const char *name,
                    struct srv_disk **out, struct fault *f) MUST_CHECK;
/* Takes a client off D, when none of its requests is under way. */
void srv_disk_put (struct srv_image *m, struct srv_disk *d);

/* --- A disk --------------------------------------------------------------- */

uint64_t srv_disk_size (const struct srv_disk *d);        /* bytes */
bool srv_disk_writable (const struct srv_disk *d);
/* The size of a cluster, in bytes: requests of whole clusters are fastest. */
uint32_t srv_disk_preferred_block (const struct srv_disk *d);

/* Requests take any range inside the disk, and return 0 or one of the errors
 * that NBD has: -EINVAL (outside the disk), -EROFS, -ENOSPC, -ENOMEM, -EPERM,
 * -ENOTSUP, -ESHUTDOWN (the disk was deleted, reset or cut), and -EIO for all
 * others.  With FUA, the change is
 * durable when the request returns. */
int srv_pread (struct srv_disk *d, void *buf, uint64_t guest_off,
               uint32_t len) MUST_CHECK;
int srv_pwrite (struct srv_disk *d, const void *buf, uint64_t guest_off,
                uint32_t len, bool fua) MUST_CHECK;
/* Frees the whole clusters in the range, which read as zeroes then.  Bytes of
 * clusters that are only partly in the range stay. */
int srv_trim (struct srv_disk *d, uint64_t guest_off, uint32_t len,
              bool fua) MUST_CHECK;
/* Makes the range read as zeroes.  MAY_TRIM: the clusters may become holes.
 * FAST asks for -ENOTSUP instead of writing zeroes as data; it has no effect,
 * as only partial clusters at the two ends are ever written. */
int srv_zero (struct srv_disk *d, uint64_t guest_off, uint32_t len,
              bool may_trim, bool fast, bool fua) MUST_CHECK;
/* Makes all writes durable that were completed before the call. */
int srv_flush (struct srv_disk *d) MUST_CHECK;
/* Reads the range into the caches of the host. */
int srv_cache (struct srv_disk *d, uint64_t guest_off, uint32_t len) MUST_CHECK;

enum srv_extent_type { SRV_DATA, SRV_HOLE_ZERO, SRV_ZERO };
typedef int (*srv_extent_cb) (void *opaque, uint64_t guest_off, uint64_t len,
                              enum srv_extent_type type);
/* Calls CB for the extents of the range, in order and without gaps, or for the
 * first one only (ONLY_ONE).  If CB returns non-zero, the call ends and returns
 * that. */
int srv_extents (struct srv_disk *d, uint64_t guest_off, uint32_t len,
                 bool only_one, srv_extent_cb cb, void *opaque) MUST_CHECK;

#endif
