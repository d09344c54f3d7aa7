/* SPDX-License-Identifier: BSD-3-Clause */
/* A set of descriptors (docs/on-disk.md 14) that the index leads to, so that indexing
 * need not expand their data to find that out (known.c). */
#ifndef DEDUP_KNOWN_H
#define DEDUP_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Descriptors at most: 16 MiB of memory. */
#define DEDUP_KNOWN_MAX ((size_t) 1 << 21)

struct dedup_known {            /* begins as all 0 */
  uint64_t *v;                  /* ascending once dedup_known_sort was called */
  size_t nr, max;
};

/* Adds a descriptor, before dedup_known_sort.  Without memory, or when the set is full,
 * it is left out. */
void dedup_known_add (struct dedup_known *k, uint64_t descriptor);
void dedup_known_sort (struct dedup_known *k);
/* Returns whether a descriptor was added, after dedup_known_sort. */
bool dedup_known_has (const struct dedup_known *k, uint64_t descriptor);
/* Frees the memory; K is empty then. */
void dedup_known_free (struct dedup_known *k);

#endif
