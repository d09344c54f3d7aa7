/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares how usage-root.c, usage-pool.c and the survey read the tables of a
 * root; no other file includes it. */
#ifndef QCOW2_USAGE_WALK_H
#define QCOW2_USAGE_WALK_H

#include "image.h"
#include "qcow2-usage.h"

/* Clusters of a window of the file: 128 MiB for counters of 4 bytes.  Tests have
 * smaller ones. */
#ifndef QCOW2_USAGE_WINDOW
#define QCOW2_USAGE_WINDOW (UINT64_C (1) << 25)
#endif

/* A root as it was when the walk began, or was last looked at. */
struct usage_root {
  unsigned root;
  uint64_t size_bytes;         /* of the disk */
  uint64_t nr_clusters;        /* of the disk, the last may be partial */
  uint64_t l1_entries;
  bool writable, doomed;       /* the active disk is writable */
};

/* Describes a root.  False: there is none, or it is the anchor. */
bool usage_look (struct qcow2_image *img, unsigned root, struct usage_root *u);
/* Returns how many roots there may be: their numbers are below. */
unsigned usage_nr_roots (struct qcow2_image *img);

/* Returns the first cluster of the file from which on there is no data. */
int usage_file_clusters (struct qcow2_image *img, uint64_t *nr) MUST_CHECK;

/* What an L2 entry refers to. */
struct usage_entry {
  uint64_t guest_idx;
  bool mapped;                 /* it has data of its own */
  uint64_t host_idx, nr;       /* clusters; NR is 0 if there are none */
  uint64_t packed;             /* the entry itself, without COPIED, if it is
                                * compressed; else 0 */
};

struct usage_table {
  uint64_t l1_idx;
  uint64_t host_idx;
};

/* Walks a root. */
struct usage_walk {
  struct qcow2_image *img;
  const struct qcow2_usage_params *p;
  struct usage_root root;
  uint8_t *slice;              /* qcow2_slice_size bytes; see usage_walk_init */
  /* Is called for each L1 entry that names a table; -errno ends the walk. */
  int (*table) (struct usage_walk *w, const struct usage_table *t);
  /* Is called by usage_walk_table for each entry that is not 0. */
  void (*entry) (struct usage_walk *w, const struct usage_entry *e);
};

int usage_walk_init (struct usage_walk *w, struct qcow2_image *img,
                     const struct qcow2_usage_params *p) MUST_CHECK;
void usage_walk_free (struct usage_walk *w);
/* Calls w->table for each table of w->root. */
int usage_walk_root (struct usage_walk *w) MUST_CHECK;
/* Calls w->table for the tables that one slice of the L1 table of w->root names, from
 * entry *FIRST on, and moves *FIRST.  1: there may be more; 0: there are none. */
int usage_walk_some (struct usage_walk *w, uint64_t *first) MUST_CHECK;
/* Calls w->entry for each entry of a table. */
int usage_walk_table (struct usage_walk *w, const struct usage_table *t)
  MUST_CHECK;
/* Sets *N to how many references to a cluster there are but for the
 * anchor's. */
int usage_references (struct qcow2_image *img, uint64_t host_idx,
                      uint64_t *n) MUST_CHECK;

#endif
