/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes whole guest clusters as one operation, from the bytes to the records
 * and tables that make them the disk's content.
 *
 *   step       what it does                                      image lock
 *   classify   sets zero clusters apart                               no
 *   guess      follows hints; right ones save a hash                partly
 *   hash       hashes the other clusters                              no
 *   heal       puts it back into a bad cluster that has lost it     partly
 *   claim      owns the hash, or joins the operation that does        yes
 *   look up    searches log stores, then tables                  yes, then no
 *   hold       keeps the candidate from being freed                   yes
 *   compare    compares the candidate's bytes (verify)                no
 *   store      compresses what shrinks, reserves runs of clusters,
 *              writes new data                                        no
 *   join       waits for other operations, compares their bytes     partly
 *   link       prepares all tables, then changes them and appends
 *              the records as one group under one hold of the lock    yes
 *
 * Nothing refers to a new cluster before its bytes are written (law 2).  The
 * link step changes nothing until all that it needs is in memory and there is
 * room in journal and log store; then it cannot fail.  A failure before that
 * leaves reserved clusters, which are freed, and nothing on disk that is used.
 *
 * Any thread, without locks.
 */
#include "op.h"
#include "mutation.h"

#include <errno.h>

/* --- Claims of others ---------------------------------------------------- */

/* Makes the operation's claims READY: tells joiners where the bytes are. */
static void
publish_claims (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i;

  for (i = 0; i < op->nr && !op->slots[i].owner; i++)
    ;
  if (i == op->nr)
    return;
  LOCK_FOR_SCOPE (w->b->lock);
  for (; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->owner || s->claim->state != DEDUP_CLAIM_BUSY)
      continue;
    if (s->kind == SLOT_KEEP) {  /* its data is where it was */
      dedup_claim_set_locked (&w->claims, s->claim, DEDUP_CLAIM_ABANDONED);
      continue;
    }
    s->claim->value = s->value;
    s->claim->run = s->run;      /* the slot's use becomes the claim's */
    s->run = NULL;
    if (s->kind == SLOT_CANDIDATE) {
      s->claim->linked = true;   /* the slot's hold becomes the claim's */
      s->claim->held = s->held;
      s->held = false;
    }
    dedup_claim_set_locked (&w->claims, s->claim, DEDUP_CLAIM_READY);
  }
}

/* Waits for every joined claim.  The slot of an abandoned one, and of one whose
 * bytes differ in spite of the hash, becomes new and is stored. */
static int
join_all (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i;
  int r;

  if (dedup_count_slots (op, SLOT_JOIN) == 0)
    return 0;
  lock_acquire (w->b->lock);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->kind != SLOT_JOIN)
      continue;
    dedup_claim_wait_locked (&w->claims, s->claim);
    s->value = s->claim->value;
    if (s->claim->state == DEDUP_CLAIM_ABANDONED)
      s->kind = SLOT_NEW;
  }
  lock_release (w->b->lock);
  r = dedup_compare_found (op, SLOT_JOIN);
  return r < 0 ? r : dedup_place_all (op);
}

/* --- The operation ------------------------------------------------------- */

/* Writes data after its link; only for a test that breaks law 2. */
static int
write_too_late (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    if (op->slots[i].stored && !dedup_value_is_compressed (op->slots[i].value))
      r = io_pwrite (op->w->b->io, slot_data (op, i), op->w->b->cluster_size,
                     op->slots[i].value << op->w->b->cluster_bits);
  return r;
}

static int
bring_to_disk (struct op *op)
{
  int r;

  dedup_classify (op);
  if ((r = dedup_guess (op)) < 0 ||
      (r = dedup_hash_new (op)) < 0 ||
      (r = dedup_heal (op)) < 0 ||
      (r = dedup_claim_all (op)) < 0)
    return r;
  dedup_probe (op);
  if ((r = dedup_hold_candidates (op, SLOT_CANDIDATE)) < 0 ||
      (r = dedup_compare_found (op, SLOT_CANDIDATE)) < 0 ||
      (r = dedup_place_all (op)) < 0)
    return r;
  publish_claims (op);
  return join_all (op);
}

