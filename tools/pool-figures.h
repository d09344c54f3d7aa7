/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what a pool stores and saves, for info and disk info. */
#ifndef DEDUP_TOOL_POOL_FIGURES_H
#define DEDUP_TOOL_POOL_FIGURES_H

#include "dedup.h"

struct pool_figures {
  uint64_t nr_disks;            /* beside the active one */
  uint64_t nr_snapshots;        /* of disks, and of other programs */
  bool has_disks;               /* it has disks or snapshots of this program */
  bool pending;                 /* pool_figures_pending */
  uint64_t cluster_size;
  struct qcow2_pool_usage u;
};

/* Descriptors of compressed data that are in memory while they are counted: 64 MiB. */
#define POOL_FIGURES_PACKED ((size_t) 1 << 23)
/* Returns whether tables are lent that are not paid for, or a deleted disk is not
 * yet freed.  An image that is open for reading only is asked whether it was closed
 * so: then nothing of that work is known. */
bool pool_figures_pending (struct dedup_pool *d);
/* Counts the disks, and reads the tables of all of them if there are any, or if
 * ALWAYS.  -errno. */
int pool_figures_count (struct dedup_pool *d, bool always,
                        struct pool_figures *p) MUST_CHECK;
/* Prints the lines "logical", "stored" and "ratio". */
void pool_figures_print (const struct pool_figures *p);
/* Prints what compression does beside deduplication, if anything is compressed: the
 * lines "deduplicated" and "compressed". */
void pool_figures_print_compression (const struct pool_figures *p);
/* Says why some data is not moved by a compaction. */
const char *pool_figures_why_kept (const struct pool_figures *p);
/* Set members of the JSON object O: all of them, or the object "compression". */
struct json_t;
void pool_figures_set (struct json_t *o, const struct pool_figures *p);
void pool_figures_set_compression (struct json_t *o,
                                   const struct pool_figures *p);

#endif
