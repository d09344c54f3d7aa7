/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading the journal back: hash entries into the log stores, and after a
 * crash the mapping records into the tables (docs/on-disk.md section 5).
 *
 * Two passes over the blocks: the first finds the journal's end and D, the
 * highest number known durable; the second takes the groups in order.  Past
 * D the data may not have reached the disk, so each new cluster is compared
 * with its record, and the first group that fails ends the replay.
 *
 * The first pass looks behind the end as well: a block that rotted looks like
 * the end, and only later ones know that it was durable.
 *
 * Groups that a replay refused may stand behind others in a block that stays:
 * the configuration says how much of such a block counts (a cut), or the
 * index would learn from it later what never happened.
 *
 * Single threaded, at open.  Changes tables in memory only; a writable open
 * also writes again what lies past D, and the caller syncs it before any
 * table is written.
 */
#include "aligned.h"
#include "disk.h"

#include <errno.h>
#include <inttypes.h>

/* No operation has more: 512 clusters of 8 records, a slice of a pack, or the
 * plan of a new store, whose areas are bounded too. */
#define MAX_GROUP (1u << 20)

struct replay {
  struct dedup_disk *d;
  bool mapping;               /* apply mapping records */
  uint64_t durable;           /* D */
  uint64_t next;              /* block after the last group taken */
  struct dedup_cut taken;     /* where that group ended */
  uint32_t epoch;             /* of the block before */
  uint64_t file_clusters;     /* the last may be partial */
  uint8_t *cluster;           /* scratch: one cluster */

  /* The group being collected: */
  struct dedup_record *group;
  size_t nr, max;
  struct fault *fault;
};

/* --- first pass ------------------------------------------------------------- */

static int
see_block (void *opaque, const struct dedup_journal_block *b)
{
  struct replay *rp = opaque;

  rp->durable = MAX_OF (rp->durable, b->known_durable);
  return 0;
}

/* --- one group ---------------------------------------------------------------- */

/* Are the bytes that a HASH or WRITE record speaks of there? */
static int
data_is_there (struct replay *rp, const struct dedup_record *rec)
{
  struct dedup_disk *d = rp->d;
  struct dedup_hash h;
  int r;

  if (rec->host_idx >= rp->file_clusters)
    return 0;                   /* not written, or the file would reach it */
  r = io_pread (d->io, rp->cluster, d->cluster_size,
                rec->host_idx << d->cluster_bits);
  if (r < 0)
    return r;
  if (rec->type == DEDUP_REC_WRITE)
    return dedup_checksum (rp->cluster, d->cluster_size) == rec->checksum;
  r = dedup_hash_compute (&d->hasher, rp->cluster, d->cluster_size, &h);
  return r < 0 ? r : dedup_hash_equal (&h, &rec->hash);
}

/* What lies past D may be in the host's cache only, and there, after a sync
 * that failed in the last session, look as if it were written: it must be
 * written again before the tables say the same (law 3). */
static int
rewrite_data (struct replay *rp, const struct dedup_record *rec)
{
  struct dedup_disk *d = rp->d;

  return !d->writable ? 0
    : io_pwrite (d->io, rp->cluster, d->cluster_size,
                 rec->host_idx << d->cluster_bits);
}

static int
rewrite_block (struct replay *rp, const struct dedup_journal_area *a,
               uint64_t seq)
{
  uint64_t host_off = a->host_off + (seq - a->first_seq) * DEDUP_BLOCK_SIZE;
  CACHE_ALIGNED uint8_t buf[DEDUP_BLOCK_SIZE];
  int r = io_pread (rp->d->io, buf, sizeof buf, host_off);

  return r < 0 ? r : io_pwrite (rp->d->io, buf, sizeof buf, host_off);
}

/* The same for the journal's blocks from D to END. */
static int
rewrite_blocks (struct replay *rp, uint64_t end)
{
  const struct dedup_config *c = rp->d->config;
  uint64_t seq;
  uint32_t i;
  int r = 0;

  for (i = 0; i < c->nr_areas && r == 0 && rp->d->writable; i++) {
    const struct dedup_journal_area *a = &c->areas[i];

    for (seq = MAX_OF (a->first_seq, rp->durable + 1);
         seq < MIN_OF (a->first_seq + a->nr_blocks, end) && r == 0; seq++)
      r = rewrite_block (rp, a, seq);
  }
  return r;
}

/* 1: all data of the group is there. */
static int
verify_group (struct replay *rp)
{
  size_t i;
  int r;

  for (i = 0; i < rp->nr; i++) {
    const struct dedup_record *rec = &rp->group[i];

    if (rec->type != DEDUP_REC_HASH && rec->type != DEDUP_REC_WRITE)
      continue;
    r = data_is_there (rp, rec);
    if (r == 1 && (r = rewrite_data (rp, rec)) == 0)
      continue;
    return r;
  }
  return 1;
}

