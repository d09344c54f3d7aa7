/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the callbacks that the owner of an index gives to it: space for
 * tables, the meaning of values, and whom to tell of events.
 *
 * All callbacks are called without the index's lock, and by one thread at a
 * time (the one that edits the index, see index.h) unless said otherwise.  They
 * return 0 or -errno, or what their comments say.  A HOST_OFF is an offset in
 * bytes in IO.
 */
#ifndef DEDUP_INDEX_STORAGE_H
#define DEDUP_INDEX_STORAGE_H

#include "manifest.h"

struct dedup_index_storage {
  /* The byte store where pages of tables are read and written, at offsets that
   * ALLOC gave, by any number of threads at once. */
  struct io_store *io;

  /* Allocates an area of SIZE bytes (a multiple of the index's area_unit) that
   * no durable manifest lists.  It may hold any bytes. */
  int (*alloc) (void *opaque, uint64_t size, uint64_t *host_off);

  /* Frees an area, or the end of one.  Its bytes may be overwritten from then
   * on, so the index calls this only when no durable manifest lists it (law 9).
   * On failure some of it may be free already: the index never tries again. */
  int (*free) (void *opaque, uint64_t host_off, uint64_t size);

  /* Makes everything durable that was written to the area at HOST_OFF (law
   * 8). */
  int (*sync) (void *opaque, uint64_t host_off);

  /* Returns true if the area at HOST_OFF lies in a file that has failed.  A
   * table whose writing failed there is then written again to a new area, which
   * lies in another file. */
  bool (*file_failed) (void *opaque, uint64_t host_off);

  /* Returns true if new areas lie in the same file as the area at HOST_OFF, and
   * that file can be written. */
  bool (*same_file_as_new) (void *opaque, uint64_t host_off);

  /* Makes M the durable manifest; MARK is the oldest mark that the index still
   * needs (dedup_index_mark_locked).  -ENOSPC: M is owed.  The owner keeps M
   * and makes it durable with whatever it commits next; then it calls
   * dedup_index_committed.  Until then the next open may be given either M or
   * the manifest before it.  Any other failure is final: nothing is ever
   * committed again. */
  int (*commit) (void *opaque, const struct dedup_index_manifest *m,
                 uint64_t mark);

  void *opaque;
};

/* Says what the index has to know of values.  To the index they are opaque
 * numbers other than 0 and DEDUP_DELETED; only the owner knows what they mean,
 * for instance where a cluster lies. */
enum dedup_slot_use {
  DEDUP_SLOT_SHARED,     /* the value has a part of the slot; so may others */
  DEDUP_SLOT_UNKNOWN,    /* no other entry of a value that fills the slot counts */
  DEDUP_SLOT_FILLED,     /* the value fills the slot */
};

struct dedup_index_values {
  /* Returns a number above every slot, and so about the number of values that
   * can be live at one time. */
  uint64_t (*end) (void *opaque);

  /* Returns the slot of VALUE: of two values with one slot only one can be
   * live if one of them fills it.  Called by the thread that carries out a merge
   * step. */
  uint64_t (*slot) (void *opaque, uint64_t value);

  /* Returns how much the entry of VALUE for HASH says about the slot.  HASH is NULL
   * where only the value counts.  May be NULL: DEDUP_SLOT_FILLED. */
  enum dedup_slot_use (*slot_use) (void *opaque, const struct dedup_hash *hash,
                                   uint64_t value);

  /* Returns whether there may be values that share their slots.  May be NULL: no. */
  bool (*may_share_slots) (void *opaque);

  /* Sets DEAD[i] for each of NR values that nobody will follow any more.  May
   * be NULL.  Called by the thread that carries out a merge step. */
  void (*find_dead) (void *opaque, const uint64_t *values, size_t nr,
                     bool *dead);

  void *opaque;
};

struct dedup_index_events {
  /* Says that, under a bound on memory, a share of the tables has been
   * replaced.  The owner must then look up again what it remembers and so finds
   * without a lookup, or the index would forget these entries as unused.  May
   * be NULL. */
  void (*aged) (void *opaque);

  void *opaque;
};

#endif
