/* SPDX-License-Identifier: BSD-3-Clause */
/* Compares stored clusters with the index while clients read and write; and
 * puts lost bytes back.  dedup-scrub.h says what a scrub does.
 *
 * This room stands on upkeep/.  It appends no records and changes no table: what
 * it finds goes to the set of bad clusters (store/bad.h), which the writers ask.
 */
#ifndef DEDUP_SCRUB_H
#define DEDUP_SCRUB_H

#include "dedup-scrub.h"
#include "upkeep.h"

/* As dedup_scrub_begin of dedup-scrub.h. */
int dedup_scrub_new (const struct dedup_base *b, struct dedup_store *s,
                     struct dedup_upkeep *u,
                     const struct dedup_scrub_params *p,
                     struct dedup_scrub **out) MUST_CHECK;

#endif
