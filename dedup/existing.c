/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexing what an image holds already, and sharing what is in it twice
 * (docs/on-disk.md section 8).
 *
 * One operation takes a range of guest clusters and does what a write of their
 * own content would do, but for the writing: what is new to the index stays
 * where it is and is anchored there; what the index knows elsewhere is
 * linked to that, and its own cluster dropped; zeroes are unmapped.  It is the
 * pipeline of write.c with its candidates and its link step, and without
 * claims: a client that writes equal content meanwhile may store it once more,
 * which costs ratio only.
 *
 * The caller keeps requests off the range, so L2 entries stay as they were
 * found, and with them the references that keep the clusters from being freed.
 * Their bytes never change: nobody writes over a cluster with a reference.
 *
 * A cluster that cannot be read, or that the tables contradict, is left as it
 * is, and counted.
 */
#include "aligned.h"
#include "write.h"

#include <errno.h>

/* Entries that no whole cluster of data belongs to, or a compressed one. */
#define LEFT_ALONE (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO | QCOW2_L2_PARTIAL)

/* --- what is there ------------------------------------------------------------- */

/* Judge slot I's cluster: to be indexed (s->at), or left alone.  Needs
 * the lock. */
static int
look_at (struct op *op, size_t i, bool all, struct dedup_existing *res)
{
  const struct qcow2_geometry *g = qcow2_geometry (op->d->img);
  struct slot *s = &op->slots[i];
  uint64_t entry, host_idx, refcount;
  bool anchored;
  int r;

  s->kind = SLOT_KEEP;
  r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i, &entry);
  if (r < 0)
    return r;
  host_idx = (entry & QCOW2_OFFSET_MASK) >> op->d->cluster_bits;
  if ((entry & LEFT_ALONE) || host_idx == 0)
    return 0;
  r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount, &anchored);
  if (r < 0)
    return r;
  if (anchored && !all) {
    res->known++;
    return 0;
  }
  if ((entry & ~(QCOW2_OFFSET_MASK | QCOW2_L2_COPIED)) != 0 ||
      (entry & QCOW2_OFFSET_MASK) % g->cluster_size != 0 ||
      refcount < (anchored ? 2 : 1) ||
      qcow2_guarded_locked (op->d->img, host_idx, 1)) {
    res->bad++;
    return 0;
  }
  if (!anchored && refcount == g->refcount_max)
    return 0;                   /* no room for the anchor's reference */
  s->kind = SLOT_NEW;
  s->at = host_idx;
  s->anchored = anchored;
  return 0;
}

static int
look_at_all (struct op *op, bool all, struct dedup_existing *res)
{
  struct lock *l = op->d->lock;
  size_t i = 0;
  int r = 0;

  lock_acquire (l);
  while (i < op->nr && r == 0) {
    r = look_at (op, i, all, res);
    if (r == -EAGAIN) {
      lock_release (l);
      r = qcow2_txn_load (&op->txn);
      lock_acquire (l);
    }
    else if (r == 0)
      i++;
  }
  lock_release (l);
  return r;
}

/* --- its bytes ------------------------------------------------------------------- */

/* Slots from I that are to be indexed and lie one behind the other. */
static size_t
run_from (const struct op *op, size_t i)
{
  size_t n = 1;

  while (i + n < op->nr && op->slots[i + n].at == op->slots[i].at + n)
    n++;
  return n;
}

static bool
read_run (struct op *op, uint8_t *buf, size_t i, size_t n)
{
  struct dedup_disk *d = op->d;

  return io_pread (d->io, buf + i * d->cluster_size, n * d->cluster_size,
                   op->slots[i].at << d->cluster_bits) == 0;
}

/* Read the run of N slots from I; where that fails, one by one. */
static void
read_slots (struct op *op, uint8_t *buf, size_t i, size_t n,
            struct dedup_existing *res)
{
  size_t k;

  if (read_run (op, buf, i, n))
    return;
  for (k = i; k < i + n; k++)
    if (!read_run (op, buf, k, 1)) {
      op->slots[k].kind = SLOT_KEEP;
      op->slots[k].at = 0;
      res->bad++;
    }
}

