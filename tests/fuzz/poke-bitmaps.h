/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps of an image that was poked at: see poke-bitmaps.c. */
#ifndef DEDUP_POKE_BITMAPS_H
#define DEDUP_POKE_BITMAPS_H

#include "io.h"

/* Of the first bitmaps, a bit each. */
struct bitmaps {
  unsigned nr;
  unsigned in_use;
  unsigned odd;                /* enabled, with a field that nobody knows */
  bool claimed;                /* the header's autoclear bit */
  bool wrong;                  /* ... but their directory can't be right */
};
struct bitmaps bitmaps_look (struct io_store *io);

/* Guest clusters of SIZE bytes, NR of them, that changed (BEFORE and AFTER, 0:
 * not known) and which a bitmap that can be relied on does not know. */
uint64_t bitmaps_miss (struct io_store *io, const uint64_t *before,
                       const uint64_t *after, uint64_t nr, uint64_t size);

#endif
