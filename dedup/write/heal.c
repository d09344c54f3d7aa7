/* SPDX-License-Identifier: BSD-3-Clause */
/* Puts bytes that a cluster has lost back into it, when a client writes the same
 * bytes somewhere (docs/on-disk.md section 12).
 *
 * The cluster is written in place: its bytes are wrong in any case, all references
 * to it are right, and a crash leaves it as bad as it was, or good.  So this takes
 * no record.  What must be true is that these are the bytes that it lost: a scrub
 * has found it bad in this session or in one that was closed, so that its hash is
 * that of its last data, and it has had no other data since (DEDUP_BAD_SURE).  The
 * hold keeps that true while it is written.  A cluster that turns out to hold what
 * the index names it for is left alone.
 *
 * The hash must be a cryptographic one.  With another, whoever can make two contents
 * with one hash could choose what others read.
 *
 * The bytes are durable, and were read back from the medium, before the cluster
 * leaves the set of bad ones and can be linked.  A record that links it is not
 * compared by a recovery, and might otherwise be durable before the bytes are.
 *
 * Any thread, inside the gate, without locks.
 */
#include "op.h"

#include <errno.h>

/* A bad cluster that is to be healed. */
struct healing {
  struct op *op;
  const struct dedup_hash *hash;
  uint64_t host_idx;             /* result; 0: there is none */
};

/* Finds a bad cluster that had the hash, and holds it; a qcow2_step.  It is looked
 * for again each time, because the lock may have been released. */
static int
find_locked (struct qcow2_txn *txn, void *opaque)
{
  struct healing *h = opaque;
  const struct dedup_bad_cluster *c;
  int r;

  assert (lock_held (qcow2_lock (txn->img)));
  h->host_idx = 0;
  c = dedup_bad_by_hash_locked (&h->op->w->s->bad, h->hash);
  if (c == NULL)
    return 0;
  r = qcow2_hold_locked (txn, c->host_idx, UINT64_MAX);
  if (r == 0)
    h->host_idx = c->host_idx;
  return r == -ENOENT ? 0 : r;
}

/* Reads the cluster from the medium to BYTES.  Returns whether the index names it
 * for what it holds: then it is good, whatever the note says. */
static bool
is_good (const struct op *op, uint64_t host_idx, uint8_t *bytes)
{
  const struct dedup_base *b = op->w->b;
  struct dedup_hash h;

  return io_pread_medium (b->io, bytes, b->cluster_size,
                          host_idx << b->cluster_bits) == 0 &&
    dedup_hash_compute (&b->hasher, bytes, b->cluster_size, &h) == 0 &&
    dedup_named_for (op->w, &h) == host_idx;
}

/* Writes the bytes of slot I to the cluster, makes them durable, and reads them
 * back to BYTES. */
static int
write_back (const struct op *op, size_t i, uint64_t host_idx, uint8_t *bytes)
{
  const struct dedup_base *b = op->w->b;
  const uint64_t host_off = host_idx << b->cluster_bits;
  int r = io_pwrite (b->io, slot_data (op, i), b->cluster_size, host_off);

  qcow2_expanded_forget (b->img, host_idx, 1);
  if (r == 0 && !mutation (MUTATION_HEAL_NO_SYNC))
    r = dedup_sync (op->w->s);
  if (r == 0)
    r = io_pread_medium (b->io, bytes, b->cluster_size, host_off);
  if (r == 0 && memcmp (bytes, slot_data (op, i), b->cluster_size) != 0)
    r = -EIO;
  return r;
}

/* Makes the cluster hold the bytes of slot I.  1: it is good without that. */
static int
heal_cluster (const struct op *op, size_t i, uint64_t host_idx)
{
  const uint32_t size = op->w->b->cluster_size;
  CLEANUP_FREE uint8_t *bytes =
    aligned_alloc (IO_MEDIUM_ALIGN, round_up_pow2 (size, IO_MEDIUM_ALIGN));

  if (bytes == NULL)
    return -ENOMEM;
  if (!mutation (MUTATION_HEAL_USED_AGAIN) && is_good (op, host_idx, bytes))
    return 1;
  return write_back (op, i, host_idx, bytes);
}

/* Releases the cluster.  R: what heal_cluster returned.  If it failed, the cluster
 * stays bad, and is not tried again in this session, unless memory was short. */
static void
finish (struct healing *h, int r)
{
  struct dedup_writer *w = h->op->w;
  struct dedup_bad_cluster c;
  LOCK_FOR_SCOPE (w->b->lock);
  const struct dedup_bad_cluster *old =
    dedup_bad_find_locked (&w->s->bad, h->host_idx);

  if (old != NULL && r >= 0) {
    (void) dedup_bad_remove_locked (&w->s->bad, h->host_idx, 1);
    w->s->bad.healed += r == 0;
  }
  else if (old != NULL && r != -ENOMEM) {
    c = *old;
    c.flags |= DEDUP_BAD_TRIED;
    (void) dedup_bad_add_locked (&w->s->bad, &c);
  }
  qcow2_unhold_locked (&h->op->txn, h->host_idx);
  dedup_journal_end_locked (w->s->journal);   /* unhold may have freed */
}

static void
tell (const struct op *op, uint64_t host_idx, int r)
{
  const struct dedup_base *b = op->w->b;

  if (r > 0)
    log_line (b->log, LOG_INFO, "%s: the cluster at 0x%llx is not bad", b->path,
              (unsigned long long) host_idx << b->cluster_bits);
  else if (r == 0)
    log_line (b->log, LOG_INFO, "%s: the bad cluster at 0x%llx was healed",
              b->path, (unsigned long long) host_idx << b->cluster_bits);
  else
    log_line (b->log, LOG_ERROR, "%s: the bad cluster at 0x%llx cannot be "
              "healed: %s", b->path,
              (unsigned long long) host_idx << b->cluster_bits, strerror (-r));
}

/* Heals the bad clusters that had the bytes of slot I. */
static int
heal_slot (struct op *op, size_t i)
{
  struct healing h = { .op = op, .hash = &op->slots[i].hash };
  int r;

  do {
    r = qcow2_txn_retry (&op->txn, find_locked, &h);
    if (r < 0 || h.host_idx == 0)
      break;
    r = heal_cluster (op, i, h.host_idx);
    finish (&h, r);
    tell (op, h.host_idx, r);
  } while (r >= 0);
  return r == -ENOMEM ? r : dedup_gate_failed (&op->w->s->gate);
}

bool
dedup_may_heal (const struct op *op)
{
  return dedup_bad_any_sure (&op->w->s->bad) &&
    dedup_hash_is_strong (op->w->b->hasher.alg);
}

int
dedup_heal (struct op *op)
{
  size_t i;
  int r = 0;

  if (!dedup_may_heal (op))
    return 0;
  for (i = 0; i < op->nr && r == 0; i++)
    if (op->slots[i].hashed && op->slots[i].kind == SLOT_NEW)
      r = heal_slot (op, i);
  return r;
}
