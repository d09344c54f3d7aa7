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
 * Claims that are not used wait in a pool, so that a write need not allocate.
 *
 * Protected by the disk's lock.
 */
#include "disk.h"

#include <errno.h>

static struct dedup_claim **
chain_of (struct dedup_disk *d, const struct dedup_hash *hash)
{
  return &d->claims.chains[dedup_hash_word (hash, 3) % DEDUP_CLAIM_CHAINS];
}

/* Without the lock: NR claims, linked; NULL: no memory. */
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
dedup_claims_reserve_locked (struct dedup_disk *d, size_t nr)
{
  struct dedup_claims *cs = &d->claims;
  struct dedup_claim *list, *c;

  assert (lock_held (d->lock));
  while (cs->nr_unused < nr) {
    size_t missing = nr - cs->nr_unused;

    lock_release (d->lock);
    list = allocate (missing);
    lock_acquire (d->lock);
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
dedup_claims_free (struct dedup_disk *d)
{
  struct dedup_claim *c;

  while ((c = d->claims.unused) != NULL) {
    d->claims.unused = c->next;
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
dedup_claim_get_locked (struct dedup_disk *d, const struct dedup_hash *hash,
                        bool *owner)
{
  struct dedup_claim **chain = chain_of (d, hash);
  struct dedup_claim *c;

  assert (lock_held (d->lock));
  for (c = *chain; c != NULL; c = c->next)
    if (dedup_hash_equal (&c->hash, hash))
      break;
  *owner = c == NULL;
  if (c == NULL) {
    c = take_unused (&d->claims);
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
  put_unused (&d->claims, c);
}
