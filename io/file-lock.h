/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares QEMU's image locks on an open file.  Private to io/. */
#ifndef DEDUP_FILE_LOCK_H
#define DEDUP_FILE_LOCK_H

#include "io.h"

/* Takes the locks of HOW on FD, which must be open for reading.  They end with
 * the last descriptor of this open file, also across fork.  Returns 0, or
 * 1 where the file system has no such locks; -EBUSY with FAULT_BUSY, and no lock
 * held, if another process holds a conflicting lock. */
int io_file_lock_take (int fd, enum io_file_lock how, struct fault *f)
  MUST_CHECK;

#endif
