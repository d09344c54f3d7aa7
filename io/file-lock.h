/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to io/: QEMU's image locks on an open file. */
#ifndef DEDUP_FILE_LOCK_H
#define DEDUP_FILE_LOCK_H

#include "io.h"

/* Take the locks of HOW on FD, which must be open for reading.  They end
 * with the last descriptor of this open file, also across fork.  0, too,
 * where the file system has no such locks; -EBUSY with FAULT_BUSY when
 * another process is in the way, and then none is held. */
int io_file_lock_take (int fd, enum io_file_lock how, struct fault *f)
  MUST_CHECK;

#endif
