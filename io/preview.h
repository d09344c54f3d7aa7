/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out which parts of a place are needed, while its lease is being taken.
 *
 * A place that is far away answers each read a round trip later, and an image is opened
 * by reads of which each tells where the next one goes.  So the image is opened twice: as
 * a rehearsal, by a thread, while the lease settles; and then, when the lease is held, by
 * whoever asked for the place.  All that the rehearsal read is read ahead for the second
 * one, at once.
 *
 * No byte that the rehearsal read is used for anything else: before the lease is held,
 * another server may be writing.  The rehearsal only tells what to read.  If that is not
 * what the image needs by then, the second open takes longer, and no more than that.
 *
 * Private to io/. */
#ifndef DEDUP_PREVIEW_H
#define DEDUP_PREVIEW_H

#include "io.h"

struct io_preview;

/* Starts the thread, which calls REHEARSE (OPAQUE) with a store that passes reads on to
 * BELOW and refuses all else.  Its reads fail as soon as the place turns out to be near,
 * too much was read, or io_preview_stop was called.  Returns NULL if there is no thread. */
struct io_preview *
io_preview_start (struct io_store *below,
                  void (*rehearse) (void *opaque, struct io_store *s), void *opaque);

/* Ends the thread.  Must be called before BELOW is closed.  PREVIEW may be NULL, and
 * stopped already. */
void io_preview_stop (void *preview);

/* Begins to read from S what the rehearsal has read; then stops and frees it. */
void io_preview_end (struct io_preview *v, struct io_store *s);

#endif
