/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the set of clusters that scrubs found bad: a sorted array.
 *
 * It is asked for each candidate of a write and changed whenever a cluster gets
 * data, so that everything but a search costs one comparison while the set is
 * empty.
 *
 * All under the image lock.  dedup_config_save makes the set durable.
 */
#include "bad.h"
#include "mutation.h"

static bool
is_healable (const struct dedup_bad_cluster *c)
{
  return (c->flags & DEDUP_BAD_HASH) && (c->flags & DEDUP_BAD_SURE) &&
    !(c->flags & DEDUP_BAD_TRIED);
}

static void
note_sure (struct dedup_bad *b)
{
  bool any = false;
  size_t i;

  for (i = 0; i < b->nr && !any; i++)
    any = is_healable (&b->v[i]);
  __atomic_store_n (&b->any_sure, any, __ATOMIC_RELAXED);
}

void
dedup_bad_load_locked (struct dedup_bad *b, const struct dedup_notes *n,
                       bool sure)
{
  size_t i;

  b->nr = 0;
  b->scrub_position = n->scrub_position;
  b->indexing = n->indexing;
  for (i = 0; i < n->nr_bad; i++) {
    struct dedup_bad_cluster c = n->bad[i];

    if (!sure)
      c.flags &= ~DEDUP_BAD_SURE;
    (void) dedup_bad_add_locked (b, &c);
  }
}

void
dedup_bad_save_locked (const struct dedup_bad *b, struct dedup_notes *n)
{
  n->scrub_position = b->scrub_position;
  n->indexing = b->indexing;
  n->nr_bad = (uint32_t) b->nr;
  memcpy (n->bad, b->v, b->nr * sizeof *b->v);
}

/* Returns the position of the first entry that is not below HOST_IDX. */
static size_t
position (const struct dedup_bad *b, uint64_t host_idx)
{
  size_t lo = 0, hi = b->nr, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (b->v[mid].host_idx < host_idx)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

const struct dedup_bad_cluster *
dedup_bad_find_locked (const struct dedup_bad *b, uint64_t host_idx)
{
  size_t i;

  if (b->nr == 0)
    return NULL;
  i = position (b, host_idx);
  return i < b->nr && b->v[i].host_idx == host_idx ? &b->v[i] : NULL;
}

const struct dedup_bad_cluster *
dedup_bad_by_hash_locked (const struct dedup_bad *b,
                          const struct dedup_hash *h)
{
  size_t i;

  for (i = 0; i < b->nr; i++)
    if (is_healable (&b->v[i]) &&
        dedup_hash_equal (&b->v[i].hash, h))
      return &b->v[i];
  return NULL;
}

bool
dedup_bad_add_locked (struct dedup_bad *b, const struct dedup_bad_cluster *c)
{
  const size_t i = position (b, c->host_idx);

  if (i < b->nr && b->v[i].host_idx == c->host_idx) {
    b->v[i] = *c;
    note_sure (b);
    return true;
  }
  if (b->nr == DEDUP_MAX_BAD)
    return false;
  memmove (&b->v[i + 1], &b->v[i], (b->nr - i) * sizeof *b->v);
  b->v[i] = *c;
  b->nr++;
  note_sure (b);
  return true;
}

size_t
dedup_bad_remove_locked (struct dedup_bad *b, uint64_t host_idx,
                         uint64_t count)
{
  size_t i, n = 0;

  if (b->nr == 0)
    return 0;
  i = position (b, host_idx);
  while (i + n < b->nr && b->v[i + n].host_idx - host_idx < count)
    n++;
  memmove (&b->v[i], &b->v[i + n], (b->nr - i - n) * sizeof *b->v);
  b->nr -= n;
  note_sure (b);
  return n;
}

void
dedup_bad_new_data_locked (struct dedup_bad *b, uint64_t host_idx)
{
  if (b->nr > 0 && !mutation (MUTATION_HEAL_USED_AGAIN))
    (void) dedup_bad_remove_locked (b, host_idx, 1);
  if (b->watch != NULL && host_idx - b->watch_from < b->watch_nr)
    __atomic_store_n (&b->watch[host_idx - b->watch_from],
                      DEDUP_WATCH_CHANGED, __ATOMIC_RELEASE);
}
