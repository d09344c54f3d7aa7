/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps requests off guest clusters that a job stores again (root-lock.c). */
#ifndef DEDUP_ROOT_LOCK_H
#define DEDUP_ROOT_LOCK_H

#include "exports.h"

struct srv_root_lock {
  struct srv_exports *exports;  /* set before */
  struct srv_disk *disk;        /* whose guest clusters are locked */
  struct srv_range range;
};

/* The lock and unlock of dedup-compact.h and dedup-compress.h; OPAQUE is a struct
 * srv_root_lock, for one thread at a time.  -ENOENT: the root is not served, or is about to
 * be changed.  -ENOMEM. */
int srv_root_lock (void *opaque, unsigned root, uint64_t guest_idx, size_t nr) MUST_CHECK;
void srv_root_unlock (void *opaque);

#endif
