/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of a merge offer each other: a step's plan
 * (merge-plan.c) and its inputs (merge-input.c), for merge.c, which carries it
 * out.  The other kind of step is a conversion (convert.c). */
#ifndef DEDUP_INDEX_MERGE_H
#define DEDUP_INDEX_MERGE_H

#include "index-private.h"

struct merge_source {            /* a run that is merged */
  uint64_t age;
  size_t nr;                     /* segments in the step's range, in order */
  struct dedup_segment **v;
};

struct merge_plan {
  uint32_t merge;                /* its number */
  bool bottom;                   /* nothing is older: tombstones are dropped */
  bool look_for_dead;            /* dead entries may be dropped */
  bool may_rest;                 /* the step may rest (pace.h) */
  uint64_t nr_bound;             /* entries at most */
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

/* --- merge-plan.c: what to merge (editing) ------------------------------- */

/* Plans the next step, and allocates the area for it.  Returns 1, or 0 if there
 * is nothing to merge.  IDLE: as for DEDUP_INDEX_MERGE_IDLE. */
int merge_plan_new (struct dedup_index *x, bool idle, struct merge_plan **out)
  MUST_CHECK;
/* Frees P, and gives its references back.  NULL is fine. */
void merge_plan_free (struct merge_plan *p);
/* Returns true if S is a segment of an input. */
bool merge_plan_has_input (const struct merge_plan *p,
                           const struct dedup_segment_desc *s);
/* Returns true if all inputs are still listed. */
bool merge_plan_holds (const struct dedup_index *x,
                       const struct merge_plan *p);
/* Returns true if there is something to merge or to convert. */
bool merge_wanted (struct dedup_index *x, bool idle);
/* Returns true if a conversion comes before the next merge. */
bool convert_is_next (struct dedup_index *x);

/* --- merge-reused.c: slots that the younger inputs name ------------------ */

/* Reads the younger inputs, if P is a merge into the oldest run and dead
 * entries may be dropped, and notes the slots that they name. */
int merge_reused_make (struct dedup_index *x, const struct merge_plan *p)
  MUST_CHECK;
/* Returns true if a younger input names VALUE's slot: then an entry of the
 * oldest input with this value is dead. */
bool merge_reused_has (const struct dedup_index *x,
                       const struct merge_plan *p, uint64_t value);
void merge_reused_free (struct dedup_index *x);

/* --- merge-input.c ------------------------------------------------------- */

struct merge_inputs;
/* Opens P's inputs.  *OUT must be closed even if this fails; it may be NULL. */
int merge_inputs_open (const struct merge_plan *p, struct merge_inputs **out)
  MUST_CHECK;
/* Returns 1 and the next hash in order, with its youngest entry's value; or 0
 * at the end of the step's range.  *OLDEST: that entry is the oldest
 * input's. */
int merge_inputs_next (struct merge_inputs *in, const struct dedup_hash **hash,
                       uint64_t *value, bool *oldest) MUST_CHECK;
void merge_inputs_close (struct merge_inputs *in);

/* --- convert.c: an incarnation becomes a run ----------------------------- */

struct conversion;

/* Returns true if there is an incarnation to convert, and the list has a place
 * for the run. */
bool conversion_possible (const struct dedup_index *x);
/* Plans the conversion of the oldest incarnation, and allocates the area for
 * the run.  Editing. */
int conversion_new (struct dedup_index *x, struct conversion **out) MUST_CHECK;
void conversion_free (struct conversion *c);
/* Writes the run.  No locks. */
int conversion_run (struct dedup_index *x, struct conversion *c) MUST_CHECK;
/* Lists the run in place of the incarnation, or clears up; R is what
 * conversion_run returned.  Editing. */
int conversion_finish (struct dedup_index *x, struct conversion *c, int r)
  MUST_CHECK;

#endif
