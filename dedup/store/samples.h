/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps samples of what the image held in the past (samples.c; docs/on-disk.md
 * 3.1.1). */
#ifndef DEDUP_SAMPLES_H
#define DEDUP_SAMPLES_H

#include "store.h"

#define DEDUP_MAX_SAMPLES 510

/* Oldest first, by time; no two with the same time. */
struct dedup_sample_list {
  uint64_t seq;                 /* of the copy that was written last; 0: none */
  bool unsynced;                /* ... which may not be durable */
  uint32_t nr;
  struct dedup_sample v[DEDUP_MAX_SAMPLES];
};

/* Adds SAMPLE at the end.  False if it is not younger than the last one.  A full list
 * drops the sample that is missed least: one whose neighbours are close together,
 * compared with its age, so that distances grow with age.  The first one stays. */
bool dedup_sample_list_add (struct dedup_sample_list *l,
                            const struct dedup_sample *sample);

/* Reads the list; an empty one if there is none that is whole.  -EIO. */
int dedup_sample_list_read (struct dedup_store *s,
                            struct dedup_sample_list *l) MUST_CHECK;
/* Writes the list over the older of its two copies, unless the configuration needs
 * the place (-EBUSY).  Maintenance.  On error the other copy is whole. */
int dedup_sample_list_write (struct dedup_store *s,
                             struct dedup_sample_list *l) MUST_CHECK;

#endif
