/* SPDX-License-Identifier: BSD-3-Clause */
/* Claims: each is a content hash whose bytes some operation is storing right
 * now, so that concurrent writers of equal content store it once (claim.c).
 * dm-vdo calls this a hash lock.
 *
 * Everything is protected by the image lock, but for init and free.
 */
#ifndef DEDUP_CLAIM_H
#define DEDUP_CLAIM_H

#include "gate.h"
#include "pack.h"

enum dedup_claim_state {
  DEDUP_CLAIM_BUSY,       /* its owner looks up, compares or writes */
  DEDUP_CLAIM_READY,      /* value holds the bytes */
  DEDUP_CLAIM_ABANDONED,  /* its owner failed: joiners store the bytes */
};

struct dedup_claim {
  struct dedup_hash hash;
  enum dedup_claim_state state;
  uint64_t value;
  bool linked;            /* value is anchored and has its HASH record;
                           * else it is reserved, and freed with the claim */
  bool held;              /* the claim holds value (qcow2_hold_locked) */
  struct dedup_pack_run *run;   /* the one with value, of which the claim has a
                                 * use; or NULL */
  unsigned users;
  struct dedup_claim *next;
};

#define DEDUP_CLAIM_CHAINS 4096

/* Kept for reuse: as many as 16 requests of 512 clusters need. */
#define DEDUP_MAX_UNUSED_CLAIMS 8192

struct dedup_claims {
  const struct dedup_base *b;
  struct dedup_pack *pack;
  struct dedup_claim *chains[DEDUP_CLAIM_CHAINS];
  struct dedup_claim *unused;   /* a list */
  size_t nr_unused;
  pthread_cond_t changed;
};

/* Allocates claims until NR unused ones are there; may release the lock
 * meanwhile.  -ENOMEM. */
int dedup_claims_reserve_locked (struct dedup_claims *cs, size_t nr) MUST_CHECK;
/* Frees the unused ones; there must be no others. */
void dedup_claims_free (struct dedup_claims *cs);
/* Joins the claim on HASH, or makes one, which was reserved under this hold of
 * the lock; *OWNER tells which.  Either way the caller has one use of it. */
struct dedup_claim *dedup_claim_get_locked (struct dedup_claims *cs,
                                            const struct dedup_hash *hash,
                                            bool *owner);
/* Makes a BUSY claim of the caller's READY or ABANDONED, and wakes joiners. */
void dedup_claim_set_locked (struct dedup_claims *cs, struct dedup_claim *c,
                             enum dedup_claim_state state);
/* Waits, without the lock, while C is BUSY. */
void dedup_claim_wait_locked (struct dedup_claims *cs, struct dedup_claim *c);
/* Gives up one use.  The last one releases the hold on the cluster, or frees
 * one that was never linked, and then C.  May append a record. */
void dedup_claim_put_locked (struct qcow2_txn *txn, struct dedup_claims *cs,
                             struct dedup_claim *c);

#endif
