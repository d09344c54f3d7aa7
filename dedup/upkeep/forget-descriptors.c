/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the index forget the entries of descriptors that are out of date: those that
 * touch a cluster which is not anchored.  Another program may have come to the same
 * descriptor with other data.
 *
 * One thread at a time, without locks; it makes room for its records.
 */
#include "upkeep-private.h"
#include "value.h"

#include <errno.h>

struct touched {
  uint64_t descriptor;
  bool out_of_date;             /* result */
};

/* A qcow2_step: looks at the clusters, which also brings their anchors to memory. */
static int
look_locked (struct qcow2_txn *txn, void *opaque)
{
  struct touched *t = opaque;
  uint64_t first, count, k, refcount;
  bool anchored;
  int r = 0;

  assert (lock_held (qcow2_lock (txn->img)));
  t->out_of_date = false;
  qcow2_entry_clusters (txn->img, t->descriptor, &first, &count);
  for (k = first; k < first + count && r == 0; k++) {
    r = qcow2_get_refcount_locked (txn, k, &refcount, &anchored);
    t->out_of_date |= r == 0 && !anchored;
  }
  return r == -EIO ? 0 : r;
}

/* Forgets an entry with a tombstone, for which room is made. */
static int
forget_now (struct dedup_upkeep *u, const struct dedup_entry *e)
{
  int r = dedup_enter (&u->s->gate);

  if (r < 0)
    return r;
  do {
    r = dedup_forget_entry (u, &e->hash, e->value);
    if (r == -EBUSY) {
      r = dedup_make_room (u);
      r = r == 0 ? -EAGAIN : r;
    }
  } while (r == -EAGAIN);
  dedup_leave (&u->s->gate);
  return r;
}

static int
look_at_those (struct dedup_upkeep *u, const struct dedup_walked *v, size_t nr,
               void (*keep) (void *opaque, const struct dedup_entry *e), void *opaque)
{
  struct touched t;
  size_t i;
  int r = 0;

  for (i = 0; i < nr && r == 0; i++) {
    t.descriptor = v[i].entry.value;
    r = qcow2_txn_run (u->b->img, look_locked, &t);
    if (r == 0 && t.out_of_date)
      r = forget_now (u, &v[i].entry);
    else if (r == 0)
      keep (opaque, &v[i].entry);
  }
  return r;
}

int
dedup_forget_descriptors (struct dedup_upkeep *u,
                          void (*keep) (void *opaque, const struct dedup_entry *e),
                          void *opaque)
{
  struct dedup_walked v[DEDUP_WALK_ENTRIES];
  struct dedup_index_walk *w;
  size_t nr;
  int r;

  r = dedup_index_walk_begin (u->s->index, UINT64_C (1) << 62,
                              UINT64_C (1) << 63, &w);
  if (r < 0)
    return r;
  while ((r = dedup_index_walk_next (w, v, &nr)) == 1)
    if ((r = look_at_those (u, v, nr, keep, opaque)) < 0)
      break;
  dedup_index_walk_end (w);
  return r;
}