static int
apply_change (struct replay *rp, struct qcow2_txn *txn,
              const struct qcow2_change *c)
{
  struct dedup_disk *d = rp->d;
  int r;

  for (;;) {
    lock_acquire (d->lock);
    r = qcow2_apply_locked (txn, c);
    lock_release (d->lock);
    if (r != -EAGAIN)
      break;
    r = qcow2_txn_load (txn);
    if (r < 0)
      break;
  }
  if (r == -EINVAL)
    return fault_corrupt (rp->fault, UINT64_MAX, "the journal has a record "
                          "that contradicts the image");
  return r < 0 ? fault_io (rp->fault, -r, UINT64_MAX, "reading tables: %s",
                           strerror (-r)) : 0;
}

/* HASH and WRITE stand for two changes. */
static int
apply_new_cluster (struct replay *rp, struct qcow2_txn *txn,
                   const struct dedup_record *rec)
{
  struct qcow2_change ref = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = rec->host_idx, .count = 1,
    .refcount = 2, .anchored = true,
  };
  struct qcow2_change link = {
    .type = QCOW2_CHANGE_L2, .root = rec->root, .count = 1,
    .guest_idx = rec->guest_idx,
    .entry = rec->host_idx << rp->d->cluster_bits,
  };
  int r;

  r = apply_change (rp, txn, &ref);
  return r < 0 ? r : apply_change (rp, txn, &link);
}

static int
apply_record (struct replay *rp, struct qcow2_txn *txn,
              const struct dedup_record *rec)
{
  switch (rec->type) {
  case DEDUP_REC_HASH:
  case DEDUP_REC_WRITE:
    return apply_new_cluster (rp, txn, rec);
  case DEDUP_REC_L2:
  case DEDUP_REC_REFCOUNT:
  case DEDUP_REC_L2TABLE:
  case DEDUP_REC_REFBLOCK:
  case DEDUP_REC_ANCHORTABLE:
  case DEDUP_REC_HEADER:
  case DEDUP_REC_BITMAP:
    return apply_change (rp, txn, &rec->change);
  default:
    return 0;
  }
}

static int
apply_group (struct replay *rp)
{
  struct qcow2_txn txn;
  size_t i;
  int r = 0;

  qcow2_txn_begin (rp->d->img, &txn);
  for (i = 0; i < rp->nr && r == 0; i++)
    r = apply_record (rp, &txn, &rp->group[i]);
  qcow2_txn_end (&txn);
  return r;
}

/* The log store is set aside as it was at block SEQ.  The first block read may
 * start with the FREEZE that ended what is in incarnations by now.
 *
 * Where the journal was packed, entries come in another order than they came
 * first, and others may find no place.  What was spilled then was logged again
 * behind FREEZE; what was not goes to the next log store, and has to be. */
static void
replay_freeze (struct dedup_disk *d, uint64_t seq)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t i, nr;

  if (dedup_index_frozen_locked (d->index) ||
      dedup_index_empty_locked (d->index))
    return;
  if (dedup_index_set_aside_locked (d->index, seq, spilled, &nr) < 0) {
    log_line (d->log, LOG_DEBUG, "%s: out of memory: part of the index "
              "is lost", d->path);
    d->config->flags &= ~DEDUP_CONFIG_EXACT;
    return;
  }
  for (i = 0; i < nr; i++)
    dedup_index_insert_locked (d->index, &spilled[i].hash, spilled[i].value);
  d->index_damaged = d->index_damaged || nr > 0;
}

/* Hash entries of a group in block SEQ into the log store. */
static void
index_group (struct replay *rp, uint64_t seq)
{
  struct dedup_disk *d = rp->d;
  size_t i;

  LOCK_FOR_SCOPE (d->lock);
  for (i = 0; i < rp->nr; i++) {
    const struct dedup_record *rec = &rp->group[i];

    switch (rec->type) {
    case DEDUP_REC_HASH:
    case DEDUP_REC_INDEX:
      dedup_index_insert_locked (d->index, &rec->hash, rec->host_idx);
      break;
    case DEDUP_REC_DELETE:
      dedup_index_insert_locked (d->index, &rec->hash, DEDUP_DELETED);
      break;
    case DEDUP_REC_FREEZE:
      replay_freeze (d, seq);
      break;
    default:
      break;
    }
  }
}

