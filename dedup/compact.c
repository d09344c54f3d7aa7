/* SPDX-License-Identifier: BSD-3-Clause */
/* Empties clusters of which little compressed data is in use (dedup-compact.h).
 *
 * First it counts how many clusters are how full.  If more than the permitted share is
 * dead, this says how full the clusters are that have to be emptied, beginning with the
 * emptiest: which costs least for what it frees.  Then it goes through the file in parts.
 * For each part
 *
 *   1. a walk over all tables finds how much of each cluster is live, and the clusters
 *      that are to be emptied are listed, until the list is full or the file ends.  One
 *      with data that cannot be moved would not become free, so it is not listed; nor are
 *      clusters listed for which more would be written than they have (compact-plan.c);
 *   2. what lies in them is moved to other clusters (compact-empty.c);
 *   3. that is flushed, so that they can be freed.
 *
 * An operation of one guest cluster loses some 250 bytes behind its data, as the next one
 * begins with a sector.  If the caller wants that (`ends`), and they are most of what could
 * be freed, and with what is dead more than may be left, all clusters that have some are
 * emptied.  What is moved of 64 guest clusters beside each other is one operation and loses
 * one end, so no more ends count than there are above that.
 *
 * By both rules a compaction frees more than it writes.  They are about averages: of a
 * lost end half a sector, of a run's end a 32nd of what is written.  And if it ends in the
 * middle, clusters are left from which some was moved.
 *
 * A piece that crosses into a cluster which is not emptied leaves dead bytes there.  So
 * it counts again at the end, and perhaps goes through the file once more.
 *
 * Threads: one in dedup_compact_step; figures on any.  The caller's lock keeps requests
 * off the guest clusters that are moved.
 */
#include "compact-empty.h"
#include "compact-plan.h"
#include "qcow2-packed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Clusters that are emptied together: 8 MiB of memory. */
#define MAX_CLUSTERS ((size_t) 1 << 20)
/* Hundredths of what compressed data takes that lost ends and dead bytes must be to make
 * it worth moving all: three are lost in the ends of runs (compact-plan.c). */
#define LEAST_LOST 4u
/* Clusters in the sample from which the work is foretold: 1 MiB of memory. */
#define MAX_PLAN 32768u

enum compact_phase {
  COMPACT_SURVEY,               /* clusters are counted by how full they are */
  COMPACT_LIST, COMPACT_MOVE, COMPACT_FLUSH,    /* of a part */
  COMPACT_DONE,
};

struct dedup_compact {
  struct dedup_pool *pool;      /* constant */
  struct dedup_compact_params p;
  enum compact_phase phase;
  struct qcow2_packed *walk;
  uint64_t end_off;             /* of the last piece that was counted */
  struct dedup_plan_cluster open[3];       /* clusters that later pieces may touch, ascending */
  unsigned nr_open;
  uint64_t next;                /* the cluster where the next part begins */
  uint64_t file_end;            /* clusters of the file when the pass began */
  struct dedup_fullness by_live[101];   /* of the survey, by hundredths */
  struct dedup_fullness shared; /* ... and those with data that is not moved */
  struct dedup_plan plan;       /* ... and a sample of them */
  uint64_t ends;                /* ... and bytes of lost ends of sectors, live there */
  uint64_t touches;             /* ... and clusters that entries lead to, each table once */
  uint64_t plan_refs, nr_plan_refs;     /* ... and references to clusters, and of how many */
  uint64_t groups;              /* ... and places on disks with compressed data, each of
                                 * QCOW2_PACKED_GROUP clusters */
  bool all;                     /* all clusters with dead bytes or lost ends are emptied */
  unsigned below;               /* hundredths: clusters with less are emptied */
  uint64_t moved_before;        /* f.moved_bytes when the pass began */
  uint64_t *v;                  /* clusters to be emptied, ascending */
  size_t nr, max;
  size_t nr_open_v;             /* clusters behind these that are perhaps emptied, */
  uint64_t open_dead;           /* and what is dead in them */
  struct dedup_chooser chooser;
  struct dedup_emptying emptying;       /* of the list, in COMPACT_MOVE */
  struct dedup_compact_figures f;       /* atomic */
};

