/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the checker (check*.c, rebuild.c) share; no other
 * file includes it. */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "image.h"
#include "qcow2-check.h"

/* A file with more clusters than this is not checked; qemu-img gives up at the
 * same number.  At 5 bytes each it takes at most 10 GiB of address space, of
 * which only the parts that the image refers to are touched before the last
 * pass. */
#define CHECK_MAX_CLUSTERS ((UINT64_C (1) << 31) - 1)

/* Marks of a host cluster: bits for the kinds of reference to it. */
enum {
  CHECK_OWNED = 1,        /* table with one owner: header, L1, refcounts... */
  CHECK_L2 = 2,           /* L2 table; snapshots may share it */
  CHECK_GUEST = 4,        /* an entry of a root other than the anchor */
  CHECK_ANCHORED = 8,     /* an entry of the anchor */
  CHECK_STORED_ONE = 16,  /* the refcount in the file is 1 */
  CHECK_AREA = 32,        /* belongs to a store area */
  CHECK_DECODED = 64,     /* L2 table whose entries were counted; only in images
                           * with disks */
  CHECK_ANCHOR_L2 = 128,  /* L2 table of the anchor; likewise */
};

struct check {
  struct qcow2_image *img;
  const struct qcow2_geometry *geo;
  const struct qcow2_check_params *p;
  struct qcow2_check_result *r;
  uint64_t file_size;
  uint64_t nr;            /* host clusters, see check_count_init */
  uint8_t *marks;         /* of each */
  uint16_t *count16;      /* references found; one of the two is NULL */
  uint32_t *count32;
  uint32_t count_max;
  uint8_t *table;         /* one cluster: the table being read */
  bool has_disks;         /* else the next four are unused */
  bool *walked;           /* of each root: its L1 table may be read */
  uint8_t *block;         /* one cluster: the refcount block BLOCK_IDX, if */
  bool block_read;        /* it could be read */
  uint64_t block_idx;     /* UINT64_MAX: none was tried */
  uint64_t done, total;   /* progress, in tables */
  bool rebuilding;        /* the stored refcounts are not to be relied on */
  int err;                /* errno of the first part that was not checked */
};

/* A place that refers to host clusters, for messages. */
struct check_site {
  const char *what;       /* kind of what is referred to */
  const char *root;       /* name of the disk or snapshot; NULL: none */
  uint64_t guest_off;     /* valid with a root */
  uint32_t weight;        /* how many references it stands for; 0: one */
};

/* --- check-report.c: the three kinds of finding, and progress ------------- */
void check_corrupt (struct check *c, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
void check_leak (struct check *c, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
/* Reports a part that could not be checked because of ERR (a positive
 * errno). */
void check_error (struct check *c, int err, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));
void check_step (struct check *c);

/* --- check-root.c: the roots ------------------------------------------------ */
/* A root: the active disk, a snapshot or disk, or the anchor. */
enum check_root_kind { CHECK_ROOT_ACTIVE, CHECK_ROOT_SNAPSHOT,
                       CHECK_ROOT_DISK, CHECK_ROOT_ANCHOR };
struct check_root {
  enum check_root_kind kind;
  char name[80];          /* for messages: its kind, and its name or id */
  uint64_t l1_off;
  uint64_t l1_entries;
  bool doomed;            /* a disk that is being deleted */
};
/* Returns whether the image has disks other than the active one. */
bool check_has_disks (const struct check *c);
/* Describes root R: 0 the active disk, from 1 on the snapshots.  False if there
 * is no such root, as its slot is not in use. */
bool check_root_at (const struct check *c, size_t r, struct check_root *root);

/* --- check.c -------------------------------------------------------------- */
/* Counts everything that refers to clusters, except the refcount structures
 * themselves. */
void check_references (struct check *c);

/* --- check-count.c: references per host cluster --------------------------- */
int check_count_init (struct check *c, struct fault *f) MUST_CHECK;
void check_count_free (struct check *c);
uint64_t check_count_get (const struct check *c, uint64_t host_idx);
/* Counts SITE->weight references (0: one) to each cluster of a range of bytes
 * and sets MARK on them.  False if the range is not inside the file: it is
 * reported, and nothing is counted. */
bool check_count_range (struct check *c, const struct check_site *site,
                        uint64_t host_off, uint64_t len, uint8_t mark);
/* Does the same for a table, whose offset must be cluster aligned, too. */
bool check_count_table (struct check *c, const struct check_site *site,
                        uint64_t host_off, uint64_t len, uint8_t mark);
/* Writes " of ROOT, guest offset N" to BUF, or an empty string if SITE has no
 * root; returns BUF. */
const char *check_site_text (const struct check_site *site, char *buf,
                             size_t size);
#define CHECK_SITE_TEXT 160

/* Calls CB with each entry that is not 0 among the NR 8-byte entries of a table
 * in the file.  A piece that can't be read is reported and left out. */
void check_each_entry (struct check *c, const char *what, uint64_t host_off,
                       uint64_t nr,
                       void (*cb) (struct check *c, void *opaque, uint64_t i,
                                   uint64_t entry),
                       void *opaque);

/* --- check-tables.c: L1 and L2 -------------------------------------------- */
/* Counts the L1 table of ROOT, and all that it leads to. */
void check_walk_root (struct check *c, const struct check_root *root);
/* Counts the L2 table that ENTRY, entry L1_IDX of the root's L1 table, names.
 * False if it names none: that is reported. */
bool check_l1_entry (struct check *c, const struct check_root *root,
                     uint64_t l1_idx, uint64_t entry);
/* Checks the COPIED flag of such an entry, whose table was counted. */
void check_l1_copied (struct check *c, const struct check_root *root,
                      uint64_t l1_idx, uint64_t entry);
/* Reads the table, and counts WEIGHT references (more than 0) for each of its
 * entries. */
void check_walk_l2 (struct check *c, const struct check_root *root,
                    uint64_t l1_idx, uint64_t host_off, uint32_t weight);

/* --- check-paths.c: roots of an image with disks --------------------------- */
/* Counts the L1 tables of all roots but the anchor, and all that they lead
 * to. */
void check_walk_paths (struct check *c);

/* --- check-refcounts.c: the stored refcounts ------------------------------ */
/* Makes the first pass: counts the refcount structures, and marks the clusters
 * with refcount 1. */
void check_refcounts_mark (struct check *c);
/* Makes the last pass: compares the stored refcounts with the counts. */
void check_refcounts_compare (struct check *c);
/* Gets the stored refcount of a cluster.  False: its block is misplaced or cannot
 * be read, which has been reported. */
bool check_refcount_stored (struct check *c, uint64_t host_idx, uint64_t *v);

/* --- check-bitmaps.c: persistent dirty bitmaps ---------------------------- */
void check_bitmaps (struct check *c);

#endif