/* The group is complete in block SEQ.  0, or 1 to end the replay. */
static int
take_group (struct replay *rp, uint64_t seq)
{
  struct dedup_config *c = rp->d->config;
  int r;

  if (rp->mapping && seq >= c->checkpoint) {
    r = seq > rp->durable && !mutation (MUTATION_TRUST_ALL)
      ? verify_group (rp) : 1;
    if (r < 0)
      return fault_io (rp->fault, -r, UINT64_MAX, "recovering data: %s",
                       strerror (-r));
    if (r == 0)
      return 1;
    r = apply_group (rp);
    if (r < 0)
      return r;
  }
  if (seq >= c->index_start)
    index_group (rp, seq);
  rp->next = MAX_OF (rp->next, seq + 1);
  return 0;
}

/* --- cuts ------------------------------------------------------------------------ */

/* How many bytes of block B's records count? */
static size_t
counted_len (const struct dedup_config *c, const struct dedup_journal_block *b)
{
  uint32_t i;

  for (i = 0; i < c->nr_cuts; i++)
    if (c->cuts[i].seq == b->seq)
      return MIN_OF (b->len, c->cuts[i].len - DEDUP_BLOCK_HEADER);
  return b->len;
}

void
dedup_forget_cuts (struct dedup_config *c, uint64_t below)
{
  uint32_t i, n = 0;

  for (i = 0; i < c->nr_cuts; i++)
    if (c->cuts[i].seq >= below)
      c->cuts[n++] = c->cuts[i];
  c->nr_cuts = n;
}

/* Remember where the last group that was taken ended; a recovery that was cut
 * off may have done so before.  Too many cuts: the oldest goes, from long
 * before the checkpoint, which costs ratio. */
static void
add_cut (struct replay *rp)
{
  struct dedup_config *c = rp->d->config;

  if (rp->taken.seq == 0)
    return;
  dedup_forget_cuts (c, c->index_start);
  while (c->nr_cuts > 0 && c->cuts[c->nr_cuts - 1].seq >= rp->taken.seq)
    c->nr_cuts--;
  if (c->nr_cuts == DEDUP_MAX_CUTS)
    dedup_forget_cuts (c, c->cuts[0].seq + 1);
  c->cuts[c->nr_cuts++] = rp->taken;
}

/* --- second pass ----------------------------------------------------------------- */

static int
collect (struct replay *rp, const struct dedup_record *rec)
{
  struct dedup_record *p;
  size_t max;

  if (rec->type == DEDUP_REC_NONE)
    return 0;
  if (rp->nr == MAX_GROUP)
    return fault_corrupt (rp->fault, UINT64_MAX, "an operation in the journal "
                          "has too many records");
  if (rp->nr == rp->max) {
    max = rp->max ? rp->max * 2 : 256;
    p = realloc (rp->group, max * sizeof *p);
    if (p == NULL)
      return fault_io (rp->fault, ENOMEM, UINT64_MAX, "out of memory");
    rp->group = p;
    rp->max = max;
  }
  rp->group[rp->nr++] = *rec;
  return 0;
}

/* A group that a crash cut off has no END: what follows it, of a later epoch,
 * is no part of it. */
static int
take_block (void *opaque, const struct dedup_journal_block *b)
{
  struct replay *rp = opaque;
  struct dedup_record rec;
  size_t pos = 0, len = counted_len (rp->d->config, b);
  int n, r;

  if (b->epoch != rp->epoch)
    rp->nr = 0;
  rp->epoch = b->epoch;
  while (pos < len) {
    n = dedup_record_decode (b->records + pos, len - pos, &rec);
    if (n < 0)                  /* checked when the block was read */
      return -EIO;
    pos += (size_t) n;
    if (rec.type != DEDUP_REC_END) {
      r = collect (rp, &rec);
      if (r < 0)
        return r;
      continue;
    }
    r = take_group (rp, b->seq);
    rp->nr = 0;
    if (r != 0)
      return r;
    rp->taken = (struct dedup_cut) { b->seq,
                                     (uint32_t) (DEDUP_BLOCK_HEADER + pos) };
  }
  return 0;
}

static int
check_reach (struct replay *rp, uint64_t end)
{
  if (end > rp->durable)
    return 0;
  return fault_corrupt (rp->fault, UINT64_MAX, "part of the journal is "
                        "missing: it ends at block %" PRIu64 ", but block "
                        "%" PRIu64 " was durable", end,
                        rp->durable);
}

/* A later block may know that what looks like the journal's END was durable;
 * or that this is not the configuration it was written under. */
static int
look_behind (struct replay *rp, uint64_t end)
{
  const struct dedup_journal_place place = dedup_config_place (rp->d->config);
  struct dedup_journal_rest rest;
  int r;

  if (mutation (MUTATION_NO_LOOK_BEHIND))
    return 0;
  r = dedup_journal_rest (rp->d->io, &place, end, &rest);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "reading the journal: %s",
                     strerror (-r));
  if (rest.newer)
    return fault_corrupt (rp->fault, UINT64_MAX, "the dedup store's "
                          "configuration is older than its journal");
  rp->durable = MAX_OF (rp->durable, rest.durable);
  return 0;
}

