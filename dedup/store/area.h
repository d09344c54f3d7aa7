/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares areas: contiguous ranges of clusters that the store owns, in the
 * image or in the store file.  All functions that take the store are
 * maintenance (see store.h).
 */
#ifndef DEDUP_AREA_H
#define DEDUP_AREA_H

#include "store.h"

/* Clusters of an area that are changed or checked under one hold of the image
 * lock. */
#ifdef DEDUP_MUTATIONS
#define DEDUP_CLUSTERS_PER_HOLD 24   /* so that the crash harness sees halves */
#else
#define DEDUP_CLUSTERS_PER_HOLD 4096
#endif

/* --- area-size.c: the sizes of a new store ------------------------------ */

/* Returns the order of log stores for a disk of NR_CLUSTERS. */
unsigned dedup_default_order (uint64_t nr_clusters);
/* Returns, for log stores of an order, how many journal areas of AREA_SIZE
 * bytes the journal may have, and how many bytes each has. */
uint32_t dedup_default_areas (unsigned order, uint32_t area_size);
uint32_t dedup_default_area_size (unsigned order, uint64_t cluster_size);

/* --- area.c: areas in the image ----------------------------------------- */

/* Allocates an area of SIZE bytes (whole clusters).  It is anchored and
 * recorded in the journal, and no configuration lists it yet.  -ENOSPC. */
int dedup_area_alloc (struct dedup_store *s, uint64_t size,
                      uint64_t *host_off) MUST_CHECK;
/* Frees an area that no durable configuration lists.  On failure part of it may
 * be free already, so it must not be called again for that area: the sweep of
 * the next session finds the rest. */
int dedup_area_free (struct dedup_store *s, uint64_t host_off, uint64_t size)
  MUST_CHECK;
/* Allocates SIZE bytes of a file at OFF on the host, where that can promise
 * space: the journal must not meet a full disk.  Else makes the file reach
 * behind them at least. */
int dedup_area_allocate_space (struct io_store *io, uint64_t off,
                               uint64_t size) MUST_CHECK;
/* Writes zeroes to a new journal area of SIZE bytes, before a configuration
 * lists it.  Where an older copy of the image was put on a device over a newer
 * one there may be blocks of the same store, which must not be taken for blocks
 * of this area.  Besides, blocks take longer to write where no data was
 * before. */
int dedup_area_write_zeroes (struct io_store *io, uint64_t host_off,
                             uint64_t size);

/* --- area-list.c: all areas that are in use ----------------------------- */

/* Returns in *AREAS (the caller's to free) the *NR areas that lie in the
 * image. */
int dedup_area_list (struct dedup_store *s, struct qcow2_area **areas,
                     size_t *nr) MUST_CHECK;
/* Returns whether a cluster is inside an area that the configuration lists, or
 * that the index frees itself when nobody reads it any more. */
bool dedup_area_contains (const struct dedup_store *s, uint64_t host_idx);
/* Enters header, tables (if TABLES) and areas into the guard, so that no data
 * is written there, whatever the image's tables say.  FAULT_CORRUPT: an area
 * overlaps a table. */
int dedup_guard (struct dedup_store *s, bool tables, struct fault *f)
  MUST_CHECK;
/* Tells in *OK whether every cluster of every area is anchored with refcount
 * 1. */
int dedup_area_check (struct dedup_store *s, bool *ok) MUST_CHECK;
/* Allocates space for holes in what is written in place (configuration,
 * journal, tables), as far as there is space; used at open.  Tools that dig
 * holes into files (fallocate -d, cp --sparse) make them. */
void dedup_area_fill_holes (struct dedup_store *s);

/* --- store-file.c: areas of the index in a file of their own ------------ */

struct dedup_store_file_place {
  struct io_store *io;           /* the caller's; NULL: no store file */
  const char *path;              /* for messages */
};

/* Opens the store file at PATH.  Where it is missing it is made if WRITABLE
 * (*CREATED), else *OUT is NULL. */
int dedup_store_file_open_at (const char *path, bool writable,
                              struct io_store **out, bool *created,
                              struct fault *f) MUST_CHECK;
/* Takes the store file, or none, into use.  If it is not the file that the
 * configuration lists, the configuration in memory loses the areas that lie
 * there.  Writes nothing.  FAULT_USAGE: the file is not this image's. */
int dedup_store_file_attach (struct dedup_store *s,
                             const struct dedup_store_file_place *p,
                             struct fault *f) MUST_CHECK;
/* Prepares the file for a new store, which is made in the place of a void one
 * with the id VOID_ID (0: not known): the file belongs to no store afterwards.
 * FAULT_USAGE: it is neither new nor the void store's. */
int dedup_store_file_take_over (const struct dedup_store_file_place *p,
                                uint64_t void_id, struct fault *f) MUST_CHECK;
void dedup_store_file_free (struct dedup_store_file *sf);
/* Returns the byte store of the index's pages: both files as one. */
struct io_store *dedup_index_io (struct dedup_store *s);
/* Returns whether new areas are allocated in the store file.  The first call
 * makes the file this session's, which commits the configuration. */
bool dedup_store_file_ready (struct dedup_store *s);
/* Returns whether HOST_OFF lies in the store file and that failed or was full,
 * so that the next area lies in the image. */
bool dedup_store_file_lost (struct dedup_store *s, uint64_t host_off);
/* Do the same as dedup_area_alloc and dedup_area_free, in the store file where
 * there is one with space. */
int dedup_index_area_alloc (struct dedup_store *s, uint64_t size,
                            uint64_t *host_off) MUST_CHECK;
int dedup_index_area_free (struct dedup_store *s, uint64_t host_off,
                           uint64_t size) MUST_CHECK;
/* Makes durable what was written to the area at HOST_OFF (law 8). */
int dedup_index_sync (struct dedup_store *s, uint64_t host_off) MUST_CHECK;

#endif
