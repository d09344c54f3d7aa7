/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the hints in a set-associative table of 8-byte entries, one set a cache
 * line.
 *
 * An entry is one word, read and written whole: the checksum's top 24 bits and
 * the host index.  The checksum's low bits choose the set; in a full set other
 * bits of it choose the entry that is replaced.  If two threads write to a set
 * at once, one of their entries may be lost; nothing else can happen.
 *
 * Any thread, without locks: entries are atomic.
 */
#include "hints.h"

#include <errno.h>
#include <stdlib.h>

#include "dedup-limits.h"

#define LINE ((uintptr_t) 64)

#define WAYS 8                         /* LINE bytes */

#define HOST_BITS 40                   /* 4 PiB of 4 KiB clusters */

#define TAG_MASK (~UINT64_C (0) << HOST_BITS)

struct dedup_hints {
  uint64_t set_mask;
  uint64_t *entries;                   /* atomic; 0: empty */
  void *memory;                        /* what they are in */
};

static size_t
number_for (uint64_t nr_clusters)
{
  size_t nr = 8 * WAYS;

  while (nr < nr_clusters && nr < DEDUP_MAX_HINTS)
    nr *= 2;
  return nr;
}

int
dedup_hints_new (uint64_t nr_clusters, struct dedup_hints **out)
{
  struct dedup_hints *h = calloc (1, sizeof *h);
  const size_t nr = number_for (nr_clusters);

  if (h == NULL)
    return -ENOMEM;
  h->set_mask = nr / WAYS - 1;
  /* Not aligned_alloc: pages that are never used are never touched. */
  h->memory = calloc (nr + WAYS, sizeof *h->entries);
  if (h->memory == NULL) {
    free (h);
    return -ENOMEM;
  }
  h->entries = (uint64_t *) (((uintptr_t) h->memory + LINE - 1) & ~(LINE - 1));
  *out = h;
  return 0;
}

void
dedup_hints_free (struct dedup_hints *h)
{
  if (h)
    free (h->memory);
  free (h);
}

static uint64_t *
set_of (const struct dedup_hints *h, uint64_t checksum)
{
  return &h->entries[(checksum & h->set_mask) * WAYS];
}

uint64_t
dedup_hints_find (const struct dedup_hints *h, uint64_t checksum)
{
  const uint64_t *set = set_of (h, checksum);
  uint64_t e;
  unsigned i;

  for (i = 0; i < WAYS; i++) {
    e = __atomic_load_n (&set[i], __ATOMIC_RELAXED);
    if (e != 0 && ((e ^ checksum) & TAG_MASK) == 0)
      return e & ~TAG_MASK;
  }
  return 0;
}

/* Returns the position in SET for a new entry: that of an entry with the same
 * tag, else of an empty one, else of one to be replaced. */
static unsigned
place_for (const uint64_t *set, uint64_t checksum)
{
  unsigned i, free = WAYS;
  uint64_t e;

  for (i = 0; i < WAYS; i++) {
    e = __atomic_load_n (&set[i], __ATOMIC_RELAXED);
    if (e != 0 && ((e ^ checksum) & TAG_MASK) == 0)
      return i;
    if (e == 0 && free == WAYS)
      free = i;
  }
  return free < WAYS ? free : (checksum >> 32) % WAYS;
}

void
dedup_hints_put (struct dedup_hints *h, uint64_t checksum, uint64_t host_idx)
{
  uint64_t *set = set_of (h, checksum);
  uint64_t entry = (checksum & TAG_MASK) | host_idx;

  if (host_idx & TAG_MASK)
    return;
  __atomic_store_n (&set[place_for (set, checksum)], entry,
                    __ATOMIC_RELAXED);
}

void
dedup_hints_wipe (struct dedup_hints *h)
{
  const size_t nr = (h->set_mask + 1) * WAYS;
  size_t i;

  for (i = 0; i < nr; i++)       /* pages never written stay untouched */
    if (__atomic_load_n (&h->entries[i], __ATOMIC_RELAXED) != 0)
      __atomic_store_n (&h->entries[i], 0, __ATOMIC_RELAXED);
}

size_t
dedup_hints_size (uint64_t nr_clusters)
{
  return sizeof (struct dedup_hints) +
    number_for (nr_clusters) * sizeof (uint64_t);
}

size_t
dedup_hints_memory (const struct dedup_hints *h)
{
  return sizeof *h + (h->set_mask + 1) * WAYS * sizeof *h->entries;
}
