/* SPDX-License-Identifier: BSD-3-Clause */
/* Remembers what was counted of lent L2 tables for the progress of the work on disks
 * (progress.c): a hash table in memory.  One thread at a time. */
#ifndef DEDUP_LENT_H
#define DEDUP_LENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dedup_lent;              /* NULL is an empty one */

struct dedup_lent_table {
  uint64_t host_idx;            /* its cluster; 0: this place is empty */
  uint32_t drops;               /* paths of doomed roots to it that were counted, and
                                 * are not dropped yet */
  bool pays;                    /* that its debt is paid was counted, and is to come */
};

/* Makes room for NR more tables in *L, unless it has as many as it may have or there is
 * no memory. */
void dedup_lent_reserve (struct dedup_lent **l, size_t nr);
void dedup_lent_free (struct dedup_lent *l);
/* Returns what is known of the table in a cluster, NULL if that is nothing; valid until
 * the next reserve. */
struct dedup_lent_table *dedup_lent_find (struct dedup_lent *l, uint64_t host_idx);
/* The same, and adds the table; NULL if there is no room. */
struct dedup_lent_table *dedup_lent_get (struct dedup_lent *l, uint64_t host_idx);

#endif