static void
add (uint64_t *figure, uint64_t n)
{
  __atomic_add_fetch (figure, n, __ATOMIC_RELAXED);
}

/* --- Choosing ---------------------------------------------------------------- */

/* Returns whether a cluster stays: data is still appended to it, or it is bad, and so
 * is what would be moved. */
static bool
must_stay (struct dedup_compact *c, uint64_t host_idx)
{
  struct dedup_pool *pool = c->pool;
  const struct dedup_pack_run *run;
  LOCK_FOR_SCOPE (pool->base.lock);

  run = pool->writer.pack.open;
  return (run && host_idx - run->first < run->count) ||
    dedup_bad_find_locked (&pool->store.bad, host_idx);
}

struct count_refs {
  uint64_t host_idx;
  uint64_t refs;                /* result: but for the anchor's */
};

static int
count_refs_locked (struct qcow2_txn *txn, void *opaque)
{
  struct count_refs *k = opaque;
  bool anchored = false;
  int r;

  assert (lock_held (qcow2_lock (txn->img)));
  r = qcow2_get_refcount_locked (txn, k->host_idx, &k->refs, &anchored);
  k->refs -= k->refs > 0 && anchored;
  return r;
}

/* Enters a cluster in the sample, if that is to have it.  What cannot be read is foretold
 * as if it were shared by none. */
static void
add_to_plan (struct dedup_compact *c, const struct dedup_plan_cluster *k)
{
  struct count_refs n = { .host_idx = k->host_idx };
  struct dedup_plan_cluster with_refs = *k;

  if (!dedup_plan_next (&c->plan))
    return;
  if (qcow2_txn_run (c->pool->base.img, count_refs_locked, &n) < 0)
    n.refs = 0;
  with_refs.refs = (uint32_t) MAX_OF (n.refs, k->pieces);
  c->plan_refs += with_refs.refs;
  c->nr_plan_refs++;
  dedup_plan_add (&c->plan, &with_refs);
}

/* Returns how many bytes the lost ends in a cluster are.  Only data that is expanded tells
 * where it ends; on average half of its last sector is lost. */
static uint64_t
ends_of (const struct dedup_plan_cluster *k)
{
  return MIN_OF (k->live, (uint64_t) k->lost * DEDUP_SECTOR / 2);
}

/* Enters a cluster of which all live bytes were counted. */
static void
survey_cluster (struct dedup_compact *c, const struct dedup_plan_cluster *k)
{
  const uint64_t size = c->pool->base.cluster_size;
  struct dedup_fullness *f = k->stays ? &c->shared : &c->by_live[k->live * 100 / size];

  f->clusters++;
  f->dead += size - k->live;
  c->ends += k->stays ? 0 : ends_of (k);
  add_to_plan (c, k);
}

/* Lists the clusters that were perhaps to be emptied, or not. */
static void
settle (struct dedup_compact *c, enum dedup_choice choice)
{
  if (choice == DEDUP_CHOICE_OPEN)
    return;
  if (choice == DEDUP_CHOICE_EMPTY) {
    add (&c->f.clusters, c->nr_open_v);
    add (&c->f.dead_bytes, c->open_dead);
    c->nr += c->nr_open_v;
  }
  c->nr_open_v = 0;
  c->open_dead = 0;
}

/* Returns what becomes of the clusters before K that were perhaps to be emptied.  MAY: so
 * is K. */
static enum dedup_choice
choose (struct dedup_compact *c, const struct dedup_plan_cluster *k, bool may)
{
  if (c->all)
    return DEDUP_CHOICE_EMPTY;
  return dedup_choose (&c->chooser, k, c->pool->base.cluster_size, c->below, may);
}

