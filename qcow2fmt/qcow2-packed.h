/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the compressed data that an image uses: each descriptor (a compressed L2
 * entry) that some root has, once, in the order of the file.
 *
 * Nothing in the image says which bytes of a cluster are in use, so the L2 tables of
 * all roots are read.  The file is taken window by window, so that no more than a
 * given number of descriptors is in memory; the tables are read once for each
 * window.  A window ends before a cluster that does not fit any more, and grows and
 * shrinks with what is found.  A table that several roots have is read once a window.
 *
 * The image's lock is held for a piece of a table (4 KiB) at a time.  While nobody
 * changes the image, every descriptor is found.  If it is changed meanwhile, one that
 * was linked or dropped during a window may be found or not, and bytes that were no
 * table any more may have been read as one: whoever needs to know whether a
 * descriptor is in use asks the tables again.
 *
 * Nothing is written.  Any thread, one at a time for each walk.
 */
#ifndef QCOW2_PACKED_H
#define QCOW2_PACKED_H

#include "qcow2.h"

struct qcow2_packed;

/* The memory of a walk: 8 bytes for each descriptor of a window. */
#define QCOW2_PACKED_DEFAULT (UINT64_C (1) << 20)

/* Begins a walk that has at most MAX descriptors in memory, at least 4; 0: the default.
 * Roots that are made later are left out.  TOLERANT: so are tables that cannot be read.
 * -ENOMEM; -errno of the host. */
int qcow2_packed_begin (struct qcow2_image *img, size_t max, bool tolerant,
                        struct qcow2_packed **out) MUST_CHECK;
/* Has the walk set QCOW2_PACKED_STAYS in each descriptor that lies in a table which is not
 * changed in place (qcow2_prepare_in_place_locked), also when records name places, or is
 * of a root that is being deleted, perhaps among others.  Before the first step. */
void qcow2_packed_tell_stays (struct qcow2_packed *p);
#define QCOW2_PACKED_STAYS (UINT64_C (1) << 63)
/* Reads some tables: those that one piece of an L1 table names, or 4 MiB.  1: the window
 * needs more; 0: it is complete.  -ENOMEM, -EIO: the next call begins the window
 * again. */
int qcow2_packed_step (struct qcow2_packed *p) MUST_CHECK;

/* Guest clusters of a table that are counted together. */
#define QCOW2_PACKED_GROUP 64u

struct qcow2_packed_window {
  uint64_t from, to;           /* clusters of the file */
  const uint64_t *v;           /* descriptors whose first byte lies there, ascending by
                                * place and then by length; the walk's */
  size_t nr;
  bool left_out;               /* there were more than MAX in one cluster */
  uint64_t groups;             /* of all tables, each once: groups of QCOW2_PACKED_GROUP
                                * guest clusters that have compressed data, in this window
                                * or another; */
  uint64_t touches;            /* ... and the clusters that their compressed entries lead
                                * to, one or more for each entry */
};
/* Describes the window that is complete. */
void qcow2_packed_get (const struct qcow2_packed *p,
                       struct qcow2_packed_window *w);
/* Returns the number of a descriptor in the window that is complete, or SIZE_MAX. */
size_t qcow2_packed_find (const struct qcow2_packed *p, uint64_t descriptor);
/* Returns whether a compressed entry was met so far, in the window or not. */
bool qcow2_packed_any (const struct qcow2_packed *p);
/* Begins the window with the next descriptor behind it.  False: there is none. */
bool qcow2_packed_next (struct qcow2_packed *p) MUST_CHECK;
/* Begins a window at cluster FROM; nothing at TO or behind it will be found from now
 * on. */
void qcow2_packed_seek (struct qcow2_packed *p, uint64_t from, uint64_t to);
void qcow2_packed_end (struct qcow2_packed *p);

struct qcow2_packed_open {
  uint64_t host_idx, live_bytes;
  bool stays;
};

/* Sums up descriptors that are passed to it in ascending order, window by window.
 * Begins as all 0. */
struct qcow2_packed_sum {
  uint64_t descriptors;        /* different ones */
  uint64_t clusters;           /* that they touch */
  uint64_t live_bytes;         /* of these clusters, that some descriptor covers.  A
                                * descriptor counts sectors of 512 bytes, so what
                                * follows its data in its last sector is live */
  uint64_t kept_dead_bytes;    /* of the other bytes, those in clusters with a descriptor
                                * that has QCOW2_PACKED_STAYS; after the end */
  uint64_t end_off, end_cluster;       /* where the last one ends */
  struct qcow2_packed_open open[3];    /* clusters that later ones may touch */
  unsigned nr_open;
};
void qcow2_packed_add (struct qcow2_packed_sum *s, const struct qcow2_image *img,
                       const uint64_t *v, size_t nr);
/* Ends the sum behind the last one. */
void qcow2_packed_add_end (struct qcow2_packed_sum *s, const struct qcow2_image *img);

#endif
