/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides which clusters a compaction empties, so that it never writes more than it
 * frees, and foretells how much it will move in all of its passes (compact-plan.c).
 * Nothing here reads the image.  One thread.
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

/* No cluster is emptied to gain less than six hundredths of it. */
#define DEDUP_PLAN_MOST 94u

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

/* What is decided on clusters that were open. */
enum dedup_choice { DEDUP_CHOICE_OPEN, DEDUP_CHOICE_STAY, DEDUP_CHOICE_EMPTY };

/* Decides on clusters one after the other.  Those behind the last decision, which are
 * neighbours, are open: all of them are emptied, or none.  Begins as dedup_chooser_begin
 * sets it. */
struct dedup_chooser {
  int64_t better;               /* the bytes by which it is better that the last cluster
                                 * is emptied */
  uint64_t next;                /* the cluster behind the last one */
  uint32_t tail;                /* of the last one */
};

void dedup_chooser_begin (struct dedup_chooser *c);
/* Takes the next cluster, in the order of the file, of which less than BELOW hundredths
 * should be live if it is emptied for itself.  MAY: it can be emptied; then it is open
 * afterwards.  Returns what becomes of the clusters that were open before. */
enum dedup_choice dedup_choose (struct dedup_chooser *c,
                                const struct dedup_plan_cluster *k,
                                uint64_t cluster_size, unsigned below, bool may);
/* Decides on the clusters that are open as if the next one stayed, and nothing crossed
 * into it.  No cluster is open then. */
enum dedup_choice dedup_choose_end (struct dedup_chooser *c);

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
/* Returns the least number of hundredths from BELOW on, at most DEDUP_PLAN_MOST, such that
 * by the sample half of PERCENT is dead, or less, when what dedup_choose says
 * with it was emptied; DEDUP_PLAN_MOST if none is enough.  FRESH: clusters beside the sample that
 * are full. */
unsigned dedup_plan_enough (struct dedup_plan *p, uint64_t fresh, uint64_t cluster_size,
                            unsigned percent, unsigned below);
/* Returns how many guest clusters PASSES passes will move.  Uses the sample up. */
uint64_t dedup_plan_moves (struct dedup_plan *p, uint64_t cluster_size,
                           unsigned percent, unsigned passes);

#endif
