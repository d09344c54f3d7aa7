/* SPDX-License-Identifier: BSD-3-Clause */
/* Surveys an image: one pass that counts what each root takes and shares with
 * whom, how often clusters are referred to, and what the file holds where.
 *
 * Its figures of roots are those of qcow2_root_usage (qcow2-usage.h), but for all
 * roots at once.  It takes no longer the more roots share a table: each L2 table
 * is read once for the figures of roots and once for each window of 2^25 clusters
 * of the file, however many roots name it, and each root's L1 table is read twice.
 * So the time is proportional to T * (1 + W) + C, with T entries of different L2
 * tables, W windows in which there is data, and C clusters.  It takes at most
 * 256 MiB of memory for counters, 100 bytes for each L2 table, and 100 bytes for
 * each root.
 *
 * It writes nothing, and may be called from any thread, beside writers.  What is
 * said in qcow2-usage.h about images that change meanwhile holds here, too.
 */
#ifndef QCOW2_SURVEY_H
#define QCOW2_SURVEY_H

#include "qcow2-usage.h"

/* Sharing is counted between so many groups at most.  Each of the largest roots is
 * a group, and the last group has all the others, if there are more.  Tests have
 * fewer; there may be 31. */
#ifndef QCOW2_SURVEY_GROUPS
#define QCOW2_SURVEY_GROUPS 25u
#endif

/* Buckets of clusters by their number of references: bucket 0 has those with 1,
 * and bucket k those with 2^(k-1) + 1 to 2^k. */
#define QCOW2_SURVEY_BUCKETS 33u

/* The largest number of clusters of a file that are surveyed: 32 TiB at 4 KiB.  A
 * false number in a header thus cannot keep the survey busy for days. */
#define QCOW2_SURVEY_MAX_CLUSTERS (UINT64_C (1) << 33)

/* What a cluster of the file holds.  Each has one kind, the first that fits. */
enum qcow2_survey_kind {
  QCOW2_SURVEY_DATA,           /* an L2 entry of a root names it */
  QCOW2_SURVEY_STORE,          /* it is in an area of the store */
  QCOW2_SURVEY_FREE,           /* its refcount is 0 */
  QCOW2_SURVEY_UNUSED,         /* anchored data that no root has any more */
  QCOW2_SURVEY_TABLE,          /* any other use: header, tables of qcow2, the
                                * anchor's, bitmaps, leaks */
};
#define QCOW2_SURVEY_KINDS 5

struct qcow2_survey_params {
  struct qcow2_usage_params usage;
  /* Is called now and then with a share of the work, DONE of TOTAL.  May be
   * NULL. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  const struct qcow2_area *areas;        /* of the store, in any order */
  size_t nr_areas;
  unsigned max_cells;          /* of the map; at least 1 */
};

struct qcow2_survey_root {
  unsigned root;
  bool writable, doomed;
  unsigned group;              /* several roots may have the last one */
  uint64_t runs;               /* of clusters that are in sequence on the disk and
                                * in the file; a run ends with its L2 table */
  struct qcow2_root_usage u;   /* shared_bytes only where the root has a group to
                                * itself (shared_known) */
  bool shared_known;
};

/* A part of the file: so many clusters in sequence. */
struct qcow2_survey_cell {
  uint64_t nr[QCOW2_SURVEY_KINDS];       /* clusters */
  uint64_t hole_bytes;         /* that take no space on the host */
};

struct qcow2_survey {
  uint64_t cluster_size;
  uint64_t nr_clusters;        /* of the file */
  uint64_t nr[QCOW2_SURVEY_KINDS];       /* of these */
  uint64_t l2_tables;          /* different ones, of all roots */
  bool any_packed;             /* some data is compressed: qcow2_packed_usage counts
                                * it */

  struct qcow2_survey_root *roots;       /* owned.  Disks come first, then
                                          * snapshots, then roots that are being
                                          * deleted; among each, those that map
                                          * most come first */
  size_t nr_roots;
  unsigned nr_groups;          /* root i has group i, or else the last one */
  /* Clusters of data to which both groups refer; [g][g]: to which g refers. */
  uint64_t pair[QCOW2_SURVEY_GROUPS][QCOW2_SURVEY_GROUPS];

  struct {
    uint64_t clusters;
    uint64_t references;       /* to them: L2 entries, each counted once for each
                                * L1 entry that leads to it */
  } references[QCOW2_SURVEY_BUCKETS];

  struct qcow2_survey_cell *cells;       /* owned */
  size_t nr_cells;
  uint64_t cell_clusters;      /* of each cell; the last may have fewer */
  bool holes_known;            /* else the host cannot tell */
  uint64_t hole_bytes;
  uint64_t free_runs;          /* of free clusters in sequence */
  uint64_t largest_free_run;   /* clusters */
};

/* Surveys the image.  S is to be freed by qcow2_survey_free, also after an error.
 * FAULT_CORRUPT: L1 tables overlap, or lie past the end of the file;
 * FAULT_UNSUPPORTED: the file has more than QCOW2_SURVEY_MAX_CLUSTERS;
 * FAULT_IO: a table cannot be read or be where it is said to be; -ENOMEM;
 * -EINTR. */
int qcow2_survey (struct qcow2_image *img, const struct qcow2_survey_params *p,
                  struct qcow2_survey *s, struct fault *f) MUST_CHECK;
void qcow2_survey_free (struct qcow2_survey *s);

#endif
