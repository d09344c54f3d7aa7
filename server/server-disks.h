/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists and changes the disks of an image that is served.  A part of server.h, which
 * includes it.
 *
 * An image has the active disk, whose name is "", and may have further disks and
 * snapshots of them (DISK@SNAPSHOT).  Functions here take their export names.
 * They may be called from any thread while clients are served; one change runs
 * at a time, and others wait.  A change is durable when the call returns 0.
 *
 * No change stops the clients of other disks, nor those of a disk that is cloned:
 * the clone has all writes that were completed before the call.  A change that
 * ends the contents of a disk (delete, reset, a smaller size) is refused with
 * -EBUSY while the disk has clients.  With FORCE, requests of these clients fail
 * with -ESHUTDOWN from then on, also those that wait for others, and those that
 * are under way are waited for; clients that connect later see the new state.
 * (The clients are cut off also if the change then fails.)
 *
 * Errors, with a fault: those of dedup-disks.h, and -EBUSY.
 */
#ifndef DEDUP_SERVER_DISKS_H
#define DEDUP_SERVER_DISKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "server-stats.h"

struct srv_image;

struct srv_disk_info {
  const char *name;             /* the export name; "": the active disk */
  uint64_t size;                /* bytes */
  bool is_disk;                 /* made by this program, and not the active disk */
  bool writable;                /* clients may write */
  bool is_snapshot;             /* nobody may ever write */
  const char *origin;           /* the export name of the disk or snapshot that it
                                 * was cloned from; NULL: none, or it is gone */
  uint64_t created;             /* seconds since 1970; 0: not known */
  const char *compress;         /* of new data: "zstd", "zlib" or "off" */
  bool compress_is_own;         /* that is the disk's setting, else the pool's */
  unsigned nr_clients;
  uint64_t mapped_bytes;        /* as of the last count (server-stats.h);
                                 * UINT64_MAX: not known */
  struct srv_counters counters; /* of all its clients, since the image was opened or
                                 * the disk was made */
};

/* Calls CB for all exports, the active disk first if it is one and then in order
 * of names, until CB returns non-zero, which is the result then.  The list shows
 * one moment.  -ENOMEM. */
int srv_image_list_disks (struct srv_image *m,
                          int (*cb) (void *opaque,
                                     const struct srv_disk_info *info),
                          void *opaque) MUST_CHECK;
/* Does the same for the exports behind the name AFTER (NULL: for all) with what is known
 * of each alone: ORIGIN is NULL.  Takes no longer than the exports need for which CB
 * is called.  Some dozens of them show one moment; a disk that is renamed meanwhile
 * may be missing or be there twice. */
int srv_image_list_disks_after (struct srv_image *m, const char *after,
                                int (*cb) (void *opaque,
                                           const struct srv_disk_info *info),
                                void *opaque) MUST_CHECK;
/* Writes to BUF a line for people, such as "20 GiB, writable, clone of vm1, made
 * 2026-11-29".  Returns BUF. */
const char *srv_disk_describe (const struct srv_disk_info *info, char *buf,
                               size_t len);

/* Makes an empty disk. */
int srv_disk_create (struct srv_image *m, const char *name, uint64_t size,
                     struct fault *f) MUST_CHECK;
/* Makes the disk NAME, or the snapshot NAME, with the contents of SOURCE. */
int srv_disk_clone (struct srv_image *m, const char *source, const char *name,
                    struct fault *f) MUST_CHECK;
int srv_disk_snapshot (struct srv_image *m, const char *source,
                       const char *name, struct fault *f) MUST_CHECK;
/* Gives the disk NAME the contents and the size that SOURCE has now. */
int srv_disk_reset (struct srv_image *m, const char *name, const char *source,
                    bool force, struct fault *f) MUST_CHECK;
/* Renames a snapshot, or a disk and its snapshots with it; their clients go on.  The
 * names are checked before the first of them changes. */
int srv_disk_rename (struct srv_image *m, const char *name,
                     const char *new_name, struct fault *f) MUST_CHECK;
/* Sets the size of a disk.  NBD clients of a disk that gets larger see that when
 * they connect again; FORCE is for smaller ones. */
int srv_disk_resize (struct srv_image *m, const char *name, uint64_t size,
                     bool force, struct fault *f) MUST_CHECK;
/* Sets whether new data of a disk is compressed: "zstd", "zlib", "off", or "pool", which
 * ends the disk's own setting.  Its clients go on, and what it holds stays as it is. */
int srv_disk_set_compress (struct srv_image *m, const char *name, const char *compress,
                           struct fault *f) MUST_CHECK;
/* Deletes a disk or snapshot.  Its space is freed in the background. */
int srv_disk_delete (struct srv_image *m, const char *name, bool force,
                     struct fault *f) MUST_CHECK;

#endif
