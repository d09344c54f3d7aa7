/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides which clusters a compaction empties, and foretells how much it will move in
 * all of its passes (compact-plan.c).  Nothing here reads the image.  One thread.
 */
#ifndef DEDUP_COMPACT_PLAN_H
#define DEDUP_COMPACT_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

/* The clusters of which so many hundredths are live, and what is dead in them. */
struct dedup_fullness {
  uint64_t clusters, dead;
};

/* Returns below how many live hundredths a cluster is to be emptied, so that what can be
 * freed and stays has half of PERCENT dead; 0: none is, as PERCENT or less is dead.
 * BY_LIVE: all clusters that can be emptied, by their hundredths, 0 to 100. */
unsigned dedup_plan_below (const struct dedup_fullness *by_live,
                           uint64_t cluster_size, unsigned percent);

/* A cluster with compressed data. */
struct dedup_plan_cluster {
  uint64_t host_idx;
  uint32_t live;                /* bytes that some piece of data covers */
  uint32_t refs, pieces;        /* L2 entries that lead to it, at least one for each
                                 * piece that touches it */
  uint32_t head, tail;          /* bytes of the piece that comes from the cluster before,
                                 * and of the one that goes on in the next; 0: none */
  bool stays;                   /* it cannot be emptied */
  bool chosen;                  /* the plan's own */
  uint16_t lost;                /* ends of sectors in it that operations have lost */
};

/* A sample of clusters: all of them, or stretches of neighbours at equal distances, as
 * many as there is room for. */
struct dedup_plan {
  struct dedup_plan_cluster *v;         /* ascending */
  size_t nr, max;
  uint64_t seen, stride;        /* clusters that were offered; one stretch of so many is
                                 * taken */
};

/* MAX: rounded up to whole stretches.  -ENOMEM. */
int dedup_plan_init (struct dedup_plan *p, size_t max) MUST_CHECK;
void dedup_plan_destroy (struct dedup_plan *p);
/* Empties the sample. */
void dedup_plan_clear (struct dedup_plan *p);
/* Is asked for each cluster with compressed data, in the order of the file.  True: the
 * sample is to have it, so dedup_plan_add follows. */
bool dedup_plan_next (struct dedup_plan *p) MUST_CHECK;
void dedup_plan_add (struct dedup_plan *p, const struct dedup_plan_cluster *k);
/* Returns how many guest clusters PASSES passes will move.  Uses the sample up. */
uint64_t dedup_plan_moves (struct dedup_plan *p, uint64_t cluster_size,
                           unsigned percent, unsigned passes);

#endif