/* Lists a cluster if it is to be emptied, or is perhaps. */
static void
list_cluster (struct dedup_compact *c, const struct dedup_plan_cluster *k, bool may)
{
  const uint64_t size = c->pool->base.cluster_size;

  if (c->nr == c->max)
    return;
  may = may && !k->stays && (!c->all || k->live - ends_of (k) < size);
  settle (c, choose (c, k, may));
  if (!may)
    return;
  c->v[c->nr + c->nr_open_v++] = k->host_idx;
  c->open_dead += size - k->live;
  if (c->nr + c->nr_open_v == c->max)
    settle (c, c->all ? DEDUP_CHOICE_EMPTY : dedup_choose_end (&c->chooser));
}

static void
close_cluster (struct dedup_compact *c, const struct dedup_plan_cluster *k)
{
  const bool may = k->host_idx >= c->next && !must_stay (c, k->host_idx);

  if (c->phase != COMPACT_SURVEY)
    list_cluster (c, k, may);
  else if (may)
    survey_cluster (c, k);
}

/* Closes the clusters before HOST_IDX. */
static void
close_before (struct dedup_compact *c, uint64_t host_idx)
{
  unsigned i, n = 0;

  for (i = 0; i < c->nr_open; i++)
    if (c->open[i].host_idx < host_idx)
      close_cluster (c, &c->open[i]);
    else
      c->open[n++] = c->open[i];
  c->nr_open = n;
}

/* Returns the cluster among those that are counted, which it joins if it is new. */
static struct dedup_plan_cluster *
find_open (struct dedup_compact *c, uint64_t host_idx)
{
  unsigned i;

  for (i = 0; i < c->nr_open; i++)
    if (c->open[i].host_idx == host_idx)
      return &c->open[i];
  assert (c->nr_open < 3);      /* a piece touches three clusters in sequence */
  c->open[c->nr_open] = (struct dedup_plan_cluster) { .host_idx = host_idx };
  return &c->open[c->nr_open++];
}

/* Notes, if that is wanted, that no piece begins in the last sector of a piece, so that its
 * end was lost with the operation that wrote it. */
static void
count_end (struct dedup_compact *c)
{
  struct dedup_plan_cluster *n;

  if (!c->p.ends || c->end_off == 0)
    return;
  n = find_open (c, (c->end_off - 1) >> c->pool->base.cluster_bits);
  n->lost += n->lost < UINT16_MAX;
}

/* Counts a piece of compressed data.  Pieces come in the order of the file. */
static void
count_piece (struct dedup_compact *c, uint64_t found)
{
  const struct dedup_base *b = &c->pool->base;
  const uint64_t descriptor = found & ~QCOW2_PACKED_STAYS;
  uint64_t off, end, first, count, k, from, to, here;
  struct dedup_plan_cluster *n;

  qcow2_compressed_extent (b->img, descriptor, &off, &end);
  end += off;
  qcow2_entry_clusters (b->img, descriptor, &first, &count);
  if (off >= c->end_off)
    count_end (c);
  close_before (c, first);
  from = MAX_OF (off, c->end_off);
  for (k = first; k < first + count; k++) {
    n = find_open (c, k);
    to = MIN_OF (end, (k + 1) << b->cluster_bits);
    here = to - MAX_OF (off, k << b->cluster_bits);
    n->live += (uint32_t) (to - MIN_OF (to, MAX_OF (from, k << b->cluster_bits)));
    n->pieces++;
    if (k > first)
      n->head = (uint32_t) MAX_OF (n->head, here);
    if (k + 1 < first + count)
      n->tail = (uint32_t) MAX_OF (n->tail, here);
    n->stays |= found != descriptor;
  }
  c->end_off = MAX_OF (c->end_off, end);
}

/* Counts the pieces of a window until the list is full.  Returns whether it is: then
 * the next part begins with the first cluster that was not counted as a whole. */
