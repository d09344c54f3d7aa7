/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides when a compaction starts by itself (compact=auto): if more than a tenth of what
 * is stored is dead, unless the last one could not change that.
 *
 * If the last one moved data and left as little as it should, it starts whenever the tenth
 * is exceeded again.  After any other end, what is dead then is taken for what cannot be
 * moved, and it starts again when a twentieth of what is stored has died since.
 *
 * One thread counts and asks; the end of a job may come on another one.
 */
#ifndef DEDUP_COMPACT_DUE_H
#define DEDUP_COMPACT_DUE_H

#include <stdbool.h>
#include <stdint.h>

struct srv_compact_due {
  bool ran;                     /* since the last count */
  uint64_t floor_bytes;         /* dead, and taken for what cannot be moved */
  bool enough;                  /* atomic: how the last job has ended */
};

/* Returns whether a compaction should start, while none runs.  If one does start, the
 * caller sets RAN. */
bool srv_compact_due (struct srv_compact_due *d, uint64_t dead_bytes,
                      uint64_t stored_bytes);
/* Is told that a compaction has come to its end, that it has moved so many bytes, and what
 * is left dead of how many bytes of clusters with compressed data. */
void srv_compact_due_ended (struct srv_compact_due *d, uint64_t moved_bytes,
                            uint64_t dead_bytes, uint64_t packed_bytes);

#endif
