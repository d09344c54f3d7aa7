/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading around small parts: which blocks of a file were read whole, and
 * whether they may be.
 *
 * Who wants all of an image, but in another order than that of the host file, is
 * served by few large reads instead of many small ones, as long as the page
 * cache keeps what is not asked for yet.  So it is done only for a file that is
 * smaller than half of the memory that the page cache may take, and for each
 * block once in AROUND_PERIOD_NS: where the host drops blocks unused all the
 * same, no more is lost than a read of the file.
 *
 * Not safe from several threads: the caller locks.
 */
#ifndef DEDUP_IO_AROUND_H
#define DEDUP_IO_AROUND_H

#include <stdbool.h>
#include <stdint.h>

#define AROUND_BYTES (UINT64_C (128) << 10)       /* of a block */
#define AROUND_PERIOD_NS (UINT64_C (300) * 1000000000)

struct io_around {            /* all zero: at first */
  uint64_t begun_ns;          /* of this period; 0: none was begun */
  uint64_t nr_blocks;         /* 0: the file is too large for it */
  uint64_t *taken;            /* a bit each; owned */
};

/* May blocks of a file of SIZE bytes be read around?  Looks at the memory, and
 * forgets which were, when a period begins. */
bool io_around_begin (struct io_around *a, uint64_t size);
/* Is the block at HOST_OFF, a multiple of AROUND_BYTES, to be read now?  False
 * if it was, and past the end that the file had. */
bool io_around_take (struct io_around *a, uint64_t host_off);
void io_around_free (struct io_around *a);

#endif
