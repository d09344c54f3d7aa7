/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides what a compaction empties, and foretells what it moves (compact-plan.h).
 *
 * A piece of data that lies in two clusters is moved when either is emptied.  It leaves
 * dead bytes in the other one, which the next pass may have to empty for that reason, and
 * so on.  How much is moved in all thus depends on which clusters are neighbours, and
 * how full they are.  So the plan has a sample of clusters with what they share with their
 * neighbours, and plays the passes on it: the same decision, and the same effects.
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

/* Marks what a pass would empty, beside FRESH clusters that earlier ones filled.  Returns
 * whether that is anything. */
static bool
choose (struct dedup_plan *p, uint64_t fresh, uint64_t size, unsigned percent)
{
  struct dedup_fullness by_live[101] = { { 0 } };
  unsigned below;
  size_t i;

  by_live[100].clusters = fresh;
  for (i = 0; i < p->nr; i++)
    if (p->v[i].live > 0 && !p->v[i].stays) {
      struct dedup_fullness *f = &by_live[p->v[i].live * 100 / size];

      f->clusters++;
      f->dead += size - p->v[i].live;
    }
  below = dedup_plan_below (by_live, size, percent);
  for (i = 0; i < p->nr; i++)
    p->v[i].chosen = p->v[i].live > 0 && !p->v[i].stays &&
      p->v[i].live * 100 / size < below;
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
