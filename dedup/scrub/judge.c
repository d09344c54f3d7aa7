/* SPDX-License-Identifier: BSD-3-Clause */
/* Compares the prints of a window with the index, and collects what the clusters
 * that differ should have.
 *
 * The index has no order by clusters, so it is walked from the youngest table to
 * the oldest, and each entry is compared with the print of its cluster.  Of the
 * entries that name a cluster only those of the lowest rank count: older ones are
 * about data that it had before.  A cluster is good if one of these has its hash,
 * and a suspect if none has.  A mark of unknown data (store.h) among them says
 * that the index does not know its data.
 *
 * A print has 32 bits, so one wrong cluster in 2^32 passes for a good one.  A
 * second walk gets the whole hashes of the suspects.
 *
 * One thread.
 */
#include "scrub-private.h"

#include <errno.h>
#include <string.h>

/* Pages of the index that are walked in one step. */
#define PAGES 256

int
scrub_walk_some (struct dedup_scrub *sc, uint64_t from, uint64_t to,
                 void (*take) (struct dedup_scrub *sc,
                               const struct dedup_walked *e))
{
  struct dedup_walked v[DEDUP_WALK_ENTRIES];
  size_t nr, i, pages;
  int r = sc->walk ? 0
    : dedup_index_walk_begin (sc->s->index, from, to, &sc->walk);

  for (pages = 0; r >= 0 && pages < PAGES; pages++) {
    r = dedup_index_walk_next (sc->walk, v, &nr);
    if (r <= 0)
      break;
    for (i = 0; i < nr; i++)
      take (sc, &v[i]);
  }
  if (r == 0) {
    sc->lossy = sc->lossy || dedup_index_walk_lossy (sc->walk);
    dedup_index_walk_end (sc->walk);
    sc->walk = NULL;
  }
  return r;
}

/* Walks over the entries that name clusters of the window. */
static int
walk_window (struct dedup_scrub *sc,
             void (*take) (struct dedup_scrub *sc,
                           const struct dedup_walked *e))
{
  return sc->s->has_store ?
    scrub_walk_some (sc, sc->from, sc->from + sc->nr, take) : 0;
}

/* --- All clusters ----------------------------------------------------------- */

static unsigned
rank_of (const struct dedup_walked *e)
{
  return MIN_OF (e->rank + 1, RANK_LAST);
}

static void
judge_entry (struct dedup_scrub *sc, const struct dedup_walked *e)
{
  const uint64_t i = e->entry.value - sc->from;
  const uint32_t p = print_load (sc, i);

  if (p < PRINT_FIRST ||
      (sc->ranks[i] != RANK_NONE && sc->ranks[i] != rank_of (e)))
    return;
  if (dedup_is_unknown_mark (&e->entry.hash, e->entry.value))
    sc->ranks[i] = RANK_UNKNOWN;
  else {
    sc->ranks[i] = (uint8_t) rank_of (e);
    if (scrub_print (&e->entry.hash) == p)
      (void) print_set (sc, i, p, PRINT_GOOD);
  }
}

/* Returns whether a difference proves that a cluster is bad. */
static bool
can_be_sure (struct dedup_scrub *sc)
{
  LOCK_FOR_SCOPE (sc->b->lock);
  return !sc->lossy && (dedup_index_complete_locked (sc->s->index) ||
                        dedup_index_exact_locked (sc->s->index));
}

static bool
is_suspect (const struct dedup_scrub *sc, uint64_t i)
{
  const uint32_t p = print_load (sc, i);

  return p == PRINT_UNREADABLE ||
    (p >= PRINT_FIRST && sc->ranks[i] >= 1 && sc->ranks[i] <= RANK_KNOWN);
}

/* Makes clusters of the window suspects that an earlier scrub found bad.  The index
 * may name others for their data by now. */
static void
suspect_known (struct dedup_scrub *sc)
{
  const struct dedup_bad *bad = &sc->s->bad;
  LOCK_FOR_SCOPE (sc->b->lock);
  size_t i;

  for (i = 0; i < bad->nr; i++) {
    const uint64_t k = bad->v[i].host_idx - sc->from;

    if (k < sc->nr && (bad->v[i].flags & DEDUP_BAD_SURE))
      sc->ranks[k] = RANK_KNOWN;
  }
}

