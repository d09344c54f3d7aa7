/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps of an image that was poked at: see poke-bitmaps.c. */
#ifndef DEDUP_POKE_BITMAPS_H
#define DEDUP_POKE_BITMAPS_H

#include "io.h"

/* Which of the first bitmaps are in use: a bit each; or that there are none. */
#define BITMAPS_NONE (1u << 31)
unsigned bitmaps_in_use (struct io_store *io);

/* Guest clusters of SIZE bytes, NR of them, that changed (BEFORE and AFTER, 0:
 * not known) and which a bitmap that can be relied on does not know. */
uint64_t bitmaps_miss (struct io_store *io, const uint64_t *before,
                       const uint64_t *after, uint64_t nr, uint64_t size);

#endif
