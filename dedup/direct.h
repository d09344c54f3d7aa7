/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the dedup room: a disk that is written without a store (direct.c),
 * and which disks are (mode.c). */
#ifndef DEDUP_DIRECT_H
#define DEDUP_DIRECT_H

#include "disk.h"

/* --- mode.c -------------------------------------------------------------- */

/* Decide how D, whose image is open as P asks, is served: sets writable,
 * dedup and direct, and says what the user would not expect.  Refuses what
 * can't be written at all. */
int dedup_choose_mode (struct dedup_disk *d,
                       const struct dedup_open_params *p,
                       struct fault *f) MUST_CHECK;
/* Must the refcounts be made anew before D is written?  Then *MIN_CLUSTERS is
 * what the new table shall count. */
bool dedup_wants_rebuild (const struct dedup_disk *d, uint64_t *min_clusters);

/* --- bitmaps.c ------------------------------------------------------------ */

/* At close, before the last checkpoint or flush: what was noted in persistent
 * bitmaps goes to the file. */
int dedup_save_bitmaps (struct dedup_disk *d) MUST_CHECK;

/* --- direct.c: the requests and jobs of such a disk ---------------------- */

int dedup_direct_write (struct dedup_disk *d, const void *buf,
                        uint64_t guest_idx, size_t nr) MUST_CHECK;
int dedup_direct_unmap (struct dedup_disk *d, uint64_t guest_idx, uint64_t nr,
                        enum dedup_unmap how) MUST_CHECK;
int dedup_direct_flush (struct dedup_disk *d) MUST_CHECK;
/* Flush, and write what that freed. */
int dedup_direct_finish (struct dedup_disk *d) MUST_CHECK;
unsigned dedup_direct_due (struct dedup_disk *d, unsigned *urgent);
int dedup_direct_run (struct dedup_disk *d, enum dedup_job job) MUST_CHECK;

#endif