/* Counts what the walk has found.  Without a complete or exact index a cluster
 * that differs is doubtful. */
static void
count_judged (struct dedup_scrub *sc)
{
  const bool sure = can_be_sure (sc);
  uint64_t good = 0, unknown = 0, doubtful = 0, changed = 0, i;

  for (i = 0; i < sc->nr; i++) {
    const uint32_t p = print_load (sc, i);

    good += p == PRINT_GOOD;
    changed += p == PRINT_CHANGED;
    if (p < PRINT_FIRST ||
        (is_suspect (sc, i) && (sure || sc->ranks[i] == RANK_KNOWN)))
      continue;
    doubtful += is_suspect (sc, i);
    unknown += !is_suspect (sc, i);
    (void) print_set (sc, i, p, PRINT_DONE);
  }
  pthread_mutex_lock (&sc->lock);
  sc->figures.good += good;
  sc->figures.unknown += unknown;
  sc->figures.doubtful += doubtful;
  sc->figures.changed += changed;
  pthread_mutex_unlock (&sc->lock);
}

int
scrub_judge (struct dedup_scrub *sc)
{
  int r = walk_window (sc, judge_entry);

  if (r == 0) {
    suspect_known (sc);
    count_judged (sc);
  }
  return r;
}

/* --- Suspects --------------------------------------------------------------- */

int
scrub_collect (struct dedup_scrub *sc)
{
  sc->nr_suspects = sc->next_suspect = 0;
  memset (sc->located, 0, sizeof sc->located);
  for (; sc->at < sc->nr && sc->nr_suspects < MAX_SUSPECTS; sc->at++)
    if (is_suspect (sc, sc->at))
      sc->suspects[sc->nr_suspects++] = (struct suspect) {
        .host_idx = sc->from + sc->at, .at = sc->at };
  return 0;
}

struct suspect *
scrub_find_suspect (struct dedup_scrub *sc, size_t at)
{
  size_t lo = 0, hi = sc->nr_suspects, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (sc->suspects[mid].at < at)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < sc->nr_suspects && sc->suspects[lo].at == at ? &sc->suspects[lo]
    : NULL;
}

bool
scrub_has_hash (const struct suspect *s, const struct dedup_hash *h)
{
  unsigned i;

  for (i = 0; i < MIN_OF (s->nr, MAX_HASHES); i++)
    if (dedup_hash_equal (&s->hashes[i], h))
      return true;
  return false;
}

void
scrub_add_hash (struct suspect *s, const struct dedup_entry *e)
{
  if (scrub_has_hash (s, &e->hash))
    return;
  if (dedup_is_unknown_mark (&e->hash, e->value))
    s->marked = true;
  else if (s->nr < MAX_HASHES)
    s->hashes[s->nr++] = e->hash;
  else
    s->nr = MAX_HASHES + 1;
}

/* Adds the hash of an entry to those that its cluster may have had, if no younger
 * table names the cluster. */
static void
expect_entry (struct dedup_scrub *sc, const struct dedup_walked *e)
{
  struct suspect *s = scrub_find_suspect (sc, e->entry.value - sc->from);

  if (s == NULL || (s->rank != 0 && s->rank != e->rank + 1))
    return;
  s->rank = e->rank + 1;
  scrub_add_hash (s, &e->entry);
}

/* Takes the hashes of clusters that were found bad before from their set; nothing
 * else is known about those without a hash. */
static void
expect_known (struct dedup_scrub *sc)
{
  LOCK_FOR_SCOPE (sc->b->lock);
  size_t i;

  for (i = 0; i < sc->nr_suspects; i++) {
    struct suspect *s = &sc->suspects[i];
    const struct dedup_bad_cluster *c =
      dedup_bad_find_locked (&sc->s->bad, s->host_idx);

    if (c == NULL || !(c->flags & DEDUP_BAD_SURE))
      continue;
    s->known = true;
    s->marked = false;
    s->nr = (c->flags & DEDUP_BAD_HASH) != 0;
    s->hashes[0] = c->hash;
  }
}

int
scrub_expect (struct dedup_scrub *sc)
{
  int r = walk_window (sc, expect_entry);

  if (r == 0)
    expect_known (sc);
  return r;
}