static bool
count_window (struct dedup_compact *c, const struct qcow2_packed_window *w)
{
  size_t i;

  c->groups = w->groups;
  c->touches = w->touches;
  for (i = 0; i < w->nr; i++) {
    count_piece (c, w->v[i]);
    if (c->phase == COMPACT_LIST && c->nr == c->max) {
      c->next = c->open[0].host_idx;
      return true;
    }
  }
  return false;
}

static int
begin_walk (struct dedup_compact *c)
{
  int r = qcow2_packed_begin (c->pool->base.img, c->p.max_packed, true, &c->walk);

  if (r < 0)
    return r;
  qcow2_packed_tell_stays (c->walk);
  /* What begins before the part may reach into it; its bytes are live, too. */
  qcow2_packed_seek (c->walk, c->next < 2 ? 0 : c->next - 2, c->file_end);
  c->nr = c->nr_open = c->nr_open_v = 0;
  c->open_dead = 0;
  dedup_chooser_begin (&c->chooser);
  c->end_off = 0;
  return 0;
}

/* Begins to survey the file. */
static void
begin_survey (struct dedup_compact *c)
{
  c->phase = COMPACT_SURVEY;
  c->next = 0;
  memset (c->by_live, 0, sizeof c->by_live);
  c->shared = (struct dedup_fullness) { 0 };
  dedup_plan_clear (&c->plan);
  c->ends = c->touches = c->groups = 0;
  c->plan_refs = c->nr_plan_refs = 0;
  c->moved_before = c->f.moved_bytes;
  lock_acquire (c->pool->base.lock);
  c->file_end = qcow2_frontier_locked (c->pool->base.img);
  lock_release (c->pool->base.lock);
}

/* Goes on behind a part that is done. */
static void
next_part (struct dedup_compact *c)
{
  if (c->next < c->file_end)
    c->phase = COMPACT_LIST;
  else if (c->f.moved_bytes == c->moved_before ||
           c->f.passes == DEDUP_COMPACT_PASSES)
    c->phase = COMPACT_DONE;
  else
    begin_survey (c);
}

/* Begins a pass: what stays is counted anew. */
static void
begin_pass (struct dedup_compact *c)
{
  __atomic_add_fetch (&c->f.passes, 1, __ATOMIC_RELAXED);
  __atomic_store_n (&c->f.left, 0, __ATOMIC_RELAXED);
  __atomic_store_n (&c->f.doubtful, 0, __ATOMIC_RELAXED);
}

/* Returns how many of the references to clusters are entries that are moved by
 * themselves.  An entry of a table that several disks have counts in refcounts for each path
 * that is paid, and is moved once. */
static double
share_of_entries (const struct dedup_compact *c)
{
  const double refs = c->nr_plan_refs == 0 ? 0 :
    (double) c->plan_refs / (double) c->nr_plan_refs * (double) c->plan.seen;

  return refs > (double) c->touches ? (double) c->touches / refs : 1;
}

/* Sets how much is to be moved, in all, by what the survey found. */
static void
foretell (struct dedup_compact *c, unsigned percent, unsigned passes)
{
  const uint64_t size = c->pool->base.cluster_size;
  const double share = share_of_entries (c);
  const uint64_t moves = dedup_plan_moves (&c->plan, size, percent, passes);

  __atomic_store_n (&c->f.to_move_bytes, c->f.handled_bytes +
                    (uint64_t) ((double) moves * share) * size, __ATOMIC_RELAXED);
}

/* Returns how many bytes fewer are lost in ends of sectors when all of NR clusters was
 * moved.  Each part of the list is an operation for each group that it has some of, at
 * most: data that several disks have is moved with one. */
static uint64_t
ends_saved (const struct dedup_compact *c, uint64_t nr)
{
  const uint64_t parts = div_round_up (nr, c->max);

  return c->ends - MIN_OF (c->ends, c->groups * parts * (DEDUP_SECTOR / 2));
}

/* Decides by the survey which clusters are to be emptied; none if little is dead.  What is
 * permitted is a share of what can be freed. */
