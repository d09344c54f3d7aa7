/* SPDX-License-Identifier: BSD-3-Clause */
/* Moves what disks and snapshots have in a list of clusters with compressed data to other
 * clusters, so that those of the list become free (compact-empty.c).
 *
 * One thread at a time for each struct; figures on any.
 */
#ifndef DEDUP_COMPACT_EMPTY_H
#define DEDUP_COMPACT_EMPTY_H

#include "mover.h"

struct dedup_emptying {
  struct dedup_pool *pool;      /* constant */
  struct dedup_compact_figures *f;      /* its moved_bytes, handled_bytes, left and doubtful
                                         * grow, atomically */
  const uint64_t *v;            /* the list, ascending; the caller's */
  size_t nr;
  unsigned max_move;            /* guest clusters that one operation moves in this step */
  struct dedup_mover m;         /* where it is */
  uint8_t *buf;                 /* owned; a cluster */
};

/* -ENOMEM.  E is for dedup_emptying_destroy even then. */
int dedup_emptying_init (struct dedup_emptying *e, struct dedup_pool *pool,
                         const struct dedup_compact_params *p,
                         struct dedup_compact_figures *f) MUST_CHECK;
/* Takes the list back from the writer, if it has one. */
void dedup_emptying_destroy (struct dedup_emptying *e);

/* Begins with a list of NR > 0 clusters, which stays as it is until the end.  Until then no
 * data that lies there is linked any more. */
void dedup_emptying_begin (struct dedup_emptying *e, const uint64_t *v, size_t nr);
/* Does some milliseconds of work; SMALL: less, unless that would lose much.  1: there is
 * more; 0: the end, and what was moved is to be flushed; -errno: the step may be tried
 * again. */
int dedup_emptying_step (struct dedup_emptying *e, bool small) MUST_CHECK;

#endif
