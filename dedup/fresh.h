/* SPDX-License-Identifier: BSD-3-Clause */
/* Marks what clients have written, for data that is compressed later (fresh.c).
 *
 * A region of a root is DEDUP_REGION guest clusters.  Any thread, without locks.
 */
#ifndef DEDUP_FRESH_H
#define DEDUP_FRESH_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"

#define DEDUP_REGION 256u       /* guest clusters that share a mark */

struct dedup_fresh;
struct dedup_marks;             /* those that were taken */

/* Makes marks, all of which are set.  NULL: out of memory.  Freed by free(), as are
 * struct dedup_marks. */
struct dedup_fresh *dedup_fresh_new (void) MUST_CHECK;
/* Marks the regions of NR guest clusters that were written.  FRESH may be NULL, also
 * below. */
void dedup_fresh_note (struct dedup_fresh *fresh, unsigned root, uint64_t guest_idx,
                       uint64_t nr);
/* Marks those of the first NR guest clusters of ROOT that are marked in SOURCE, of which it
 * has become a copy. */
void dedup_fresh_copy (struct dedup_fresh *fresh, unsigned source, unsigned root,
                       uint64_t nr);
/* Returns whether something was marked since marks were taken. */
bool dedup_fresh_is_due (struct dedup_fresh *fresh);
/* Takes all marks, so that none is left.  NULL: out of memory. */
struct dedup_marks *dedup_fresh_take (struct dedup_fresh *fresh) MUST_CHECK;
/* Sets the marks again that were taken, which makes nothing due. */
void dedup_fresh_put_back (struct dedup_fresh *fresh, const struct dedup_marks *m);
/* Returns whether a region has one of the marks that were taken. */
bool dedup_marks_have (const struct dedup_marks *m, unsigned root, uint64_t region);

/* Notes that a client reads; returns whether one has since it was asked before. */
void dedup_fresh_note_read (struct dedup_fresh *fresh);
bool dedup_fresh_was_read (struct dedup_fresh *fresh);

#endif