/* Links all slots; stores those whose candidate can take no more references. */
static int
link_or_store (struct op *op)
{
  int r;

  while ((r = dedup_link (op)) == -ERANGE)
    if ((r = dedup_hash_new (op)) < 0 || (r = dedup_place_all (op)) < 0)
      break;
  return r;
}

static void
finish_slot_locked (struct op *op, struct slot *s)
{
  struct dedup_writer *w = op->w;
  struct qcow2_run run = { .host_idx = s->value, .count = 1 };
  bool unused = s->stored && !s->linked;   /* reserved, and to be freed */

  assert (lock_held (w->b->lock));
  dedup_unhold_slot_locked (op, s);
  if (s->owner && s->claim->state == DEDUP_CLAIM_BUSY)
    dedup_claim_set_locked (&w->claims, s->claim, DEDUP_CLAIM_ABANDONED);
  if (s->owner && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->value == s->value)
    unused = false;                      /* it is freed with the claim */
  if (unused && !dedup_value_is_compressed (s->value) &&
      !(s->from_reserve &&
        dedup_reserve_put_locked (&w->u->reserve, s->value)))
    qcow2_unreserve_locked (w->b->img, &run);
  if (s->run)
    dedup_pack_put_locked (&op->txn, &w->pack, s->run);
  if (s->claim)
    dedup_claim_put_locked (&op->txn, &w->claims, s->claim);
}

/* Frees what the operation has left, and leaves the gate. */
static void
finish (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i;

  dedup_pack_settle (op);
  lock_acquire (w->b->lock);
  dedup_pack_settled_locked (op);
  for (i = 0; i < op->nr; i++)
    finish_slot_locked (op, &op->slots[i]);
  dedup_journal_end_locked (w->s->journal); /* unhold may have freed */
  qcow2_txn_end_locked (&op->txn);
  dedup_count_lookups_locked (op->w->s, &op->counted);
  dedup_leave_locked (&w->s->gate);
  lock_release (w->b->lock);
  dedup_index_view_put (w->s->index, op->view);
}

int
dedup_op_run (struct op *op)
{
  int r = dedup_wait_for_quarantine (op->w->u);

  if (r == 0)
    r = dedup_enter (&op->w->s->gate);
  if (r < 0)
    return r;
  qcow2_txn_begin (op->w->b->img, &op->txn);
  r = bring_to_disk (op);
  if (r == 0)
    r = link_or_store (op);
  if (r == 0)
    dedup_leave_hints (op);
  if (r == 0 && mutation (MUTATION_LAW_2))
    r = write_too_late (op);
  finish (op);
  return r;
}

int
dedup_pipeline_write (struct dedup_writer *w, unsigned root, const void *buf,
                      uint64_t guest_idx, size_t nr)
{
  struct op op = { .w = w, .root = root, .buf = buf,
                   .guest_idx = guest_idx, .nr = nr };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  r = dedup_admit (w->s);
  if (r < 0)
    return r;
  op.zero_entry = dedup_zero_entry (w->b);
  op.trimmed = true;
  r = dedup_op_alloc (&op);
  if (r == 0)
    r = dedup_op_run (&op);
  dedup_op_free (&op);
  return r;
}

void
dedup_writer_init (struct dedup_writer *w, const struct dedup_base *b,
                   struct dedup_store *s, struct dedup_upkeep *u)
{
  w->b = w->claims.b = w->pack.b = b;
  w->claims.pack = &w->pack;
  w->s = s;
  w->u = u;
  pthread_cond_init (&w->claims.changed, NULL);
}

void
dedup_writer_destroy (struct dedup_writer *w)
{
  dedup_hints_free (w->hints);
  dedup_claims_free (&w->claims);
  dedup_pack_free (&w->pack);
  dedup_known_free (&w->known);
  pthread_cond_destroy (&w->claims.changed);
}
