/* SPDX-License-Identifier: BSD-3-Clause */
/* What the owner of an index gives to it: space for tables, the meaning of
 * values, and ears for events.
 *
 * All callbacks are called without the index's lock, and by one thread at a
 * time (the one that edits the index, see index.h) unless said otherwise.
 */
#ifndef DEDUP_INDEX_STORAGE_H
#define DEDUP_INDEX_STORAGE_H

#include "manifest.h"

struct dedup_index_storage {
  /* Pages of tables are read and written here, at offsets that ALLOC gave;
   * by any number of threads at once. */
  struct io_store *io;

  /* Allocates an area of SIZE bytes (a multiple of the index's area_unit) that
   * no durable manifest lists.  What is in it before the first write does not
   * matter. */
  int (*alloc) (void *opaque, uint64_t size, uint64_t *host_off);

  /* Frees an area, or the end of one.  Its bytes may be overwritten from then
   * on, so the durable manifest must not list it (law 9).  On failure some of
   * it may be free already: the index never tries again. */
  int (*free) (void *opaque, uint64_t host_off, uint64_t size);

  /* Makes durable what was written to the area at HOST_OFF (law 8). */
  int (*sync) (void *opaque, uint64_t host_off);

  /* True if the area at HOST_OFF lies in a file that has failed, so that a
   * table whose writing failed there may be written again to a new area,
   * which then lies in another file. */
  bool (*moved) (void *opaque, uint64_t host_off);

  /* True if new areas lie in the same file as the area at HOST_OFF, and that
   * may be written. */
  bool (*goes_there) (void *opaque, uint64_t host_off);

  /* Makes M the durable manifest; MARK is the oldest mark that the index still
   * needs (dedup_index_mark_locked).  -ENOSPC: M is owed.  The owner keeps it,
   * though the next open may still be given the one before, and makes it durable
   * with whatever it commits next; then it calls dedup_index_committed.  Any
   * other failure is final: nothing is ever committed again. */
  int (*commit) (void *opaque, const struct dedup_index_manifest *m,
                 uint64_t mark);

  void *opaque;
};

/* The index takes values for opaque numbers other than 0 and DEDUP_DELETED;
 * only the owner knows what they mean. */
struct dedup_index_values {
  /* Returns a number above every slot, and so about the number of values that
   * can be live at one time. */
  uint64_t (*end) (void *opaque);

  /* Returns the slot of VALUE: of two values with one slot only one can be
   * live.  Called by the thread that carries out a merge step. */
  uint64_t (*slot) (void *opaque, uint64_t value);

  /* Tells which of NR values nobody will follow any more; may be NULL.  Called
   * by the thread that carries out a merge step. */
  void (*find_dead) (void *opaque, const uint64_t *values, size_t nr,
                     bool *dead);

  void *opaque;
};

struct dedup_index_events {
  /* Under a bound on memory, a share of the tables has been replaced: what was
   * found without a lookup, because the owner remembers it, must be looked up
   * again, or the index would forget it as unused.  May be NULL. */
  void (*aged) (void *opaque);

  void *opaque;
};

#endif