/* What lies below the checkpoint is index only, and advice: where it cannot
 * be read, the index is poorer and no more. */
static int
read_index (struct replay *rp)
{
  struct dedup_config *c = rp->d->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  uint64_t end;
  int r;

  if (c->index_start >= c->checkpoint)
    return 0;
  r = dedup_journal_read (rp->d->io, &place, c->index_start, c->checkpoint,
                          take_block, rp, &end);
  rp->nr = 0;
  if (r == -ENOMEM)
    return fault_io (rp->fault, ENOMEM, UINT64_MAX, "out of memory");
  if (r == 0 && end == c->checkpoint)
    return 0;
  c->flags &= ~DEDUP_CONFIG_EXACT;   /* tombstones may be lost */
  rp->d->index_damaged = true;
  log_line (rp->d->log, LOG_ERROR, "%s: part of the journal cannot be read: "
            "some of the index is lost", rp->d->path);
  return 0;
}

/* From the checkpoint on, every record counts. */
static int
read_mapping (struct replay *rp)
{
  struct dedup_config *c = rp->d->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  uint64_t end;
  int r;

  r = dedup_journal_read (rp->d->io, &place, c->checkpoint, UINT64_MAX, see_block,
                          rp, &end);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "reading the journal: %s",
                     strerror (-r));
  r = look_behind (rp, end);
  if (r == 0)
    r = check_reach (rp, end);
  if (r < 0)
    return r;
  r = rewrite_blocks (rp, end);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "writing the journal: %s",
                     strerror (-r));
  rp->taken.seq = 0;            /* what is below the checkpoint stays */
  qcow2_replay_begin (rp->d->img);
  r = dedup_journal_read (rp->d->io, &place, c->checkpoint, end, take_block, rp,
                          &end);
  if (r == 0)
    r = qcow2_replay_end (rp->d->img);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "replaying the journal: %s",
                     strerror (-r));
  if (!mutation (MUTATION_NO_CUT))
    add_cut (rp);
  return 0;
}

/* More recoveries, and parts of the index, than came after what is lost. */
#define EPOCH_LEAP 65536

int
dedup_renew_epoch (struct dedup_disk *d, uint64_t next, bool *renewed,
                   struct fault *f)
{
  struct dedup_config *c = d->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  struct dedup_journal_rest rest;
  int r;

  r = dedup_journal_newer (d->io, &place, next, renewed);
  if (mutation (MUTATION_OLD_EPOCH) || mutation (MUTATION_LAW_1_NO_SYNC))
    *renewed = false;
  if (r == 0 && *renewed)
    r = dedup_journal_rest (d->io, &place, c->areas[0].first_seq, &rest);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "reading the journal: %s",
                     strerror (-r));
  if (!*renewed)
    return 0;
  if (rest.epoch > UINT32_MAX - EPOCH_LEAP)
    return fault_corrupt (f, UINT64_MAX, "the journal has an epoch that is out "
                          "of range");
  log_line (d->log, LOG_ERROR, "%s: the dedup store's configuration is older "
            "than its journal: some of the index is lost", d->path);
  c->epoch = rest.epoch + EPOCH_LEAP;
  c->epoch_start = next;
  dedup_index_skip_ids (d->index, EPOCH_LEAP);   /* never used twice */
  c->flags &= ~DEDUP_CONFIG_EXACT;
  return 0;
}

int
dedup_replay (struct dedup_disk *d, bool replay, uint64_t *next,
              struct fault *f)
{
  struct replay rp = { .d = d, .mapping = replay, .fault = f };
  int64_t size = io_size (d->io);
  int r;

  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "size: %s",
                     strerror ((int) -size));
  rp.file_clusters = div_round_up ((uint64_t) size, d->cluster_size);
  rp.cluster = aligned_new (d->cluster_size);
  if (rp.cluster == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  /* On a clean image a recovery's first configuration, with a checkpoint from
   * before it, is an old one that came back. */
  if (!replay)
    d->config->checkpoint = d->checkpoint =
      MAX_OF (d->config->checkpoint, d->config->epoch_start);
  rp.durable = MAX_OF (d->config->checkpoint, d->config->epoch_start) - 1;
  rp.next = d->config->checkpoint;
  r = read_index (&rp);
  if (r == 0 && replay)
    r = read_mapping (&rp);
  *next = rp.next;
  free (rp.group);
  free (rp.cluster);
  return r;
}
