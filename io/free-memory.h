/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the estimate of how much memory the page cache may still take. */
#ifndef DEDUP_IO_FREE_MEMORY_H
#define DEDUP_IO_FREE_MEMORY_H

#include <stdint.h>

/* Returns the bytes that are available without swapping and that the control
 * groups of this process (such as a service's MemoryMax=) allow it; 0: not
 * known.  ROOT is the prefix of /proc and /sys: "" everywhere but in tests. */
uint64_t io_free_memory (const char *root);

#endif
