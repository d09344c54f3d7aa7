/* SPDX-License-Identifier: BSD-3-Clause */
/* Claims: one per content hash that some request is bringing to disk right
 * now, so that concurrent writers of equal content store it once.
 *
 * The first writer of a hash owns its claim; others join.  An owner never
 * waits for a claim before its own are READY or ABANDONED, and everybody waits
 * only then: so no two can wait for each other.  Between READY and the first
 * link the cluster is merely reserved, and belongs to the claim; whoever links
 * first, owner or not, writes the HASH record.  From then on the claim holds
 * the cluster, so that it cannot be freed under a late joiner.
 *
 * Protected by the disk's lock.
 */
#include "disk.h"

static struct dedup_claim **
chain_of (struct dedup_disk *d, const struct dedup_hash *hash)
{
  return &d->claims.chains[dedup_hash_word (hash, 3) % DEDUP_CLAIM_CHAINS];
}

struct dedup_claim *
dedup_claim_get_locked (struct dedup_disk *d, const struct dedup_hash *hash,
                        struct dedup_claim **spare, bool *owner)
{
  struct dedup_claim **chain = chain_of (d, hash);
  struct dedup_claim *c;

  assert (lock_held (d->lock));
  for (c = *chain; c != NULL; c = c->next)
    if (dedup_hash_equal (&c->hash, hash))
      break;
  *owner = c == NULL;
  if (c == NULL) {
    c = *spare;
    *spare = NULL;
    c->hash = *hash;
    c->state = DEDUP_CLAIM_BUSY;
    c->next = *chain;
    *chain = c;
  }
  c->users++;
  return c;
}

void
dedup_claim_set_locked (struct dedup_disk *d, struct dedup_claim *c,
                        enum dedup_claim_state state)
{
  assert (lock_held (d->lock));
  assert (c->state == DEDUP_CLAIM_BUSY);
  c->state = state;
  pthread_cond_broadcast (&d->claims.changed);
}

void
dedup_claim_wait_locked (struct dedup_disk *d, struct dedup_claim *c)
{
  while (c->state == DEDUP_CLAIM_BUSY)
    lock_wait (d->lock, &d->claims.changed);
}

static void
unchain (struct dedup_disk *d, struct dedup_claim *c)
{
  struct dedup_claim **p = chain_of (d, &c->hash);

  while (*p != c)
    p = &(*p)->next;
  *p = c->next;
}

void
dedup_claim_put_locked (struct qcow2_txn *txn, struct dedup_disk *d,
                        struct dedup_claim *c)
{
  assert (lock_held (d->lock));
  assert (c->users > 0);
  if (--c->users > 0)
    return;
  unchain (d, c);
  if (c->held)
    qcow2_unhold_locked (txn, c->host_idx);
  else if (c->state == DEDUP_CLAIM_READY && !c->linked) {
    struct qcow2_run run = { .host_idx = c->host_idx, .count = 1 };
    qcow2_unreserve_locked (d->img, &run);
  }
  free (c);
}