static void
end_survey (struct dedup_compact *c)
{
  const uint64_t size = c->pool->base.cluster_size;
  uint64_t packed = 0, dead = 0, ends;
  unsigned i;

  for (i = 0; i <= 100; i++) {
    packed += c->by_live[i].clusters * size;
    dead += c->by_live[i].dead;
  }
  __atomic_store_n (&c->f.packed_bytes, packed + c->shared.clusters * size,
                    __ATOMIC_RELAXED);
  __atomic_store_n (&c->f.packed_dead_bytes, dead + c->shared.dead, __ATOMIC_RELAXED);
  __atomic_store_n (&c->f.shared_dead_bytes, c->shared.dead, __ATOMIC_RELAXED);
  /* Most clusters have some lost ends, and only guest clusters that are near each other are
   * moved together: so if these count, all are emptied. */
  ends = ends_saved (c, packed / size);
  c->all = ends > dead && (ends + dead) * 100 > packed * MAX_OF (c->p.percent, LEAST_LOST);
  c->below = dedup_plan_below (c->by_live, size, c->p.percent);
  if (c->all)
    c->below = 100;
  else if (c->below > 0)
    c->below = dedup_plan_enough (&c->plan, 0, size, c->p.percent, c->below);
  for (i = 0; c->all && i < c->plan.nr; i++)
    c->plan.v[i].live -= (uint32_t) ends_of (&c->plan.v[i]);
  foretell (c, c->all ? 0 : c->p.percent, c->all ? 1 : DEDUP_COMPACT_PASSES - c->f.passes);
  c->phase = c->below > 0 ? COMPACT_LIST : COMPACT_DONE;
  if (c->below > 0)
    begin_pass (c);
}

/* Ends the walk of a survey or a part; MORE: the file has not ended. */
static void
end_walk (struct dedup_compact *c, bool more)
{
  if (!more) {
    count_end (c);
    close_before (c, UINT64_MAX);
    settle (c, c->all ? DEDUP_CHOICE_EMPTY : dedup_choose_end (&c->chooser));
  }
  qcow2_packed_end (c->walk);
  c->walk = NULL;
  if (c->phase == COMPACT_SURVEY) {
    end_survey (c);
    return;
  }
  if (!more)
    c->next = c->file_end;
  if (c->nr > 0)
    c->phase = COMPACT_MOVE;
  else
    next_part (c);
}

static int
count_some (struct dedup_compact *c)
{
  struct qcow2_packed_window w;
  int r = c->walk ? 0 : begin_walk (c);

  if (r == 0)
    r = qcow2_packed_step (c->walk);
  if (r != 0)
    return r;
  qcow2_packed_get (c->walk, &w);
  if (count_window (c, &w))
    end_walk (c, true);
  else if (!qcow2_packed_next (c->walk))
    end_walk (c, false);
  if (c->phase == COMPACT_MOVE)
    dedup_emptying_begin (&c->emptying, c->v, c->nr);
  return c->phase != COMPACT_DONE;
}

/* --- Moving -------------------------------------------------------------------- */

static int
move_some (struct dedup_compact *c, bool small)
{
  int r = dedup_emptying_step (&c->emptying, small);

  if (r == 0)
    c->phase = COMPACT_FLUSH;
  return r < 0 ? r : 1;
}

/* Makes the moves of a part durable, so that their clusters can be freed. */
static int
end_part (struct dedup_compact *c)
{
  int r = dedup_flush (c->pool);

  if (r < 0)
    return r;
  next_part (c);
  return c->phase != COMPACT_DONE;
}

/* --- The whole ----------------------------------------------------------------- */

static int
step (struct dedup_compact *c, bool small)
{
  switch (c->phase) {
  case COMPACT_SURVEY: case COMPACT_LIST: return count_some (c);
  case COMPACT_MOVE: return move_some (c, small);
  case COMPACT_FLUSH: return end_part (c);
  case COMPACT_DONE: break;
  }
  return 0;
}

