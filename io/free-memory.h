/* SPDX-License-Identifier: BSD-3-Clause */
/* How much memory the page cache may still take. */
#ifndef DEDUP_IO_FREE_MEMORY_H
#define DEDUP_IO_FREE_MEMORY_H

#include <stdint.h>

/* Bytes that can be had without swapping, and that the control groups of this
 * process (such as a service's MemoryMax=) let it have; 0: not known.  ROOT is
 * what comes before /proc and /sys: "", but in tests. */
uint64_t io_free_memory (const char *root);

#endif
