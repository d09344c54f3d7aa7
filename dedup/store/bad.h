/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the set of clusters of data that scrubs found bad, and the watch on
 * clusters that get new data while a scrub looks at them.  Part of store.h.
 *
 * A bad cluster gets no new links.  It leaves the set when it is healed, freed,
 * or gets other data.  The set is bounded: of more than DEDUP_MAX_BAD findings
 * the first ones are kept.
 *
 * Everything is protected by the image lock.
 */
#ifndef DEDUP_BAD_H
#define DEDUP_BAD_H

#include "config.h"

#define DEDUP_WATCH_CHANGED 1u

struct dedup_bad {
  size_t nr;
  struct dedup_bad_cluster v[DEDUP_MAX_BAD];     /* ascending */
  bool any_sure;                                 /* atomic: an entry could be
                                                  * healed */
  uint64_t healed;                               /* clusters, since open */
  uint64_t scrub_position;                       /* as in struct dedup_notes */
  bool indexing;                                 /* likewise */
  /* Of the scrub that runs: one number for each cluster from WATCH_FROM on, which
   * becomes DEDUP_WATCH_CHANGED when it gets new data. */
  uint64_t watch_from, watch_nr;
  uint32_t *watch;                               /* NULL: none runs; atomic */
};

/* Takes the set from N; it is SURE if no session has crashed since. */
void dedup_bad_load_locked (struct dedup_bad *b, const struct dedup_notes *n,
                            bool sure);
/* Puts the set into N. */
void dedup_bad_save_locked (const struct dedup_bad *b, struct dedup_notes *n);

/* Returns whether an entry could be healed.  Needs no lock. */
static inline bool
dedup_bad_any_sure (const struct dedup_bad *b)
{
  return __atomic_load_n (&b->any_sure, __ATOMIC_RELAXED);
}

/* Returns the entry of a cluster, or NULL. */
const struct dedup_bad_cluster *
dedup_bad_find_locked (const struct dedup_bad *b, uint64_t host_idx);
/* Returns an entry that can be healed and whose lost bytes certainly had this
 * hash, or NULL. */
const struct dedup_bad_cluster *
dedup_bad_by_hash_locked (const struct dedup_bad *b,
                          const struct dedup_hash *h);
/* Enters a cluster, in place of an older entry.  False: the set is full. */
bool dedup_bad_add_locked (struct dedup_bad *b,
                           const struct dedup_bad_cluster *c);
/* Removes the clusters of a range; returns how many it had. */
size_t dedup_bad_remove_locked (struct dedup_bad *b, uint64_t host_idx,
                                uint64_t count);
/* Notes that a cluster gets new data. */
void dedup_bad_new_data_locked (struct dedup_bad *b, uint64_t host_idx);

#endif
