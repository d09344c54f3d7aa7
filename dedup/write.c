/* SPDX-License-Identifier: BSD-3-Clause */
/* The write pipeline: one operation on whole guest clusters, from the bytes
 * to the records and tables that make them the disk's content.
 *
 *   classify   zero clusters are set apart                        no lock
 *   guess      follow hints; what they tell right needs no hash      both
 *   hash       what is left                                       no lock
 *   claim      own the hash, or join who brings it already           lock
 *   look up    log stores, then incarnations                   lock, no lock
 *   hold       keep the candidate from being freed                   lock
 *   compare    candidate's bytes with ours (verify)               no lock
 *   store      reserve runs of clusters, write what is new        no lock
 *   join       wait for what others bring; hold and compare it       both
 *   link       prepare all tables, then change them and append the records
 *              as one group under one hold of the lock               lock
 *
 * Nothing refers to a new cluster before its bytes are written (law 2).  The
 * link step changes nothing until everything it needs is in memory and there
 * is room in journal and log store; then it cannot fail.  Whatever fails
 * earlier leaves reserved clusters to be given back and nothing on disk that
 * counts.  Joiners: see claim.c.
 */
#include "direct.h"
#include "write.h"

#include <errno.h>

/* --- classify -------------------------------------------------------------- */

static void
classify (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (is_zero (slot_data (op, i), d->cluster_size)) {
      s->kind = SLOT_ZERO;
      continue;
    }
    s->kind = SLOT_NEW;
    s->checksum = dedup_checksum (slot_data (op, i), d->cluster_size);
    if (d->dedup && d->hints)
      s->host_idx = dedup_hints_find (d->hints, s->checksum);
    if (s->host_idx != 0) {
      s->kind = SLOT_GUESS;
      op->guesses = true;
    }
  }
}

/* Whatever the hints say is compared, verify or not. */
static int
guess (struct op *op)
{
  size_t wrong;
  int r;

  if (!op->guesses)
    return 0;
  r = dedup_hold_candidates (op, SLOT_GUESS);
  if (r == 0)
    r = dedup_compare_candidates (op, SLOT_GUESS, &wrong);
  if (r == 0)
    op->counted.guessed = dedup_count_slots (op, SLOT_GUESS);
  return r;
}

int
dedup_hash_slot (struct op *op, size_t i)
{
  struct dedup_disk *d = op->d;
  struct slot *s = &op->slots[i];
  int r = dedup_hash_compute (&d->hasher, slot_data (op, i), d->cluster_size,
                              &s->hash);

  s->hashed = r == 0;
  return r;
}

/* Hash what is new as far as is known. */
static int
hash_new (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && op->d->dedup && r == 0; i++)
    if (op->slots[i].kind == SLOT_NEW && !op->slots[i].hashed)
      r = dedup_hash_slot (op, i);
  return r;
}

/* Remember where this operation's data is. */
static void
leave_hints (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr && op->d->hints; i++)
    if (op->slots[i].linked && op->slots[i].kind != SLOT_ZERO)
      dedup_hints_put (op->d->hints, op->slots[i].checksum,
                       op->slots[i].host_idx);
}

/* --- claim and look up -------------------------------------------------------- */

void
dedup_look_up_locked (struct op *op, struct slot *s)
{
  op->counted.lookups++;
  switch (dedup_index_lookup_locked (op->d->index, &s->hash, &s->host_idx)) {
  case DEDUP_HIT: s->kind = SLOT_CANDIDATE; op->counted.hits++; break;
  case DEDUP_PROBE: s->kind = SLOT_PROBE; op->probes = true; break;
  case DEDUP_MISS: break;
  }
}

static int
claim_all (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i, nr = 0;
  int r;

  for (i = 0; i < op->nr; i++)
    nr += op->slots[i].hashed;
  if (nr == 0)
    return 0;
  LOCK_FOR_SCOPE (d->lock);
  op->releases = d->releases;
  r = dedup_claims_reserve_locked (d, nr);
  if (r < 0)
    return r;
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].hashed)
      dedup_index_prefetch_locked (d->index, &op->slots[i].hash);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->hashed)
      continue;
    s->claim = dedup_claim_get_locked (d, &s->hash, &s->owner);
    if (!s->owner) {
      s->kind = SLOT_JOIN;
      continue;
    }
    dedup_look_up_locked (op, s);
  }
  if (op->probes)
    op->view = dedup_index_view_locked (d->index);
  return 0;
}

