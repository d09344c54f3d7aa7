/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides what a compaction empties, and foretells what it moves (compact-plan.h).
 *
 * A piece of data that lies in two clusters is moved when either is emptied.  It leaves
 * dead bytes in the other one.  So whoever empties a single cluster may write more than
 * he frees, and clusters are chosen with their neighbours: from each stretch of the file
 * those are emptied for which the sum of what is gained, less what crosses into clusters
 * that stay, is largest.  A cluster of which the wanted share is live counts 0, a
 * fuller one less.  The sum is never below 0, so what is emptied is larger than what is
 * written for it.  Of the choices for all clusters so far, only two matter for the next
 * one: the best that empties the last cluster, and the best that does not.  Where both
 * say the same of earlier clusters, these are decided.
 *
 * What is left dead by a pass, the next one may have to empty, and so on.  How much is
 * moved in all thus depends on which clusters are neighbours, and how full they are.  So
 * the plan has a sample of clusters with what they share with their neighbours, and plays
 * the passes on it: the same decision, and the same effects.
 *
 * A sample of the clusters one by one would have no neighbours, hence the stretches.  When
 * there is no room for more, every second stretch is dropped, and from then on every
 * second one of those that would have been taken is passed over.
 *
 * What clients write meanwhile is not foreseen: the plan is made again for each pass.
 */
#include "compact-plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

#define STRETCH 64u

/* --- The decision ------------------------------------------------------------- */

/* What stays may have half of what is permitted, as what is moved leaves dead bytes
 * beside it. */
unsigned
dedup_plan_below (const struct dedup_fullness *by_live, uint64_t cluster_size,
                  unsigned percent)
{
  uint64_t packed = 0, dead = 0;
  unsigned i;

  for (i = 0; i <= 100; i++) {
    packed += by_live[i].clusters * cluster_size;
    dead += by_live[i].dead;
  }
  if (dead * 100 <= packed * percent)
    return 0;
  for (i = 0; i < 100 && dead * 200 > packed * percent; i++) {
    packed -= by_live[i].dead;  /* the live bytes move elsewhere */
    dead -= by_live[i].dead;
  }
  return i;
}

/* Says of a cluster that it is not emptied, whatever is gained. */
#define NEVER (INT64_MIN / 2)

/* What moved data loses beside its own bytes: a 32nd in the ends of runs, which have no
 * room for the next piece (write/pack.c: less than one of 2 KiB in 64 KiB); and where
 * data is torn from its neighbour, on average half a sector behind one of both. */
#define RUN_SHARE 32
#define TORN_BYTES 256

/* Returns what emptying a cluster counts, but for what lies in others. */
static int64_t
worth_of (const struct dedup_plan_cluster *k, uint64_t size, unsigned below)
{
  return (int64_t) (size * below / 100) - (int64_t) (k->live + k->live / RUN_SHARE);
}

/* Returns what it costs to move a piece of which BYTES are in a cluster that stays. */
static int64_t
cost_of (uint32_t bytes)
{
  return bytes > 0 ? (int64_t) bytes + bytes / RUN_SHARE + TORN_BYTES : 0;
}

void
dedup_chooser_begin (struct dedup_chooser *c)
{
  *c = (struct dedup_chooser) { .better = NEVER };
}

enum dedup_choice
dedup_choose_end (struct dedup_chooser *c)
{
  const enum dedup_choice choice = c->better > 0 ? DEDUP_CHOICE_EMPTY
    : DEDUP_CHOICE_STAY;

  c->better = NEVER;
  return choice;
}

