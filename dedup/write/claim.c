/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a claim for each content hash whose bytes an operation is storing
 * right now, so that concurrent writers of equal content store it once.
 *
 * The first writer of a hash owns its claim; others join it.  An operation
 * waits for claims only when all that it owns are READY or ABANDONED, so no
 * two operations can wait for each other.  Between READY and the first link
 * the cluster is only reserved, and belongs to the claim, or the claim has a use of
 * the run that the compressed data is in; the operation that
 * links it first, owner or not, writes the HASH or PACKED record.  From then on the
 * claim holds the cluster, so that it cannot be freed before a late joiner
 * links it.
 *
 * Unused claims are kept in a list, so that most writes need not allocate any.
 *
 * Protected by the image lock.
 */
#include "claim.h"
#include "value.h"

#include <errno.h>

static struct dedup_claim **
chain_of (struct dedup_claims *cs, const struct dedup_hash *hash)
{
  return &cs->chains[dedup_hash_word (hash, 3) % DEDUP_CLAIM_CHAINS];
}

/* Allocates a list of NR claims; returns NULL if memory is short.  Called
 * without the lock. */
static struct dedup_claim *
allocate (size_t nr)
{
  struct dedup_claim *list = NULL, *c;

  while (nr-- > 0) {
    c = malloc (sizeof *c);
    if (c == NULL) {
      while ((c = list) != NULL) {
        list = c->next;
        free (c);
      }
      return NULL;
    }
    c->next = list;
    list = c;
  }
  return list;
}

int
dedup_claims_reserve_locked (struct dedup_claims *cs, size_t nr)
{
  struct dedup_claim *list, *c;

  assert (lock_held (cs->b->lock));
  while (cs->nr_unused < nr) {
    size_t missing = nr - cs->nr_unused;

    lock_release (cs->b->lock);
    list = allocate (missing);
    lock_acquire (cs->b->lock);
    if (list == NULL)
      return -ENOMEM;
    while ((c = list) != NULL) {
      list = c->next;
      c->next = cs->unused;
      cs->unused = c;
      cs->nr_unused++;
    }
  }
  return 0;
}

void
dedup_claims_free (struct dedup_claims *cs)
{
  struct dedup_claim *c;

  while ((c = cs->unused) != NULL) {
    cs->unused = c->next;
    free (c);
  }
}

static struct dedup_claim *
take_unused (struct dedup_claims *cs)
{
  struct dedup_claim *c = cs->unused;

  assert (c != NULL);                  /* reserved */
  cs->unused = c->next;
  cs->nr_unused--;
  memset (c, 0, sizeof *c);
  return c;
}

static void
put_unused (struct dedup_claims *cs, struct dedup_claim *c)
{
  if (cs->nr_unused >= DEDUP_MAX_UNUSED_CLAIMS) {
    free (c);
    return;
  }
  c->next = cs->unused;
  cs->unused = c;
  cs->nr_unused++;
}

struct dedup_claim *
dedup_claim_get_locked (struct dedup_claims *cs, const struct dedup_hash *hash,
                        bool *owner)
{
  struct dedup_claim **chain = chain_of (cs, hash);
  struct dedup_claim *c;

  assert (lock_held (cs->b->lock));
  for (c = *chain; c != NULL; c = c->next)
    if (dedup_hash_equal (&c->hash, hash))
      break;
  *owner = c == NULL;
  if (c == NULL) {
    c = take_unused (cs);
    c->hash = *hash;
    c->state = DEDUP_CLAIM_BUSY;
    c->next = *chain;
    *chain = c;
  }
  c->users++;
  return c;
}

void
dedup_claim_set_locked (struct dedup_claims *cs, struct dedup_claim *c,
                        enum dedup_claim_state state)
{
  assert (lock_held (cs->b->lock));
  assert (c->state == DEDUP_CLAIM_BUSY);
  c->state = state;
  pthread_cond_broadcast (&cs->changed);
}

void
dedup_claim_wait_locked (struct dedup_claims *cs, struct dedup_claim *c)
{
  assert (lock_held (cs->b->lock));
  while (c->state == DEDUP_CLAIM_BUSY)
    lock_wait (cs->b->lock, &cs->changed);
}

static void
unchain (struct dedup_claims *cs, struct dedup_claim *c)
{
  struct dedup_claim **p = chain_of (cs, &c->hash);

  while (*p != c)
    p = &(*p)->next;
  *p = c->next;
}

void
dedup_claim_put_locked (struct qcow2_txn *txn, struct dedup_claims *cs,
                        struct dedup_claim *c)
{
  assert (lock_held (cs->b->lock));
  assert (c->users > 0);
  if (--c->users > 0)
    return;
  unchain (cs, c);
  if (c->held)
    qcow2_unhold_entry_locked (txn, dedup_value_entry (cs->b, c->value));
  else if (c->state == DEDUP_CLAIM_READY && !c->linked &&
           !dedup_value_is_compressed (c->value)) {
    struct qcow2_run run = { .host_idx = c->value, .count = 1 };
    qcow2_unreserve_locked (cs->b->img, &run);
  }
  if (c->run)
    dedup_pack_put_locked (txn, cs->pack, c->run);
  put_unused (cs, c);
}
