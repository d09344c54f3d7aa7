/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts, for a survey, who refers to each cluster of the file, and how often.
 *
 * There is a counter of 8 bytes for each cluster of a window of the file; a larger
 * file is counted window by window, and all L2 tables are read again for each
 * window in which there is data.  A table counts once for each L1 entry that names
 * it, and brings all the groups of those who name it.  Debts do not matter: no
 * refcount of data is used for that.
 *
 * A cluster is exclusive to a root by the rule of usage-root.c: only tables that
 * the root alone has, with refcount 1, name it, and its refcount, less the anchor's
 * reference, is the number of their entries.  So the refcounts of the window are
 * read when it was counted, and each cluster is judged and entered in the map.
 *
 * Clusters that several groups share are counted by their set of groups first,
 * since few different sets occur; a set is added to the table of pairs when its
 * place is needed for another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "survey.h"

#define CHUNK 512u             /* refcounts that are read in one hold of the lock */

/* --- Counting ------------------------------------------------------------ */

static void
count_cluster (struct survey *v, uint64_t host_idx)
{
  const struct survey_table *t = v->table;
  struct survey_counter *c;

  if (host_idx < v->start || host_idx - v->start >= v->nr)
    return;
  c = &v->counters[host_idx - v->start];
  c->refs = t->paths < UINT32_MAX - c->refs ? c->refs + (uint32_t) t->paths
    : UINT32_MAX;
  c->who = survey_join (v, c->who, t->own ? t->who
                        : SURVEY_MANY | survey_groups (v, t->who));
}

static void
count_entry (struct usage_walk *w, const struct usage_entry *e)
{
  struct survey *v = survey_of (w);
  uint64_t i;

  for (i = 0; i < e->nr; i++)
    count_cluster (v, e->host_idx + i);
}

static int
count_table (struct survey *v, const struct survey_table *slot)
{
  const struct qcow2_usage_params *p = v->w.p;
  const struct usage_table t = { .host_idx = slot->host_idx };

  if (p->stop && p->stop (p->opaque))
    return -EINTR;
  v->table = slot;
  return usage_walk_table (&v->w, &t);
}

static int
count_window (struct survey *v)
{
  size_t i;
  int r = 0;

  memset (v->counters, 0, v->nr * sizeof *v->counters);
  if (!v->busy[v->start / QCOW2_USAGE_WINDOW])
    return 0;
  v->w.entry = count_entry;
  for (i = 0; i < v->tables.nr_slots && r == 0; i++)
    if (v->tables.v[i].host_idx) {
      survey_progress (v, 1, v->start + v->nr * i / v->tables.nr_slots,
                       v->nr_clusters);
      r = count_table (v, &v->tables.v[i]);
    }
  return r;
}

/* --- Pairs --------------------------------------------------------------- */

static void
add_pairs (struct qcow2_survey *s, uint32_t mask, uint64_t nr)
{
  unsigned a, b;

  for (a = 0; mask >> a; a++)
    for (b = 0; (mask >> a & 1) && mask >> b; b++)
      if (mask >> b & 1)
        s->pair[a][b] += nr;
}

static void
count_mask (struct survey *v, uint32_t mask)
{
  struct survey_mask *m =
    &v->masks[(mask * UINT32_C (0x9e3779b1) >> 16) % SURVEY_MASKS];

  if (m->mask != mask) {
    add_pairs (v->s, m->mask, m->nr);
    *m = (struct survey_mask) { .mask = mask };
  }
  m->nr++;
}

static void
finish_masks (struct survey *v)
{
  unsigned i;

  for (i = 0; i < SURVEY_MASKS; i++)
    add_pairs (v->s, v->masks[i].mask, v->masks[i].nr);
}

/* --- Judging ------------------------------------------------------------- */

/* Returns the bucket of a cluster with N references, at least 1. */
static unsigned
bucket_of (uint32_t n)
{
  return n == 1 ? 0 : 32 - (unsigned) __builtin_clz (n - 1);
}

static void
judge_data (struct survey *v, const struct survey_counter *c,
            uint64_t references)
{
  const unsigned bucket = bucket_of (c->refs);

  v->s->references[bucket].clusters++;
  v->s->references[bucket].references += c->refs;
  count_mask (v, survey_groups (v, c->who));
  if (!(c->who & SURVEY_MANY) && references == c->refs)
    v->s->roots[v->position[c->who - 1]].u.exclusive_bytes +=
      v->s->cluster_size;
}

struct chunk {
  uint64_t first, nr;          /* clusters, in one slice of a refcount block */
  uint64_t refcount[CHUNK];
  bool anchored[CHUNK];
};

static int
get_chunk_locked (struct qcow2_txn *txn, void *opaque)
{
  struct chunk *k = opaque;
  struct qcow2_slice *t;
  uint64_t i;
  int r = qcow2_refblock_locked (txn, k->first, &t);

  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, k->first, k->nr);
  for (i = 0; i < k->nr && r == 0; i++) {
    k->refcount[i] = t ? qcow2_refblock_get_locked (txn->img, t, k->first + i)
      : 0;
    k->anchored[i] = qcow2_anchor_test_locked (txn->img, k->first + i);
  }
  return r;
}

static void
judge_chunk (struct survey *v, const struct chunk *k)
{
  const struct survey_counter *c = &v->counters[k->first - v->start];
  uint64_t i;

  for (i = 0; i < k->nr; i++) {
    const bool anchor = k->anchored[i] && k->refcount[i] > 0;

    if (c[i].who)
      judge_data (v, &c[i], k->refcount[i] - anchor);
    survey_map_put (v, k->first + i, c[i].who != 0, k->refcount[i],
                    k->anchored[i]);
  }
}

static int
judge_window (struct survey *v)
{
  const uint64_t per = qcow2_refcount_slice (&v->w.img->header.geo);
  const uint64_t end = v->start + v->nr;
  struct chunk k = { .first = v->start };
  int r = 0;

  for (; k.first < end && r == 0; k.first += k.nr) {
    k.nr = MIN_OF (MIN_OF (CHUNK, per - k.first % per), end - k.first);
    r = qcow2_txn_run (v->w.img, get_chunk_locked, &k);
    if (r == 0)
      judge_chunk (v, &k);
  }
  return r;
}

/* --- The whole ----------------------------------------------------------- */

/* Sets shared_bytes: data of a root that is not exclusive to it. */
static void
find_shared (struct qcow2_survey *s)
{
  size_t i;

  for (i = 0; i < s->nr_roots; i++)
    if (s->roots[i].shared_known)
      s->roots[i].u.shared_bytes = s->pair[i][i] * s->cluster_size -
        s->roots[i].u.exclusive_bytes;
}

int
survey_windows (struct survey *v)
{
  int r = 0;

  v->counters = calloc (MIN_OF (QCOW2_USAGE_WINDOW, v->nr_clusters + 1),
                        sizeof *v->counters);
  if (v->counters == NULL)
    return -ENOMEM;
  for (; v->start < v->nr_clusters && r == 0; v->start += v->nr) {
    v->nr = MIN_OF (QCOW2_USAGE_WINDOW, v->nr_clusters - v->start);
    r = count_window (v);
    if (r == 0)
      r = judge_window (v);
  }
  finish_masks (v);
  find_shared (v->s);
  return r;
}