enum dedup_choice
dedup_choose (struct dedup_chooser *c, const struct dedup_plan_cluster *k, uint64_t size,
              unsigned below, bool may)
{
  const bool follows = k->host_idx == c->next;
  const int64_t begin = follows ? cost_of (c->tail) : 0;
  const int64_t end = follows ? cost_of (k->head) : 0;
  const int64_t worth = worth_of (k, size, below), better = c->better;

  c->next = k->host_idx + 1;
  c->tail = k->tail;
  if (!may) {
    c->better = NEVER;
    return better > end ? DEDUP_CHOICE_EMPTY : DEDUP_CHOICE_STAY;
  }
  if (better <= -begin) {
    c->better = worth - begin;
    return DEDUP_CHOICE_STAY;
  }
  if (better >= end) {
    c->better = worth + end;
    return DEDUP_CHOICE_EMPTY;
  }
  c->better = better + worth;
  return DEDUP_CHOICE_OPEN;
}

/* --- The sample ------------------------------------------------------------------ */

int
dedup_plan_init (struct dedup_plan *p, size_t max)
{
  p->max = (max + 2 * STRETCH - 1) / (2 * STRETCH) * (2 * STRETCH);
  p->v = malloc (p->max * sizeof *p->v);
  dedup_plan_clear (p);
  return p->v ? 0 : -ENOMEM;
}

void
dedup_plan_destroy (struct dedup_plan *p)
{
  free (p->v);
  p->v = NULL;
}

void
dedup_plan_clear (struct dedup_plan *p)
{
  p->nr = 0;
  p->seen = 0;
  p->stride = 1;
}

bool
dedup_plan_next (struct dedup_plan *p)
{
  return p->seen++ / STRETCH % p->stride == 0;
}

/* Drops every second stretch.  The next one to be added has an even number, so it is
 * among those that are taken from now on. */
static void
thin_out (struct dedup_plan *p)
{
  size_t i;

  for (i = 0; i < p->nr / (2 * STRETCH); i++) {
    memmove (&p->v[i * STRETCH], &p->v[2 * i * STRETCH], STRETCH * sizeof *p->v);
    p->v[i * STRETCH].head = 0;
  }
  p->nr /= 2;
  p->stride *= 2;
}

void
dedup_plan_add (struct dedup_plan *p, const struct dedup_plan_cluster *k)
{
  struct dedup_plan_cluster *n;

  if (p->nr == p->max)
    thin_out (p);
  n = &p->v[p->nr++];
  *n = *k;
  if (n == p->v || n[-1].host_idx + 1 != n->host_idx)
    n->head = 0;                /* its neighbour is not in the sample */
}

/* --- The game ---------------------------------------------------------------------- */

/* Returns whether a cluster has data, all of which can be moved. */
static bool
can_be_emptied (const struct dedup_plan_cluster *k)
{
  return k->live > 0 && !k->stays;
}

/* Marks the open clusters, from FROM to before TO, if they are emptied. */
static size_t
settle (struct dedup_plan *p, size_t from, size_t to, enum dedup_choice choice)
{
  if (choice == DEDUP_CHOICE_OPEN)
    return from;
  for (; from < to; from++)
    p->v[from].chosen = choice == DEDUP_CHOICE_EMPTY && can_be_emptied (&p->v[from]);
  return to;
}

/* Marks what is emptied. */
static void
mark (struct dedup_plan *p, uint64_t size, unsigned below)
{
  struct dedup_chooser c;
  size_t i, from = 0;

  dedup_chooser_begin (&c);
  for (i = 0; i < p->nr; i++) {
    const bool may = can_be_emptied (&p->v[i]);

    p->v[i].chosen = false;
    if (p->v[i].live == 0)
      from = settle (p, from, i, dedup_choose_end (&c));
    else
      from = settle (p, from, i, dedup_choose (&c, &p->v[i], size, below, may));
    if (!may)
      from = i + 1;
  }
  settle (p, from, i, dedup_choose_end (&c));
}

/* Returns whether enough is emptied: half of PERCENT is dead then.  The rest is
 * for what moved data loses. */
