/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists and changes the disks that an image has beside the active one.  A part of
 * dedup.h, which includes it.
 *
 * A disk is a writable internal snapshot: it has a name and a size of its own,
 * shares equal data with all others, and stock programs read it from the closed
 * image.  A snapshot of a disk is the same but for not being writable.  Clones,
 * snapshots and resets take no time that depends on the data: tables are lent,
 * and the references in them are counted later, in the background
 * (DEDUP_JOB_DISKS).  docs/on-disk.md section 11.
 *
 * Each function makes its change durable before it returns 0.  On an error
 * nothing has changed, or the change is not known to be durable (-EIO).
 * Requests to other disks go on meanwhile, and so do requests to a disk that is
 * cloned: the clone has what its source had at one moment during the call.  The
 * caller keeps requests off a disk that is reset, deleted or made smaller, and
 * does not use its root afterwards if it is deleted.
 *
 * Errors, with a fault: -EEXIST (the name is in use), -ENOENT (no such root),
 * -EINVAL (a name or size that cannot be), -EMLINK (too many disks), -ENOTSUP
 * (the image cannot have disks, or cannot lend tables), -EFBIG (the source has
 * too many tables that lie apart), -EROFS, -ENOSPC, -ENOMEM, -EIO.
 */
#ifndef DEDUP_DEDUP_DISKS_H
#define DEDUP_DEDUP_DISKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "dedup-types.h"
#include "fault.h"

struct dedup_pool;

#define DEDUP_MAX_DISK_NAME 255u      /* bytes, of disk and snapshot each */

struct dedup_disk_info {
  unsigned root;                /* valid while the image is open */
  char *name;                   /* owned */
  uint64_t size;                /* bytes */
  bool is_disk;                 /* made by this program, not by another one */
  bool writable;                /* else a snapshot */
  uint8_t uuid[16];             /* 0 where it is not of this program */
  uint8_t origin[16];           /* of what it was cloned from; 0: nothing */
  uint64_t created;             /* seconds since 1970 */
  enum dedup_compress compress; /* of new data: OFF, ZLIB or ZSTD */
  bool compress_is_own;         /* that is the disk's setting, else the pool's */
};

/* Checks a name: 1 to 255 bytes of UTF-8 without control characters, '/' or
 * '@'; IS_SNAPSHOT: DISK@SNAPSHOT, where both are such names.  FAULT_USAGE. */
int dedup_disk_check_name (const char *name, bool is_snapshot, struct fault *f)
  MUST_CHECK;

/* Lists all roots but the active disk, the anchor, and disks that are being
 * deleted.  The caller frees *V by dedup_disk_list_free. */
int dedup_disk_list (struct dedup_pool *pool, struct dedup_disk_info **v,
                     size_t *nr) MUST_CHECK;
void dedup_disk_list_free (struct dedup_disk_info *v, size_t nr);
/* Finds the root with this name (the first, if other programs made several).
 * -ENOENT. */
int dedup_disk_find (struct dedup_pool *pool, const char *name, unsigned *root,
                     struct fault *f) MUST_CHECK;

/* Makes an empty disk. */
int dedup_disk_create (struct dedup_pool *pool, const char *name, uint64_t size,
                       unsigned *root, struct fault *f) MUST_CHECK;
/* Makes a disk, or with WRITABLE false a snapshot, with the contents of SOURCE,
 * any root. */
int dedup_disk_clone (struct dedup_pool *pool, unsigned source,
                      const char *name, bool writable, unsigned *root,
                      struct fault *f) MUST_CHECK;
/* Gives the disk ROOT the contents and the size that SOURCE has now. */
int dedup_disk_reset (struct dedup_pool *pool, unsigned root, unsigned source,
                      struct fault *f) MUST_CHECK;
/* Gives a disk or snapshot another name. */
int dedup_disk_rename (struct dedup_pool *pool, unsigned root,
                       const char *name, struct fault *f) MUST_CHECK;
/* Makes a disk larger, or smaller: then all clusters from SIZE on must have been
 * unmapped. */
int dedup_disk_resize (struct dedup_pool *pool, unsigned root, uint64_t size,
                       struct fault *f) MUST_CHECK;
/* Sets whether new data of a disk is compressed; KEEP: as the pool's setting says.  What
 * it holds stays as it is.  Clones and snapshots that are made of it later inherit the
 * setting.  -EINVAL also if the image's compression type is another one. */
int dedup_disk_set_compress (struct dedup_pool *pool, unsigned root,
                             enum dedup_compress compress, struct fault *f) MUST_CHECK;
/* Returns what is done with new data of a root: OFF, ZLIB or ZSTD.  *OWN (may be NULL)
 * becomes whether that is the setting of the disk, and not the pool's. */
enum dedup_compress dedup_disk_compress (struct dedup_pool *pool, unsigned root,
                                         bool *own);
/* Returns the same for a root that SAYS so (QCOW2_COMPRESS_*).  Takes no lock. */
enum dedup_compress dedup_compress_said (const struct dedup_pool *pool, unsigned says,
                                         bool *own);
/* Deletes a disk or snapshot.  Its name can be used again at once; its space is
 * freed in the background. */
int dedup_disk_delete (struct dedup_pool *pool, unsigned root, struct fault *f)
  MUST_CHECK;

/* Returns whether tables are lent that are not paid for, or a deleted disk is not
 * yet freed: the image cannot be closed cleanly then, and stock programs refuse
 * it. */
bool dedup_disks_pending (struct dedup_pool *pool);
/* Sets how much of that work is done since there was none, and how much there is in
 * all, in bytes of the disks.  The total grows while DEDUP_JOB_DISKS counts it, which
 * it does before the work, and is less when disks are deleted whose tables were to be
 * paid for.  Takes no lock. */
void dedup_disks_progress (struct dedup_pool *pool, uint64_t *done,
                           uint64_t *total);
/* Does all of that work now, however long it takes; for tools.  Returns 0, also
 * if a damaged table keeps some of it from being done, or -errno. */
int dedup_disks_settle (struct dedup_pool *pool) MUST_CHECK;

#endif