#define PROBES 64                /* looked up at once */

/* Look up what was collected, slots IDX. */
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
    op->slots[idx[i]].kind = p[i].found == DEDUP_HIT ? SLOT_CANDIDATE
      : SLOT_NEW;
    op->slots[idx[i]].host_idx = p[i].value;
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
  dedup_index_view_put (op->d->index, op->view);
  op->view = NULL;
}

/* --- compare --- */

/* Compare what the index or a claim named, unless that may be trusted.  What
 * was looked up without the lock may have come free, and be in use again by the
 * time it is held. */
static int
compare_found (struct op *op, enum slot_kind kind)
{
  struct dedup_disk *d = op->d;
  size_t mismatches;
  bool trust;
  int r;

  if (dedup_count_slots (op, kind) == 0)
    return 0;
  lock_acquire (d->lock);
  trust = !d->verify && dedup_index_exact_locked (d->index) &&
    d->releases == op->releases;
  lock_release (d->lock);
  if (trust)
    return 0;
  r = dedup_compare_candidates (op, kind, &mismatches);
  if (r == 0 && mismatches > 0) {
    LOCK_FOR_SCOPE (d->lock);
    d->stats.mismatches += mismatches;
  }
  return r;
}

/* --- store ------------------------------------------------------------------------ */

static void
unreserve (struct op *op, const struct qcow2_run *run)
{
  LOCK_FOR_SCOPE (op->d->lock);
  qcow2_unreserve_unbacked_locked (op->d->img, run);
}

static int
reserve (struct op *op, size_t wanted, struct qcow2_run *run)
{
  struct dedup_disk *d = op->d;
  bool guarded;
  int r;

  lock_acquire (d->lock);
  r = dedup_ahead_take_locked (d, wanted, run) ? 0
    : qcow2_reserve_locked (d->img, wanted, run);
  if (r == 0)
    dedup_ahead_count_locked (d, run->count);
  guarded = r == 0 && qcow2_guarded_locked (d->img, run->host_idx, run->count);
  lock_release (d->lock);
  if (!guarded)
    return r;
  dedup_contradiction (d);      /* it stays reserved: others are tried next */
  return -EIO;
}

/* Write the slots IDX[0..nr) to the contiguous clusters of RUN. */
static int
write_run (struct op *op, const size_t *idx, const struct qcow2_run *run)
{
  struct dedup_disk *d = op->d;
  struct iovec few[8], *iov = few;
  CLEANUP_FREE struct iovec *many = NULL;
  size_t k;
  int cnt = 0;

  if (run->count > sizeof few / sizeof few[0]) {
    iov = many = malloc (run->count * sizeof *iov);
    if (many == NULL)
      return -ENOMEM;
  }
  for (k = 0; k < run->count; k++) {
    uint8_t *p = (uint8_t *) slot_data (op, idx[k]);

    if (cnt > 0 && (uint8_t *) iov[cnt - 1].iov_base +
        iov[cnt - 1].iov_len == p)
      iov[cnt - 1].iov_len += d->cluster_size;
    else
      iov[cnt++] = (struct iovec) { p, d->cluster_size };
  }
  if (mutation (MUTATION_LAW_2))
    return 0;
  return io_pwritev (d->io, iov, cnt, run->host_idx << d->cluster_bits);
}

/* On a full disk some free clusters have space of the host's and others, given
 * back once, have not: so many runs are tried before giving up. */
#define SPACE_TRIES 256

/* Reserve and write one run for the first slots of IDX. */
static int
try_run (struct op *op, const size_t *idx, size_t nr, struct qcow2_run *run)
{
  int r = reserve (op, nr, run);

  if (r < 0)
    return r;
  r = write_run (op, idx, run);
  if (r < 0)
    unreserve (op, run);
  return r;
}

