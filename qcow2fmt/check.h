/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the checker (check*.c) share; nobody else includes it. */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "image.h"

/* More clusters than this are not checked: qemu-img gives up at the same
 * number.  5 bytes each: at most 10 GiB of address space, of which only the
 * parts that the image speaks of are ever touched before the last pass. */
#define CHECK_MAX_CLUSTERS ((UINT64_C (1) << 31) - 1)

/* What is known of a host cluster, beside the number of its references. */
enum {
  CHECK_OWNED = 1,        /* table with one owner: header, L1, refcounts... */
  CHECK_L2 = 2,           /* L2 table; snapshots may share it */
  CHECK_GUEST = 4,        /* an entry of a root other than the anchor */
  CHECK_ANCHORED = 8,     /* an entry of the anchor */
  CHECK_STORED_ONE = 16,  /* the refcount in the file is 1 */
  CHECK_AREA = 32,        /* belongs to a store area */
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
  uint64_t done, total;   /* progress, in tables */
  bool rebuilding;        /* the stored refcounts mean nothing */
  int err;                /* errno of the first part that was not checked */
};

/* A place that refers to host clusters, for messages. */
struct check_site {
  const char *what;       /* kind of what is referred to */
  const char *root;       /* name of the disk or snapshot; NULL: none */
  uint64_t guest_off;     /* valid with a root */
};

/* --- check-report.c: the three kinds of finding, and progress ------------- */
void check_corrupt (struct check *c, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
void check_leak (struct check *c, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
/* A part could not be checked, for ERR (positive). */
void check_error (struct check *c, int err, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));
void check_step (struct check *c);

/* --- check.c -------------------------------------------------------------- */
/* Count everything that refers to clusters, but for the refcount structures
 * themselves. */
void check_references (struct check *c);

/* --- check-count.c: references per host cluster --------------------------- */
int check_count_init (struct check *c, struct fault *f) MUST_CHECK;
void check_count_free (struct check *c);
uint64_t check_count_get (const struct check *c, uint64_t host_idx);
/* Count one reference to each cluster of a range of bytes and mark them.
 * False if the range is not inside the file: told, nothing is counted. */
bool check_count_range (struct check *c, const struct check_site *site,
                        uint64_t host_off, uint64_t len, uint8_t mark);
/* The same for a table: its place must be aligned, too. */
bool check_count_table (struct check *c, const struct check_site *site,
                        uint64_t host_off, uint64_t len, uint8_t mark);
/* " of ROOT, guest offset N" or nothing, in BUF. */
const char *check_site_text (const struct check_site *site, char *buf,
                             size_t size);
#define CHECK_SITE_TEXT 160

/* Call CB with each of NR 8-byte entries of a table in the file that is not
 * 0.  A piece that can't be read is told and left out. */
void check_each_entry (struct check *c, const char *what, uint64_t host_off,
                       uint64_t nr,
                       void (*cb) (struct check *c, void *opaque, uint64_t i,
                                   uint64_t entry),
                       void *opaque);

/* --- check-tables.c: L1 and L2 -------------------------------------------- */
enum check_root_kind { CHECK_ROOT_ACTIVE, CHECK_ROOT_SNAPSHOT,
                       CHECK_ROOT_ANCHOR };
struct check_root {
  enum check_root_kind kind;
  const char *name;
  uint64_t l1_off;
  uint64_t l1_entries;
};
void check_walk_root (struct check *c, const struct check_root *root);

/* --- check-refcounts.c: the stored refcounts ------------------------------ */
/* First: count the refcount structures, mark clusters with refcount 1. */
void check_refcounts_mark (struct check *c);
/* Last: compare with what was counted. */
void check_refcounts_compare (struct check *c);

/* --- check-bitmaps.c: persistent dirty bitmaps ---------------------------- */
void check_bitmaps (struct check *c);

#endif
