/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the merge: a step's plan (merge-plan.c), its inputs (merge-input.c),
 * and who carries it out (merge.c).  Another kind of step is a conversion. */
#ifndef DEDUP_MERGE_H
#define DEDUP_MERGE_H

#include "disk.h"

#include <time.h>

struct merge_source {            /* a run that is merged */
  uint64_t age;
  size_t nr;                     /* its segments in the step's range, in order */
  struct dedup_segment **v;
};

struct merge_plan {
  uint32_t merge;                /* its number */
  uint64_t store_id;
  bool bottom;                   /* nothing is older: tombstones go */
  bool look_for_dead;
  bool unhurried;
  uint64_t nr_bound;             /* entries at the most */
  struct dedup_segment_desc out; /* lo and hi: the step's range */
  size_t nr_sources;
  struct merge_source *sources;  /* youngest first */
  size_t nr_younger;             /* segments of all of them but the oldest */
  struct dedup_segment **younger;
  size_t nr_ids;
  uint64_t *ids;                 /* of all segments of all inputs */

  /* What came of it: */
  uint64_t nr_out;
  struct dedup_segment_meta *meta;
};

/* What to do next, with the area for it: 1; 0: nothing.  IDLE: as for
 * dedup_merge_wanted.  Maintenance. */
int merge_plan_new (struct dedup_disk *d, bool idle, struct merge_plan **out)
  MUST_CHECK;
void merge_plan_free (struct merge_plan *p);
bool merge_plan_has_input (const struct merge_plan *p,
                           const struct dedup_segment_desc *s);
/* Are all inputs still listed?  Maintenance. */
bool merge_plan_holds (const struct dedup_disk *d,
                       const struct merge_plan *p);

/* merge-claims.c: what the younger inputs say of clusters. */
int merge_claims_make (struct dedup_disk *d, const struct merge_plan *p)
  MUST_CHECK;
/* Does one of them name it?  Then an entry of the oldest is dead. */
bool merge_claims_has (const struct dedup_disk *d, const struct merge_plan *p,
                       uint64_t host_idx);
void merge_claims_free (struct dedup_disk *d);

struct merge_inputs;
int merge_inputs_open (const struct merge_plan *p, struct merge_inputs **out)
  MUST_CHECK;
/* The next hash in order, with the youngest entry's value: 1; 0 at the end of
 * the step's range.  *OLDEST: it is the oldest input's. */
int merge_inputs_next (struct merge_inputs *in, const struct dedup_hash **hash,
                       uint64_t *host_idx, bool *oldest) MUST_CHECK;
void merge_inputs_close (struct merge_inputs *in);

/* Not in a hurry: rest for as long as the last entries took.  Called for each
 * one; starts as zeroes but for RESTING. */
struct merge_pace {
  bool resting;
  size_t nr;
  struct timespec last;
};
void merge_rest (struct merge_pace *p);

/* --- conversion.c: an incarnation becomes a run --------------------------- */

struct conversion;

/* Is there one, and a place for the run?  Is it next, before a merge?
 * (merge-plan.c)  Maintenance, as are new and finish. */
bool conversion_possible (const struct dedup_disk *d);
bool conversion_next (struct dedup_disk *d);
/* Of the oldest, with the area for it. */
int conversion_new (struct dedup_disk *d, struct conversion **out) MUST_CHECK;
void conversion_free (struct conversion *c);
/* Write the run.  No locks. */
int conversion_run (struct dedup_disk *d, struct conversion *c) MUST_CHECK;
/* Put it in place of the incarnation, or clear up; R: what running returned. */
int conversion_finish (struct dedup_disk *d, struct conversion *c, int r)
  MUST_CHECK;

#endif