int
dedup_compact_step (struct dedup_compact *c)
{
  return step (c, false);
}

int
dedup_compact_small_step (struct dedup_compact *c)
{
  return step (c, true);
}

void
dedup_compact_figures (struct dedup_compact *c, struct dedup_compact_figures *f)
{
  f->clusters = __atomic_load_n (&c->f.clusters, __ATOMIC_RELAXED);
  f->dead_bytes = __atomic_load_n (&c->f.dead_bytes, __ATOMIC_RELAXED);
  f->moved_bytes = __atomic_load_n (&c->f.moved_bytes, __ATOMIC_RELAXED);
  f->handled_bytes = __atomic_load_n (&c->f.handled_bytes, __ATOMIC_RELAXED);
  f->to_move_bytes = MAX_OF (__atomic_load_n (&c->f.to_move_bytes,
                                              __ATOMIC_RELAXED),
                             f->handled_bytes);
  f->packed_bytes = __atomic_load_n (&c->f.packed_bytes, __ATOMIC_RELAXED);
  f->packed_dead_bytes = __atomic_load_n (&c->f.packed_dead_bytes,
                                          __ATOMIC_RELAXED);
  f->shared_dead_bytes = __atomic_load_n (&c->f.shared_dead_bytes,
                                          __ATOMIC_RELAXED);
  f->passes = __atomic_load_n (&c->f.passes, __ATOMIC_RELAXED);
  f->left = __atomic_load_n (&c->f.left, __ATOMIC_RELAXED);
  f->doubtful = __atomic_load_n (&c->f.doubtful, __ATOMIC_RELAXED);
}

/* Takes the one place that there is for a compaction. */
static int
claim (struct dedup_pool *pool)
{
  if (!pool->store.has_store || !pool->base.writable ||
      !dedup_packs_any (&pool->writer.pack))
    return -ENOTSUP;
  LOCK_FOR_SCOPE (pool->base.lock);
  if (pool->compacting)
    return -EBUSY;
  pool->compacting = true;
  return 0;
}

static void
unclaim (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);
  pool->compacting = false;
}

static void
free_all (struct dedup_compact *c)
{
  qcow2_packed_end (c->walk);
  dedup_emptying_destroy (&c->emptying);
  unclaim (c->pool);
  dedup_plan_destroy (&c->plan);
  free (c->v);
  free (c);
}

static struct dedup_compact *
new_compact (struct dedup_pool *pool, const struct dedup_compact_params *p)
{
  struct dedup_compact *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  c->pool = pool;
  c->p = *p;
  c->p.percent = p->percent ? p->percent : DEDUP_COMPACT_PERCENT;
  c->max = p->max_clusters ? p->max_clusters : MAX_CLUSTERS;
  return c;
}

static int
make_room (struct dedup_compact *c)
{
  int r = dedup_emptying_init (&c->emptying, c->pool, &c->p, &c->f);

  c->v = malloc (c->max * sizeof *c->v);
  if (r < 0 || c->v == NULL)
    return -ENOMEM;
  return dedup_plan_init (&c->plan, c->p.max_plan ? c->p.max_plan : MAX_PLAN);
}

int
dedup_compact_begin (struct dedup_pool *pool,
                     const struct dedup_compact_params *p,
                     struct dedup_compact **out)
{
  struct dedup_compact *c;
  int r = claim (pool);

  if (r < 0)
    return r;
  c = new_compact (pool, p);
  if (c == NULL) {
    unclaim (pool);
    return -ENOMEM;
  }
  r = make_room (c);
  if (r == 0)
    r = dedup_mover_prepare (pool);
  if (r < 0) {
    free_all (c);
    return r;
  }
  begin_survey (c);
  *out = c;
  return 0;
}

void
dedup_compact_end (struct dedup_compact *c)
{
  if (c == NULL)
    return;
  free_all (c);
}
