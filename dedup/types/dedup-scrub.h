/* SPDX-License-Identifier: BSD-3-Clause */
/* Scrubs an open image: reads every stored cluster from the medium, and compares
 * it with the hash that the index holds.  A part of dedup.h, which includes it.
 *
 * A scrub goes through the file in windows of at most 64 GiB.  It reads all
 * clusters of a window, then the index once, and so finds the clusters whose
 * bytes are not those that were stored.  Each of these is read a second time
 * before it is called bad.  Clients may read and write meanwhile; a cluster that
 * gets new data meanwhile is not judged, and what they add to the end of the file is
 * not read.  Then it expands the compressed data that begins in the window.
 *
 * What is found bad is remembered in the image, 256 clusters at most, and gets no
 * new links.  When somebody writes the bytes that such a cluster has lost, they
 * are put back in their place, for every disk (docs/on-disk.md section 12).
 *
 * The position is remembered in the image, too, at the end of each window.
 */
#ifndef DEDUP_DEDUP_SCRUB_H
#define DEDUP_DEDUP_SCRUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"

struct dedup_pool;
struct dedup_scrub;

enum dedup_scrub_why {
  DEDUP_SCRUB_DIFFERENT,        /* the bytes are not those that were stored */
  DEDUP_SCRUB_UNREADABLE,       /* the medium returns an error */
};

/* One place of a disk that shows a bad cluster, or bad compressed data. */
struct dedup_scrub_finding {
  enum dedup_scrub_why why;
  uint64_t host_off;            /* in the file, bytes */
  uint64_t len;                 /* of the place; of plain data in the file, too */
  bool healable;                /* the hash of the lost bytes is known */
  const char *disk;             /* its name; "" for the active disk; NULL: no
                                 * entry of a disk or snapshot refers to it */
  unsigned root;                /* of the disk */
  uint64_t guest_off;           /* in the disk, bytes */
};

struct dedup_scrub_params {
  bool restart;                 /* from the start, not from where an earlier
                                 * scrub ended early */
  /* Is called for each place of each bad cluster, one call at a time, by a thread
   * that is in dedup_scrub_step, without locks.  May be NULL. */
  void (*found) (void *opaque, const struct dedup_scrub_finding *f);
  void *opaque;
  uint64_t window_clusters;     /* of a window; 0: as many as above (for tests) */
  size_t max_packed;            /* pieces of compressed data that are judged together;
                                 * 0: the default (for tests) */
};

struct dedup_scrub_figures {
  uint64_t bytes_done, bytes_total;   /* of the file, those before it included */
  uint64_t bytes_left;                /* to be read, estimated */
  uint64_t bytes_read;                /* by this scrub */
  /* Clusters: */
  uint64_t good;                /* have the bytes that the index knows */
  uint64_t unknown;             /* data that the index does not know; readable */
  uint64_t tables;              /* tables and store; readable */
  uint64_t changed;             /* got new data meanwhile */
  uint64_t doubtful;            /* differ from an entry that may be out of date */
  uint64_t different, unreadable;
  /* Pieces of compressed data, each of one guest cluster.  Those that are bad, doubtful
   * or changed count above.  (The clusters with compressed data count there, too: as
   * unknown, because they have no hash.) */
  uint64_t packed_good;         /* expand to the bytes that the index knows */
  uint64_t packed_unknown;      /* expand; the index does not know the bytes */
};

/* Begins a scrub; one at a time (-EBUSY).  Ended by dedup_scrub_end. */
int dedup_scrub_begin (struct dedup_pool *pool,
                       const struct dedup_scrub_params *p,
                       struct dedup_scrub **out) MUST_CHECK;
/* Does some milliseconds of work.  Any number of threads may call it at once,
 * which read and hash side by side.  Returns 1 while there is more to do, 0 at the
 * end, or -errno, after which the scrub must be ended.  -ENOMEM: another call may
 * succeed. */
int dedup_scrub_step (struct dedup_scrub *sc) MUST_CHECK;
/* The same, but reads no more than 32 KiB, or one cluster, as clients may wait for the
 * processor meanwhile. */
int dedup_scrub_small_step (struct dedup_scrub *sc) MUST_CHECK;
/* Fills in the figures so far.  Any thread. */
void dedup_scrub_figures (struct dedup_scrub *sc,
                          struct dedup_scrub_figures *f);
/* Forgets the position, so that no later scrub continues this one. */
void dedup_scrub_abandon (struct dedup_scrub *sc);
/* Frees the scrub; nobody is in dedup_scrub_step.  What was found stays
 * remembered, and the position of the last whole window. */
void dedup_scrub_end (struct dedup_scrub *sc);

/* What the image remembers. */
struct dedup_scrub_memory {
  uint64_t position;            /* bytes below which all was read; 0: nothing, or
                                 * UNFINISHED is false */
  bool unfinished;              /* a scrub runs, or has ended early */
  uint64_t bad;                 /* clusters known to be bad */
  uint64_t healed;              /* since open */
  bool complete;                /* a cluster that differs is surely bad */
};
void dedup_scrub_remembered (struct dedup_pool *pool,
                             struct dedup_scrub_memory *m);
/* Sets V to where in the file the clusters are that are known to be bad, in bytes,
 * ascending, and returns how many there are; the others are left out if there are
 * more than MAX. */
size_t dedup_scrub_bad_places (struct dedup_pool *pool, uint64_t *v,
                               size_t max);

#endif
