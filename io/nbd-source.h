/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads an NBD export once, from its start to its end, ahead of a user who
 * never waits for it (nbd-source.c).
 *
 * Data come in pieces, in order.  What the server says reads as zeroes is left
 * out. The order of calls is: io_nbd_source_size until it is known, then
 * io_nbd_source_next and io_nbd_source_done for each piece, and
 * io_nbd_source_close at any time.  All but close return at once.
 */
#ifndef DEDUP_NBD_SOURCE_H
#define DEDUP_NBD_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"

struct io_nbd_source;

/* Pieces begin at multiples of this, and have as much but for the last one of
 * the export. */
#define IO_NBD_PIECE (UINT64_C (256) << 10)

struct io_nbd_piece {           /* valid until io_nbd_source_done */
  uint64_t off;                 /* of the export */
  size_t len;
  const void *data;
};

/* Begins to read the export that URI names (io_is_uri), on a thread of its own, from
 * byte FROM on, a multiple of IO_NBD_PIECE; what is before it is not asked for.
 * WAKE is called on that thread, without locks, when one of the results below is
 * no longer -EAGAIN; it must not call functions of this header.  -EINVAL: URI is
 * none of an NBD export; -ENOMEM, -EAGAIN. */
int io_nbd_source_open (const char *uri, uint64_t from,
                        void (*wake) (void *opaque), void *opaque,
                        struct io_nbd_source **out, struct fault *f)
  MUST_CHECK;

/* Sets the size of the export.  -EAGAIN: not known yet, as it is not connected;
 * another error, with a fault: it cannot be read. */
int io_nbd_source_size (struct io_nbd_source *s, uint64_t *size_bytes,
                        struct fault *f) MUST_CHECK;
/* Returns how many bytes will come in pieces; 0: not known yet. */
uint64_t io_nbd_source_data_bytes (struct io_nbd_source *s);

/* Gets the next piece, or the same again until io_nbd_source_done.  Returns 1;
 * 0 at the end of the export; -EAGAIN: it has not come yet; another error, with
 * a fault: the export cannot be read to its end. */
int io_nbd_source_next (struct io_nbd_source *s, struct io_nbd_piece *piece,
                        struct fault *f) MUST_CHECK;
void io_nbd_source_done (struct io_nbd_source *s);

/* Return whether io_nbd_source_size and io_nbd_source_next have another result
 * than -EAGAIN.  Any thread. */
bool io_nbd_source_has_size (struct io_nbd_source *s);
bool io_nbd_source_has_next (struct io_nbd_source *s);

/* Ends reading, if it has not ended, and frees S.  A server that has not
 * answered yet is waited for for up to two seconds, and a name server for as
 * long as the C library does.  S may be NULL. */
void io_nbd_source_close (struct io_nbd_source *s);

#endif