static bool
is_enough (const struct dedup_plan *p, uint64_t fresh, uint64_t size, unsigned percent)
{
  uint64_t packed = fresh * size, dead = 0;
  size_t i;

  for (i = 0; i < p->nr; i++) {
    const struct dedup_plan_cluster *k = &p->v[i];
    const bool crosses = i > 0 && k->head > 0;

    if (k->chosen)
      packed += k->live;
    else if (can_be_emptied (k)) {
      packed += size;
      dead += size - k->live;
    }
    if (crosses && k->chosen != k[-1].chosen)
      dead += k->chosen ? k[-1].tail : k->head;
  }
  return dead * 200 <= packed * percent;
}

unsigned
dedup_plan_enough (struct dedup_plan *p, uint64_t fresh, uint64_t size, unsigned percent,
                   unsigned below)
{
  for (below = MIN_OF (below, DEDUP_PLAN_MOST); ;
       below++) {
    mark (p, size, below);
    if (below == DEDUP_PLAN_MOST || is_enough (p, fresh, size, percent))
      return below;
  }
}

/* Marks what a pass would empty, beside FRESH clusters that earlier ones filled.  Returns
 * whether that may be anything.  PERCENT 0: all is emptied that has dead bytes. */
static bool
choose (struct dedup_plan *p, uint64_t fresh, uint64_t size, unsigned percent)
{
  struct dedup_fullness by_live[101] = { { 0 } };
  unsigned below;
  size_t i;

  by_live[100].clusters = fresh;
  for (i = 0; i < p->nr; i++) {
    p->v[i].chosen = percent == 0 && can_be_emptied (&p->v[i]) && p->v[i].live < size;
    if (can_be_emptied (&p->v[i])) {
      struct dedup_fullness *f = &by_live[p->v[i].live * 100 / size];

      f->clusters++;
      f->dead += size - p->v[i].live;
    }
  }
  if (percent == 0)
    return true;
  below = dedup_plan_below (by_live, size, percent);
  if (below > 0)
    dedup_plan_enough (p, fresh, size, percent, below);
  return below > 0;
}

/* Takes BYTES of one piece out of a cluster that stays.  As many entries lead to the piece
 * as to the others in the mean. */
static void
take_piece (struct dedup_plan_cluster *k, uint32_t bytes)
{
  k->live -= MIN_OF (bytes, k->live);
  k->refs -= k->refs / MAX_OF (k->pieces, 1);
  k->pieces -= k->pieces > 0;
}

/* Moves the piece that lies in K and in NEXT, of which one is chosen, or both.  The
 * entries that lead to it are counted with those of each that is chosen. */
static void
move_common (struct dedup_plan_cluster *k, struct dedup_plan_cluster *next,
             uint64_t *refs, uint64_t *bytes)
{
  if (k->chosen && next->chosen)
    *refs -= k->refs / MAX_OF (k->pieces, 1);
  else if (k->chosen) {
    take_piece (next, next->head);
    *bytes += next->head;
  } else {
    take_piece (k, k->tail);
    *bytes += k->tail;
  }
  next->head = 0;
}

/* Empties the clusters that are chosen.  Adds what that moves to *REFS, entries, and
 * *BYTES. */
static void
play (struct dedup_plan *p, uint64_t *refs, uint64_t *bytes)
{
  struct dedup_plan_cluster *k, *const end = p->v + p->nr;

  for (k = p->v; k < end; k++) {
    if (k->chosen) {
      *refs += k->refs;
      *bytes += k->live;
    }
    if (k + 1 < end && k[1].head > 0 && (k->chosen || k[1].chosen))
      move_common (k, k + 1, refs, bytes);
    if (k->chosen)
      k->live = 0;
  }
}

uint64_t
dedup_plan_moves (struct dedup_plan *p, uint64_t cluster_size, unsigned percent,
                  unsigned passes)
{
  uint64_t refs = 0, bytes = 0, before;

  for (; passes > 0; passes--) {
    before = refs;
    if (!choose (p, bytes / cluster_size, cluster_size, percent))
      break;
    play (p, &refs, &bytes);
    if (refs == before)
      break;
  }
  return p->nr == 0 ? 0 : (uint64_t) ((double) refs * (double) p->seen / (double) p->nr);
}
