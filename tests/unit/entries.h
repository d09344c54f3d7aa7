/* SPDX-License-Identifier: BSD-3-Clause */
/* Looks at L2 entries of the active disk and at refcounts, for assertions.  Include it
 * behind cmocka.h.
 */
#ifndef DEDUP_ENTRIES_H
#define DEDUP_ENTRIES_H

#include "image.h"
#include "pool.h"

struct entry_look {
  uint64_t idx, entry, refcount;
  bool anchored;
};

static inline int
look_at_entry_locked (struct qcow2_txn *txn, void *opaque)
{
  struct entry_look *l = opaque;

  return qcow2_get_entry_locked (txn, 0, l->idx, &l->entry);
}

static inline int
look_at_refcount_locked (struct qcow2_txn *txn, void *opaque)
{
  struct entry_look *l = opaque;

  return qcow2_get_refcount_locked (txn, l->idx, &l->refcount, &l->anchored);
}

/* Returns the L2 entry of a guest cluster. */
static inline uint64_t
get_entry (struct dedup_pool *pool, uint64_t guest_idx)
{
  struct entry_look l = { .idx = guest_idx };

  assert_int_equal (qcow2_txn_run (pool->base.img, look_at_entry_locked, &l), 0);
  return l.entry;
}

/* Returns the refcount of a host cluster; *ANCHORED: whether the anchor has it.
 * ANCHORED may be NULL. */
static inline uint64_t
get_refcount (struct dedup_pool *pool, uint64_t host_idx, bool *anchored)
{
  struct entry_look l = { .idx = host_idx };

  assert_int_equal (qcow2_txn_run (pool->base.img, look_at_refcount_locked, &l), 0);
  if (anchored)
    *anchored = l.anchored;
  return l.refcount;
}

#endif
