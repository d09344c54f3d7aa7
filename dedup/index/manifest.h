/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the manifest of an index: the list of its tables, as a value.
 *
 * The index edits a copy and commits it in one place (publish.c); the owner of
 * the index keeps the last one that it made durable (struct
 * dedup_index_storage), and gives it back at the next open.  The owner decides
 * how it is encoded.
 */
#ifndef DEDUP_INDEX_MANIFEST_H
#define DEDUP_INDEX_MANIFEST_H

#include "incarnation.h"
#include "index-limits.h"
#include "segment.h"

/* The area of a dropped incarnation, kept for the next one. */
struct dedup_limbo_area {
  uint64_t host_off, size_bytes;
};

struct dedup_index_manifest {
  uint32_t order;               /* of log stores */
  uint32_t max_incarnations;    /* 0: no limit, freezes write runs */
  uint64_t next_id;             /* of a table; no id is used twice */
  uint32_t nr_incarnations, nr_limbo, nr_segments;
  struct dedup_incarnation_desc incarnations[DEDUP_MAX_INCARNATIONS];
                                /* oldest first */
  struct dedup_limbo_area limbo[DEDUP_MAX_LIMBO];
  /* Sorted by age, level and lo: a run's segments stand together, and the
   * oldest run is first. */
  struct dedup_segment_desc segments[DEDUP_MAX_SEGMENTS];
};

/* Returns the number of entries, tombstones included, that all tables of M
 * hold. */
uint64_t dedup_manifest_entries (const struct dedup_index_manifest *m);

/* Returns the number of runs that M lists. */
size_t dedup_manifest_runs (const struct dedup_index_manifest *m);

/* Inserts DESC in order of age, level and range.  -ENOSPC: M lists
 * DEDUP_MAX_SEGMENTS already. */
int dedup_manifest_add_segment (struct dedup_index_manifest *m,
                                const struct dedup_segment_desc *desc)
  MUST_CHECK;

/* Removes segment I, or incarnation I.  The caller takes care of their
 * areas. */
void dedup_manifest_remove_segment (struct dedup_index_manifest *m, size_t i);
void dedup_manifest_remove_incarnation (struct dedup_index_manifest *m,
                                        size_t i);

/* Turns the outputs of merges that have no inputs left into ordinary runs. */
void dedup_manifest_settle (struct dedup_index_manifest *m);

/* Returns true if so many segments are listed that a freeze has to wait for
 * merges. */
bool dedup_manifest_full (const struct dedup_index_manifest *m);

/* Returns the position of the incarnation with this id, or nr_incarnations if
 * there is none. */
size_t dedup_manifest_find_incarnation (const struct dedup_index_manifest *m,
                                        uint64_t id);

/* Returns the position of the segment with this id, or nr_segments if there is
 * none. */
size_t dedup_manifest_find_segment (const struct dedup_index_manifest *m,
                                    uint64_t id);

#endif
