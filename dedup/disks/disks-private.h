/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of this room offer each other. */
#ifndef DEDUP_DISKS_PRIVATE_H
#define DEDUP_DISKS_PRIVATE_H

#include "disks.h"
#include "lent.h"

/* The work that is left for a root. */
enum root_work {
  ROOT_DONE,                   /* none, or there is no such root */
  ROOT_OWES,                   /* its tables may be lent */
  ROOT_DOOMED,                 /* it was deleted: its paths are to be dropped */
};

/* --- set.c ------------------------------------------------------------- */

/* Returns the slot of ROOT, NULL if it is not one that users know: dead, the
 * anchor, or doomed. */
const struct qcow2_snapshot *dedup_root_locked (const struct dedup_disks *d,
                                                unsigned root);

/* --- work.c ------------------------------------------------------------ */

/* Sets the work that is left for ROOT; its tables are looked at from the start. */
void dedup_note_work_locked (struct dedup_disks *d, unsigned root,
                             enum root_work work);

/* --- pace.c ------------------------------------------------------------ */

/* Begins a step: what clients did before it does not slow it down. */
void dedup_pace_begin (struct dedup_disks *d);
/* Rests, if clients use the image, behind work that began at SINCE_NS.  Returns the
 * time. */
uint64_t dedup_pace (struct dedup_disks *d, uint64_t since_ns);

/* --- progress.c -------------------------------------------------------- */

/* -ENOMEM. */
int dedup_progress_init (struct dedup_disks *d) MUST_CHECK;
void dedup_progress_destroy (struct dedup_disks *d);
/* Has the work on ROOT counted again (IS_WORK), or not.  FIRST: there was no work at
 * all before. */
void dedup_progress_note_locked (struct dedup_disks *d, unsigned root,
                                 bool is_work, bool first);
/* Counts work that is not counted yet, for some milliseconds at the most.  Returns
 * whether there is more of it. */
bool dedup_progress_count (struct dedup_disks *d);
/* Notes that the table in HOST_IDX, of DEBT, was paid for or (DROPPED) a path to it
 * dropped. */
void dedup_progress_add_locked (struct dedup_disks *d, uint64_t host_idx, uint64_t debt,
                                bool dropped);
/* Frees what was remembered to count, as all work is done. */
void dedup_progress_forget (struct dedup_disks *d);

/* --- switch.c ---------------------------------------------------------- */

/* Makes the NR edits as one change, which the next flush makes durable.  The
 * caller holds D->changing.  *ADDED (may be NULL) becomes the root of the first
 * edit that makes one.  NOTE_LOCKED is called in the same hold of the lock as the
 * change, to note the work that it leaves.  Errors are those of dedup-disks.h. */
int dedup_switch (struct dedup_disks *d, const struct qcow2_root_edit *edits,
                  size_t nr, unsigned *added,
                  void (*note_locked) (struct dedup_disks *d, unsigned added,
                                       const struct qcow2_root_edit *edits),
                  struct fault *f) MUST_CHECK;

#endif