/* Begin to read all runs, so that they are not waited for one by one.  Where
 * memory is short that is left out. */
static void
announce_all (struct op *op)
{
  struct dedup_disk *d = op->d;
  CLEANUP_FREE struct io_part *v = malloc (op->nr * sizeof *v);
  size_t i, n, nr = 0;

  for (i = 0; i < op->nr && v != NULL; i += n) {
    n = 1;
    if (op->slots[i].at == 0)
      continue;
    n = run_from (op, i);
    v[nr++] = (struct io_part) { .len = n * d->cluster_size,
                                 .host_off = op->slots[i].at
                                   << d->cluster_bits };
  }
  (void) io_will_need (d->io, v, nr, true);
}

static void
read_all (struct op *op, uint8_t *buf, struct dedup_existing *res)
{
  size_t i, n;

  announce_all (op);
  for (i = 0; i < op->nr; i += n) {
    n = 1;
    if (op->slots[i].at == 0)
      continue;
    n = run_from (op, i);
    read_slots (op, buf, i, n, res);
  }
}

static int
hash_all (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;
  int r;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->at == 0)
      continue;
    if (is_zero (slot_data (op, i), d->cluster_size)) {
      s->kind = SLOT_ZERO;
      continue;
    }
    r = dedup_hash_slot (op, i);
    if (r < 0)
      return r;
  }
  return 0;
}

/* --- where else they are ------------------------------------------------------------ */

/* The index names this very cluster.  If it is anchored there is nothing to
 * do; else the entry is one of an earlier life of it. */
static void
found_itself (struct slot *s)
{
  s->kind = s->anchored ? SLOT_KEEP : SLOT_NEW;
}

static void
look_up_all (struct op *op)
{
  struct dedup_disk *d = op->d;
  size_t i;

  LOCK_FOR_SCOPE (d->lock);
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].hashed)
      dedup_index_prefetch_locked (d->index, &op->slots[i].hash);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->hashed)
      continue;
    dedup_look_up_locked (op, s);
  }
  if (op->probes)
    op->view = dedup_index_view_locked (d->index);
}

static int
find_candidates (struct op *op)
{
  size_t i, others;
  int r;

  look_up_all (op);
  dedup_probe (op);
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_CANDIDATE &&
        op->slots[i].host_idx == op->slots[i].at)
      found_itself (&op->slots[i]);
  r = dedup_hold_candidates (op, SLOT_CANDIDATE);
  if (r < 0)
    return r;
  return dedup_compare_candidates (op, SLOT_CANDIDATE, &others);
}

#define NR_SEATS (2 * DEDUP_CHUNK_CLUSTERS)   /* power of two, half empty */

/* Of new slots with equal content the first leads and the others follow. */
static int
find_leaders (struct op *op)
{
  CLEANUP_FREE struct slot **seats = calloc (NR_SEATS, sizeof *seats);
  size_t i, at, size = op->d->cluster_size;

  if (seats == NULL)
    return -ENOMEM;
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i], *other;

    if (s->kind != SLOT_NEW)
      continue;
    at = dedup_hash_word (&s->hash, 0) % NR_SEATS;
    while ((other = seats[at]) != NULL &&
           !dedup_hash_equal (&other->hash, &s->hash))
      at = (at + 1) % NR_SEATS;
    if (other == NULL)
      seats[at] = s;
    else if (memcmp (slot_data (op, (size_t) (other - op->slots)),
                     slot_data (op, i), size) == 0) {
      s->kind = SLOT_FOLLOW;
      s->leader = other;
    }
  }
  return 0;
}

/* --- the operation -------------------------------------------------------------------- */

/* What is new stays where it is. */
static void
assign_places (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->kind == SLOT_NEW)
      s->host_idx = s->at;
    else if (s->kind == SLOT_FOLLOW)
      s->host_idx = s->leader->host_idx;
  }
}

static int
link_all (struct op *op)
{
  int r;

  do {
    assign_places (op);
    r = dedup_link (op);
  } while (r == -ERANGE);
  return r;
}