/* Is there data that slot I replaces?  A table that cannot be read: no. */
static bool
overwrites (struct op *op, size_t i)
{
  struct dedup_disk *d = op->d;
  uint64_t entry = 0;
  int r;

  do {
    lock_acquire (d->lock);
    r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i, &entry);
    lock_release (d->lock);
    if (r == -EAGAIN && qcow2_txn_load (&op->txn) < 0)
      return false;
  } while (r == -EAGAIN);
  return r == 0 && (entry & QCOW2_OFFSET_MASK) != 0;
}

static int
try_spare (struct op *op, const size_t *idx, struct qcow2_run *run)
{
  struct dedup_disk *d = op->d;
  bool found;
  int r;

  if (!overwrites (op, idx[0]))
    return -ENOSPC;
  *run = (struct qcow2_run) { .count = 1 };
  lock_acquire (d->lock);
  found = dedup_spare_take_locked (d, &run->host_idx);
  lock_release (d->lock);
  if (!found)
    return -ENOSPC;
  r = write_run (op, idx, run);
  op->slots[idx[0]].spare = r == 0;
  if (r < 0)
    unreserve (op, run);
  return r;
}

static void
skip_unbacked (struct dedup_disk *d, unsigned failed)
{
  LOCK_FOR_SCOPE (d->lock);
  qcow2_skip_locked (d->img, failed);
}

/* The host is full: look everywhere, once; then what overwrites data takes a
 * spare cluster, and what remains a free one that has space. */
static int
search_run (struct op *op, const size_t *idx, struct qcow2_run *run)
{
  unsigned tries;
  int r = 0;

  if (!op->short_of_space)
    r = dedup_find_space (op->d);
  op->short_of_space = true;
  if (r < 0)
    return r;
  r = try_spare (op, idx, run);
  for (tries = 0; tries < SPACE_TRIES && r == -ENOSPC; tries++) {
    r = try_run (op, idx, 1, run);
    if (r == -ENOSPC)
      skip_unbacked (op->d, tries);
  }
  return r;
}

/* Store the first slots of IDX; how many, or -errno.  When space is short, one
 * at a time. */
static ssize_t
store_run (struct op *op, const size_t *idx, size_t nr)
{
  struct qcow2_run run;
  size_t k;
  int r = -ENOSPC;

  if (!op->short_of_space)
    r = try_run (op, idx, nr, &run);
  if (r == -ENOSPC)
    r = search_run (op, idx, &run);
  if (r < 0)
    return r;
  for (k = 0; k < run.count; k++) {
    op->slots[idx[k]].host_idx = run.host_idx + k;
    op->slots[idx[k]].stored = true;
  }
  return (ssize_t) run.count;
}

/* Store every new cluster that has no place yet. */
static int
store_all (struct op *op)
{
  size_t *idx = op->idx, i, nr = 0, done;
  ssize_t n;

  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_NEW && !op->slots[i].stored)
      idx[nr++] = i;
  for (done = 0; done < nr; done += n) {
    n = store_run (op, idx + done, nr - done);
    if (n < 0)
      return (int) n;
  }
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_FOLLOW)
      op->slots[i].host_idx = op->slots[i].leader->host_idx;
  return 0;
}

/* Tell joiners where the bytes are. */
static void
publish_claims (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;

  for (i = 0; i < op->nr && !op->slots[i].owner; i++)
    ;
  if (i == op->nr)
    return;
  LOCK_FOR_SCOPE (d->lock);
  for (; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->owner || s->claim->state != DEDUP_CLAIM_BUSY)
      continue;
    s->claim->host_idx = s->host_idx;
    if (s->kind == SLOT_CANDIDATE) {
      s->claim->linked = true;   /* the slot's hold becomes the claim's */
      s->claim->held = s->held;
      s->held = false;
    }
    dedup_claim_set_locked (d, s->claim, DEDUP_CLAIM_READY);
  }
}

/* --- join -------------------------------------------------------------------------- */

/* Wait for every joined claim.  An abandoned one, and one whose bytes differ
 * from ours in spite of the hash, leaves the slot new and without a claim. */
static int
join_all (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;
  int r;

  if (dedup_count_slots (op, SLOT_JOIN) == 0)
    return 0;
  lock_acquire (d->lock);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->kind != SLOT_JOIN)
      continue;
    dedup_claim_wait_locked (d, s->claim);
    s->host_idx = s->claim->host_idx;
    if (s->claim->state == DEDUP_CLAIM_ABANDONED)
      s->kind = SLOT_NEW;
  }
  lock_release (d->lock);
  r = compare_found (op, SLOT_JOIN);
  return r < 0 ? r : store_all (op);
}

