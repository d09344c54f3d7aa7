/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the merge: a step's plan (merge-plan.c), its inputs (merge-input.c), and
 * what carries it out (merge.c).  The other kind of step is a conversion
 * (convert.c). */
#ifndef DEDUP_INDEX_MERGE_H
#define DEDUP_INDEX_MERGE_H

#include "index-private.h"

struct merge_source {            /* a run that is merged */
  uint64_t age;
  size_t nr;                     /* its segments in the step's range, in order */
  struct dedup_segment **v;
};

struct merge_plan {
  uint32_t merge;                /* its number */
  bool bottom;                   /* nothing is older: tombstones are dropped */
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

  /* Results: */
  uint64_t nr_out;
  struct dedup_segment_meta *meta;
};

/* --- merge-plan.c: what to merge (editing) ---------------------------------- */

/* Makes the plan of the next step, with the area for it: 1; 0: there is nothing
 * to merge.  IDLE: as for DEDUP_INDEX_MERGE_IDLE. */
int merge_plan_new (struct dedup_index *x, bool idle, struct merge_plan **out)
  MUST_CHECK;
void merge_plan_free (struct merge_plan *p);
bool merge_plan_has_input (const struct merge_plan *p,
                           const struct dedup_segment_desc *s);
/* True if all inputs are still listed. */
bool merge_plan_holds (const struct dedup_index *x,
                       const struct merge_plan *p);
/* True if there is something to merge or to convert. */
bool merge_wanted (struct dedup_index *x, bool idle);
/* True if a conversion is to be done before the next merge. */
bool convert_is_next (struct dedup_index *x);

/* --- merge-reused.c: slots that the younger inputs name ------------------------ */

int merge_reused_make (struct dedup_index *x, const struct merge_plan *p)
  MUST_CHECK;
/* True if one of them names VALUE's slot: then an entry of the oldest input is
 * dead. */
bool merge_reused_has (const struct dedup_index *x,
                       const struct merge_plan *p, uint64_t value);
void merge_reused_free (struct dedup_index *x);

/* --- merge-input.c ------------------------------------------------------------ */

struct merge_inputs;
int merge_inputs_open (const struct merge_plan *p, struct merge_inputs **out)
  MUST_CHECK;
/* Returns the next hash in order, with the youngest entry's value: 1; 0 at the
 * end of the step's range.  *OLDEST: it is the oldest input's. */
int merge_inputs_next (struct merge_inputs *in, const struct dedup_hash **hash,
                       uint64_t *value, bool *oldest) MUST_CHECK;
void merge_inputs_close (struct merge_inputs *in);

/* --- convert.c: an incarnation becomes a run ------------------------------------ */

struct conversion;

/* True if there is an incarnation to convert, and a place for the run. */
bool conversion_possible (const struct dedup_index *x);
/* Plans the conversion of the oldest, with the area for it.  Editing. */
int conversion_new (struct dedup_index *x, struct conversion **out) MUST_CHECK;
void conversion_free (struct conversion *c);
/* Writes the run.  No locks. */
int conversion_run (struct dedup_index *x, struct conversion *c) MUST_CHECK;
/* Lists the run in place of the incarnation, or clears up; R: what running
 * returned.  Editing. */
int conversion_finish (struct dedup_index *x, struct conversion *c, int r)
  MUST_CHECK;

#endif
