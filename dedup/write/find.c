/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds for each cluster of a write whether its data is in the image already:
 * classifies it, follows hints, hashes it, claims its hash, looks it up in the
 * index, and compares what was found.
 *
 * Any thread.  The caller's range lock keeps other operations off the guest
 * clusters.
 */
#include "op.h"
#include "mutation.h"

#include <errno.h>

/* --- Classify and guess -------------------------------------------------- */

/* While there are clusters to be healed, all data is hashed: hints would find
 * another copy without its hash. */
void
dedup_classify (struct op *op)
{
  struct dedup_writer *w = op->w;
  const bool hints = w->dedup && w->hints && !dedup_may_heal (op) && !op->avoids;
  size_t i;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (op->avoids && !s->again) {
      s->kind = SLOT_KEEP;
      continue;
    }
    if (all_zero (slot_data (op, i), w->b->cluster_size)) {
      s->kind = SLOT_ZERO;
      continue;
    }
    s->kind = SLOT_NEW;
    s->checksum = dedup_checksum (slot_data (op, i), w->b->cluster_size);
    if (hints)
      s->value = dedup_hints_find (w->hints, s->checksum);
    if (s->value != 0) {
      s->kind = SLOT_GUESS;
      op->guesses = true;
    }
  }
}

int
dedup_guess (struct op *op)
{
  size_t wrong;
  int r;

  if (!op->guesses)
    return 0;
  r = dedup_hold_candidates (op, SLOT_GUESS);
  if (r == 0)
    r = dedup_compare_candidates (op, SLOT_GUESS, false, &wrong);
  if (r == 0)
    op->counted.guessed = dedup_count_slots (op, SLOT_GUESS);
  return r;
}

int
dedup_hash_slot (struct op *op, size_t i)
{
  const struct dedup_base *b = op->w->b;
  struct slot *s = &op->slots[i];
  int r = dedup_hash_compute (&b->hasher, slot_data (op, i), b->cluster_size,
                              &s->hash);

  s->hashed = r == 0;
  return r;
}

int
dedup_hash_new (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && op->w->dedup && r == 0; i++)
    if (op->slots[i].kind == SLOT_NEW && !op->slots[i].hashed)
      r = dedup_hash_slot (op, i);
  return r;
}

void
dedup_leave_hints (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr && op->w->hints; i++)
    if (op->slots[i].linked && op->slots[i].kind != SLOT_ZERO &&
        op->slots[i].kind != SLOT_KEEP)
      dedup_hints_put (op->w->hints, op->slots[i].checksum,
                       op->slots[i].value);   /* ignores compressed data */
}

/* --- Claim and look up --------------------------------------------------- */

void
dedup_look_up_locked (struct op *op, struct slot *s)
{
  assert (lock_held (op->w->b->lock));
  op->counted.lookups++;
  switch (dedup_index_lookup_locked (op->w->s->index, &s->hash, &s->value)) {
  case DEDUP_HIT: s->kind = SLOT_CANDIDATE; op->counted.hits++; break;
  case DEDUP_PROBE: s->kind = SLOT_PROBE; op->probes = true; break;
  case DEDUP_MISS: break;
  }
}

int
dedup_claim_all (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i, nr = 0;
  int r;

  for (i = 0; i < op->nr; i++)
    nr += op->slots[i].hashed;
  if (nr == 0)
    return 0;
  LOCK_FOR_SCOPE (w->b->lock);
  op->releases = w->u->releases;
  r = dedup_claims_reserve_locked (&w->claims, nr);
  if (r < 0)
    return r;
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].hashed)
      dedup_index_prefetch_locked (w->s->index, &op->slots[i].hash);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->hashed)
      continue;
    s->claim = dedup_claim_get_locked (&w->claims, &s->hash, &s->owner);
    if (!s->owner) {
      s->kind = SLOT_JOIN;
      continue;
    }
    dedup_look_up_locked (op, s);
  }
  if (op->probes)
    op->view = dedup_index_view_locked (w->s->index);
  return 0;
}

#define PROBES 64                /* looked up at once */

/* Searches the index's tables for the hashes P of the NR slots IDX. */
static void
probe_some (struct op *op, struct dedup_probe *p, const size_t *idx, size_t nr)
{
  size_t i;

  dedup_index_probe (op->view, p, nr);
  for (i = 0; i < nr; i++) {
    const bool hit = p[i].found == DEDUP_HIT;

    op->counted.hits += hit;
    *(hit ? &op->counted.hit_reads : &op->counted.miss_reads) += p[i].reads;
    op->counted.false_positives += p[i].false_positives;
    op->slots[idx[i]].kind = hit ? SLOT_CANDIDATE : SLOT_NEW;
    op->slots[idx[i]].value = p[i].value;
    op->slots[idx[i]].aging = hit && p[i].aging;
  }
}

void
dedup_probe (struct op *op)
{
  struct dedup_probe p[PROBES];
  size_t idx[PROBES], i, nr = 0;

  if (!op->probes)
    return;
  for (i = 0; i < op->nr; i++) {
    if (op->slots[i].kind != SLOT_PROBE)
      continue;
    p[nr].hash = op->slots[i].hash;
    idx[nr++] = i;
    if (nr == PROBES) {
      probe_some (op, p, idx, nr);
      nr = 0;
    }
  }
  probe_some (op, p, idx, nr);
  dedup_index_view_put (op->w->s->index, op->view);
  op->view = NULL;
}

/* --- Compare ------------------------------------------------------------- */

/* An exact index may be trusted if no cluster became free since the lookup:
 * else a candidate may have been freed, and used again before it was held.  It has
 * no tombstones for compressed data, so that is compared in any case. */
int
dedup_compare_found (struct op *op, enum slot_kind kind)
{
  struct dedup_writer *w = op->w;
  size_t mismatches;
  bool trust;
  int r;

  if (dedup_count_slots (op, kind) == 0)
    return 0;
  lock_acquire (w->b->lock);
  trust = !w->verify && dedup_index_exact_locked (w->s->index) &&
    w->u->releases == op->releases;
  lock_release (w->b->lock);
  r = dedup_compare_candidates (op, kind, trust, &mismatches);
  if (r == 0 && mismatches > 0) {
    LOCK_FOR_SCOPE (w->b->lock);
    w->counts.mismatches += mismatches;
  }
  return r;
}