/* Only for a test that breaks law 2. */
static int
write_too_late (struct op *op)
{
  size_t i;
  int r = 0;

  for (i = 0; i < op->nr && r == 0; i++)
    if (op->slots[i].stored)
      r = io_pwrite (op->d->io, slot_data (op, i), op->d->cluster_size,
                     op->slots[i].host_idx << op->d->cluster_bits);
  return r;
}

/* --- the operation ----------------------------------------------------------------------- */

static int
bring_to_disk (struct op *op)
{
  int r;

  classify (op);
  if ((r = guess (op)) < 0 ||
      (r = hash_new (op)) < 0 ||
      (r = claim_all (op)) < 0)
    return r;
  dedup_probe (op);
  if ((r = dedup_hold_candidates (op, SLOT_CANDIDATE)) < 0 ||
      (r = compare_found (op, SLOT_CANDIDATE)) < 0 ||
      (r = store_all (op)) < 0)
    return r;
  publish_claims (op);
  return join_all (op);
}

/* Links that would pass the refcount limit become clusters of their own. */
static int
link_or_store (struct op *op)
{
  int r;

  while ((r = dedup_link (op)) == -ERANGE)
    if ((r = hash_new (op)) < 0 || (r = store_all (op)) < 0)
      break;
  return r;
}

static void
finish_slot_locked (struct op *op, struct slot *s)
{
  struct dedup_disk *d = op->d;
  struct qcow2_run run = { .host_idx = s->host_idx, .count = 1 };
  bool mine = s->stored && !s->linked;   /* reserved, unused */

  dedup_unhold_slot_locked (op, s);
  if (s->owner && s->claim->state == DEDUP_CLAIM_BUSY)
    dedup_claim_set_locked (d, s->claim, DEDUP_CLAIM_ABANDONED);
  if (s->owner && s->claim->state == DEDUP_CLAIM_READY &&
      s->claim->host_idx == s->host_idx)
    mine = false;                        /* the claim's to give back */
  if (mine && !(s->spare && dedup_spare_put_locked (d, s->host_idx)))
    qcow2_unreserve_locked (d->img, &run);
  if (s->claim)
    dedup_claim_put_locked (&op->txn, d, s->claim);
}

static void
finish (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;

  lock_acquire (d->lock);
  for (i = 0; i < op->nr; i++)
    finish_slot_locked (op, &op->slots[i]);
  dedup_journal_end_locked (d->journal); /* unhold may have freed */
  qcow2_txn_end_locked (&op->txn);
  dedup_count_lookups_locked (op->d, &op->counted);
  dedup_change_end_locked (d);
  lock_release (d->lock);
  dedup_index_view_put (d->index, op->view);
}

static int
run_op (struct op *op)
{
  int r = dedup_wait_for_quarantine (op->d);

  if (r == 0)
    r = dedup_change_begin (op->d);
  if (r < 0)
    return r;
  qcow2_txn_begin (op->d->img, &op->txn);
  r = bring_to_disk (op);
  if (r == 0)
    r = link_or_store (op);
  if (r == 0)
    leave_hints (op);
  if (r == 0 && mutation (MUTATION_LAW_2))
    r = write_too_late (op);
  finish (op);
  return r;
}

int
dedup_write (struct dedup_disk *d, unsigned root, const void *buf,
             uint64_t guest_idx, size_t nr)
{
  struct op op = { .d = d, .root = root, .buf = buf,
                   .guest_idx = guest_idx, .nr = nr };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  qcow2_bitmaps_note (d->img, guest_idx << d->cluster_bits,
                      (uint64_t) nr << d->cluster_bits);
  if (d->direct)
    return dedup_direct_write (d, buf, guest_idx, nr);
  r = dedup_admit (d);
  if (r < 0)
    return r;
  op.zero_entry = dedup_zero_entry (d);
  op.trimmed = true;
  r = dedup_op_alloc (&op);
  if (r == 0)
    r = run_op (&op);
  dedup_op_free (&op);
  return r;
}