static void
count_result (const struct op *op, struct dedup_existing *res)
{
  size_t i;

  for (i = 0; i < op->nr; i++) {
    const struct slot *s = &op->slots[i];

    if (s->at == 0)
      continue;
    if (s->kind == SLOT_KEEP || (s->skip && s->kind != SLOT_NEW))
      res->known++;
    else if (s->kind == SLOT_ZERO)
      res->zeroed++;
    else if (s->kind == SLOT_NEW)
      res->indexed++;
    else
      res->linked++;
  }
}

static void
let_go (struct op *op)
{
  size_t i;

  lock_acquire (op->d->lock);
  for (i = 0; i < op->nr; i++)
    dedup_unhold_slot_locked (op, &op->slots[i]);
  dedup_journal_end_locked (op->d->journal);   /* unhold may have freed */
  qcow2_txn_end_locked (&op->txn);
  dedup_count_lookups_locked (op->d, &op->counted);
  lock_release (op->d->lock);
  dedup_index_view_put (op->d->index, op->view);
}

static int
index_range (struct op *op, uint8_t *buf, bool all,
             struct dedup_existing *res)
{
  int r;

  r = look_at_all (op, all, res);
  if (r < 0)
    return r;
  read_all (op, buf, res);
  if ((r = hash_all (op)) < 0 ||
      (r = find_candidates (op)) < 0 ||
      (r = find_leaders (op)) < 0 ||
      (r = link_all (op)) < 0)
    return r;
  count_result (op, res);
  return 0;
}

int
dedup_existing_index (struct dedup_disk *d, uint64_t guest_idx, size_t nr,
                      bool all, struct dedup_existing *res)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (nr * d->cluster_size);
  struct op op = { .d = d, .root = QCOW2_ROOT_ACTIVE, .buf = buf,
                   .guest_idx = guest_idx, .nr = nr,
                   .zero_entry = dedup_zero_entry (d), .trimmed = true };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  r = dedup_op_alloc (&op);
  if (r == 0)
    r = buf == NULL ? -ENOMEM : dedup_admit (d);
  if (r == 0)
    r = dedup_change_begin (d);
  if (r == 0) {
    qcow2_txn_begin (d->img, &op.txn);
    r = index_range (&op, buf, all, res);
    let_go (&op);
    dedup_change_end (d);
  }
  dedup_op_free (&op);
  return r;
}

/* --- what to look at next ----------------------------------------------------------------- */

#define EXTENTS 16
#define MAP_BYTES (UINT64_C (1) << 30)

static size_t
chunk_clusters (const struct dedup_disk *d)
{
  return MAX_OF (1, MIN_OF (DEDUP_CHUNK_BYTES >> d->cluster_bits,
                            DEDUP_CHUNK_CLUSTERS));
}

int
dedup_existing_next (struct dedup_disk *d, uint64_t *guest_idx, size_t *nr,
                     struct dedup_existing *res)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->img);
  struct qcow2_extent ext[EXTENTS];
  uint64_t at;
  int n, i;

  if (!d->has_store || !d->writable || !d->dedup)
    return -ENOTSUP;
  while (*guest_idx < g->nr_clusters) {
    at = *guest_idx << d->cluster_bits;
    n = qcow2_map (d->img, QCOW2_ROOT_ACTIVE, at,
                   MIN_OF (MAP_BYTES, g->virtual_size - at), ext, EXTENTS);
    if (n == -EIO) {            /* an entry that cannot be: said in the log */
      res->bad++;
      ++*guest_idx;
      continue;
    }
    if (n < 0)
      return n;
    for (i = 0; i < n && ext[i].kind != QCOW2_DATA; i++)
      ;
    if (i < n) {
      *guest_idx = ext[i].guest_off >> d->cluster_bits;
      *nr = (size_t) MIN_OF (chunk_clusters (d), g->nr_clusters - *guest_idx);
      return 1;
    }
    *guest_idx = div_round_up (ext[n - 1].guest_off + ext[n - 1].len,
                               d->cluster_size);
  }
  return 0;
}
