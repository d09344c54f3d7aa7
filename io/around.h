/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps track of the blocks of a file that were read whole, around small parts
 * that were asked for, and decides whether more may be.
 *
 * A client that reads all of an image, but in another order than that of the
 * host file, is served by few large reads instead of many small ones, as long
 * as the page cache keeps the bytes that were not asked for yet.  So this is
 * done only for a file of at most half of the memory that the page cache may
 * take, and for each block once in AROUND_PERIOD_NS: if the host drops blocks
 * unused all the same, the loss is one read of the file.
 *
 * Not safe for use by several threads at once: the caller locks.
 */
#ifndef DEDUP_IO_AROUND_H
#define DEDUP_IO_AROUND_H

#include <stdbool.h>
#include <stdint.h>

#define AROUND_BYTES (UINT64_C (128) << 10)       /* size of a block */
#define AROUND_PERIOD_NS (UINT64_C (300) * 1000000000)

struct io_around {            /* starts all zero */
  uint64_t begun_ns;          /* when this period began; 0: none has */
  uint64_t nr_blocks;         /* 0: the file is too large */
  uint64_t *taken;            /* a bit for each block; owned */
};

/* Returns whether blocks of a file of SIZE bytes may be read whole.  When a
 * period begins, looks at the free memory and forgets which blocks were
 * taken. */
bool io_around_begin (struct io_around *a, uint64_t size);
/* Takes the block at HOST_OFF, a multiple of AROUND_BYTES: returns true if the
 * caller is to read it now, false if it was taken in this period, or lies past
 * the end that the file had when the period began. */
bool io_around_take (struct io_around *a, uint64_t host_off);
void io_around_free (struct io_around *a);

#endif
