/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the journal back: hash entries into the log stores, and after a crash
 * the mapping records into the tables (docs/on-disk.md section 5).
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
 * the configuration says how much of such a block counts (a cut).  Without it
 * the index would later take entries from groups that never happened.
 *
 * One thread, at open.  Changes tables in memory only; a writable open also
 * writes again the data and blocks past D, and the caller syncs them before any
 * table is written.
 */
#include "aligned.h"
#include "pool.h"
#include "value.h"

#include <errno.h>
#include <inttypes.h>

/* No operation has more: 512 clusters of 8 records, a slice of a pack, or the
 * plan of a new store, whose areas are bounded too. */
#define MAX_GROUP (1u << 20)

/* Data of contiguous clusters is read, and written again, by so many bytes at once: on an
 * image that lies elsewhere each call takes a round trip. */
#define RUN_BYTES (256u << 10)

struct replay {
  struct dedup_store *s;
  bool mapping;               /* apply mapping records */
  uint64_t durable;           /* D */
  uint64_t next;              /* block after the last group taken */
  struct dedup_cut taken;     /* where that group ended */
  uint32_t epoch;             /* of the block before */
  uint64_t file_clusters;     /* the last may be partial */
  uint8_t *cluster;           /* scratch: one cluster */
  uint8_t *run_bytes;         /* scratch: RUN_BYTES, or one cluster if that is more */

  /* The group being collected: */
  struct dedup_record *group;
  size_t nr, max;
  struct fault *fault;
};

/* --- first pass --------------------------------------------------------- */

static int
see_block (void *opaque, const struct dedup_journal_block *b)
{
  struct replay *rp = opaque;

  rp->durable = MAX_OF (rp->durable, b->known_durable);
  return 0;
}

/* --- one group ---------------------------------------------------------- */

/* Returns 1 if the cluster BYTES has those of the record's hash, 0 if not, or -errno. */
static int
has_hash (struct replay *rp, const struct dedup_record *rec, const uint8_t *bytes)
{
  const struct dedup_base *b = rp->s->b;
  struct dedup_hash h;
  int r = dedup_hash_compute (&b->hasher, bytes, b->cluster_size, &h);

  return r < 0 ? r : dedup_hash_equal (&h, &rec->hash);
}

/* Finds the whole sectors that compressed data lies in.  Returns false if no such
 * data can be there. */
static bool
packed_sectors (const struct replay *rp, const struct dedup_record *rec,
                uint64_t *host_off, uint64_t *len)
{
  uint64_t first, count, at;

  qcow2_entry_clusters (rp->s->b->img, rec->host_idx, &first, &count);
  if (first == 0 || first + count > rp->file_clusters)
    return false;
  qcow2_compressed_extent (rp->s->b->img, rec->host_idx, &at, len);
  *host_off = round_down_pow2 (at, DEDUP_SECTOR);
  *len += at - *host_off;
  return true;
}

/* Compares compressed data with its record and, if it is there, writes its sectors
 * again, as verify_run does.  They have no data of a durable record (law 16), but
 * where two operations stored the same data; and the same bytes are written there.  The
 * medium may write larger blocks as a whole than the one that the data was written to,
 * from which the image may have been copied: then such a block has other data, too, which
 * is written again as it is. */
static int
packed_is_there (struct replay *rp, const struct dedup_record *rec)
{
  const struct dedup_base *b = rp->s->b;
  CLEANUP_FREE uint8_t *in = NULL;
  uint64_t host_off, len, at, n;
  int r;

  if (!packed_sectors (rp, rec, &host_off, &len))
    return 0;
  in = aligned_new (len);       /* at most two clusters and a sector */
  if (in == NULL)
    return -ENOMEM;
  r = io_pread (b->io, in, len, host_off);
  if (r < 0)
    return r;
  qcow2_compressed_extent (b->img, rec->host_idx, &at, &n);
  r = qcow2_compressed_expand (b->img, in + (at - host_off), n, rp->cluster);
  if (r < 0)
    return r == -EIO ? 0 : r;
  r = has_hash (rp, rec, rp->cluster);
  if (r != 1 || !b->writable)
    return r;
  r = io_pwrite (b->io, in, len, host_off);
  return r < 0 ? r : 1;
}

/* Records of new data, whose clusters follow each other. */
struct run {
  size_t first, nr;           /* the record that begins it, in the group; clusters */
  uint64_t host_idx;
};

static bool
is_plain (const struct dedup_record *rec)
{
  return dedup_record_is_new_data (rec) && !dedup_record_is_packed (rec);
}

/* Returns 1 if BYTES are those of the record, 0 if not, or -errno. */
static int
matches (struct replay *rp, const struct dedup_record *rec, const uint8_t *bytes)
{
  if (rec->type == DEDUP_REC_WRITE || rec->type == DEDUP_REC_WRITEAT)
    return dedup_checksum (bytes, rp->s->b->cluster_size) == rec->checksum;
  return has_hash (rp, rec, bytes);
}

/* Compares the clusters of a run with their records. */
static int
run_matches (struct replay *rp, const struct run *run)
{
  const uint8_t *bytes = rp->run_bytes;
  size_t i, left;
  int r = 1;

  for (i = run->first, left = run->nr; left > 0 && r == 1; i++)
    if (is_plain (&rp->group[i])) {
      r = matches (rp, &rp->group[i], bytes);
      bytes += rp->s->b->cluster_size;
      left--;
    }
  return r;
}

/* Returns 1 if the clusters of RUN hold the bytes of their records, 0 if not, or -errno.
 * If so, they are written again: data past D may be in the host's cache only, where after
 * a sync that failed in the last session it looks as if it were written, and it must be
 * durable before the tables refer to it (law 3). */
static int
verify_run (struct replay *rp, const struct run *run)
{
  const struct dedup_base *b = rp->s->b;
  const uint64_t host_off = run->host_idx << b->cluster_bits;
  const size_t len = run->nr << b->cluster_bits;
  int r;

  if (run->nr == 0)
    return 1;
  if (run->host_idx >= rp->file_clusters || run->nr > rp->file_clusters - run->host_idx)
    return 0;                   /* not written, or the file would reach it */
  r = io_pread (b->io, rp->run_bytes, len, host_off);
  if (r == 0)
    r = run_matches (rp, run);
  if (r != 1 || !b->writable)
    return r;
  r = io_pwrite (b->io, rp->run_bytes, len, host_off);
  return r < 0 ? r : 1;
}

static int
rewrite_block (struct replay *rp, const struct dedup_journal_area *a,
               uint64_t seq)
{
  uint64_t host_off = a->host_off + (seq - a->first_seq) * DEDUP_BLOCK_SIZE;
  CACHE_ALIGNED uint8_t buf[DEDUP_BLOCK_SIZE];
  int r = io_pread (rp->s->b->io, buf, sizeof buf, host_off);

  return r < 0 ? r : io_pwrite (rp->s->b->io, buf, sizeof buf, host_off);
}

/* Writes the journal's blocks behind D and below END again, for the same
 * reason. */
static int
rewrite_blocks (struct replay *rp, uint64_t end)
{
  const struct dedup_config *c = rp->s->config;
  uint64_t seq;
  uint32_t i;
  int r = 0;

  for (i = 0; i < c->nr_areas && r == 0 && rp->s->b->writable; i++) {
    const struct dedup_journal_area *a = &c->areas[i];

    for (seq = MAX_OF (a->first_seq, rp->durable + 1);
         seq < MIN_OF (a->first_seq + a->nr_blocks, end) && r == 0; seq++)
      r = rewrite_block (rp, a, seq);
  }
  return r;
}

static bool
continues (const struct replay *rp, const struct run *run, uint64_t host_idx)
{
  return run->nr > 0 && host_idx == run->host_idx + run->nr &&
    (run->nr + 1) << rp->s->b->cluster_bits <= RUN_BYTES;
}

/* Returns 1 if all data of the group is there, 0 if not, or -errno. */
static int
verify_group (struct replay *rp)
{
  struct run run = { 0 };
  size_t i;
  int r = 1;

  for (i = 0; i < rp->nr && r == 1; i++) {
    const struct dedup_record *rec = &rp->group[i];

    if (dedup_record_is_packed (rec))
      r = packed_is_there (rp, rec);
    else if (is_plain (rec) && continues (rp, &run, rec->host_idx))
      run.nr++;
    else if (is_plain (rec)) {
      r = verify_run (rp, &run);
      run = (struct run) { .first = i, .nr = 1, .host_idx = rec->host_idx };
    }
  }
  return r == 1 ? verify_run (rp, &run) : r;
}

/* A qcow2_step: applies the change OPAQUE. */
static int
apply_locked (struct qcow2_txn *txn, void *opaque)
{
  return qcow2_apply_locked (txn, opaque);
}

static int
apply_change (struct replay *rp, struct qcow2_txn *txn, struct qcow2_change *c)
{
  int r = qcow2_txn_retry (txn, apply_locked, c);

  if (r == -EINVAL)
    return fault_corrupt (rp->fault, UINT64_MAX, "the journal has a record "
                          "that contradicts the image");
  return r < 0 ? fault_io (rp->fault, -r, UINT64_MAX, "reading tables: %s",
                           strerror (-r)) : 0;
}

/* Applies a record of new data, which stands for two changes: the refcount, and
 * the link. */
static int
apply_new_cluster (struct replay *rp, struct qcow2_txn *txn,
                   const struct dedup_record *rec)
{
  const bool at = rec->type == DEDUP_REC_HASHAT ||
    rec->type == DEDUP_REC_WRITEAT;
  struct qcow2_change ref = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = rec->host_idx, .count = 1,
    .refcount = 2, .anchored = true,
  };
  struct qcow2_change link = {
    .type = at ? QCOW2_CHANGE_ENTRY : QCOW2_CHANGE_L2, .root = rec->root,
    .count = 1, .guest_idx = rec->guest_idx, .place = rec->place,
    .entry = rec->host_idx << rp->s->b->cluster_bits,
  };
  int r;

  r = apply_change (rp, txn, &ref);
  return r < 0 ? r : apply_change (rp, txn, &link);
}

/* Applies a record of compressed data, which stands for the link.  Those of the
 * refcounts are beside it. */
static int
apply_packed (struct replay *rp, struct qcow2_txn *txn,
              const struct dedup_record *rec)
{
  struct qcow2_change link = {
    .type = rec->type == DEDUP_REC_PACKEDAT ? QCOW2_CHANGE_ENTRY
      : QCOW2_CHANGE_L2,
    .root = rec->root, .count = 1, .guest_idx = rec->guest_idx,
    .place = rec->place, .entry = rec->host_idx,
  };

  return apply_change (rp, txn, &link);
}

static int
apply_list (struct replay *rp, struct qcow2_txn *txn,
            const struct dedup_record *rec)
{
  struct qcow2_change c;
  size_t at = 0;
  int r = 0;

  while (r == 0 && dedup_reflist_next (rec, &at, &c))
    r = apply_change (rp, txn, &c);
  return r;
}

static int
apply_record (struct replay *rp, struct qcow2_txn *txn,
              struct dedup_record *rec)
{
  switch (rec->type) {
  case DEDUP_REC_HASH:
  case DEDUP_REC_WRITE:
  case DEDUP_REC_HASHAT:
  case DEDUP_REC_WRITEAT:
    return apply_new_cluster (rp, txn, rec);
  case DEDUP_REC_PACKED:
  case DEDUP_REC_PACKEDAT:
    return apply_packed (rp, txn, rec);
  case DEDUP_REC_L2:
  case DEDUP_REC_REFCOUNT:
  case DEDUP_REC_L2TABLE:
  case DEDUP_REC_REFBLOCK:
  case DEDUP_REC_ANCHORTABLE:
  case DEDUP_REC_HEADER:
  case DEDUP_REC_BITMAP:
  case DEDUP_REC_ENTRY:
  case DEDUP_REC_TABLE:
    return apply_change (rp, txn, &rec->change);
  case DEDUP_REC_REFLIST:
    return apply_list (rp, txn, rec);
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

  qcow2_txn_begin (rp->s->b->img, &txn);
  for (i = 0; i < rp->nr && r == 0; i++)
    r = apply_record (rp, &txn, &rp->group[i]);
  qcow2_txn_end (&txn);
  return r;
}

/* Inserts an entry that a log store had no place for into the next one, as
 * dedup_set_aside_locked does. */
static void
insert_spilled (struct dedup_store *s, const struct dedup_entry *e)
{
  const struct dedup_hash mark = dedup_unknown_mark (e->value);

  dedup_index_insert_locked (s->index, &e->hash, e->value);
  if (e->value != DEDUP_DELETED && !dedup_value_is_compressed (e->value) &&
      dedup_index_frozen_names_locked (s->index, e))
    dedup_index_insert_locked (s->index, &mark, e->value);
}

/* Freezes the log store as it was at block SEQ.  Does nothing if it is empty or
 * another one is frozen: the first block that is read may start with the FREEZE
 * of entries that are in runs by now.
 *
 * Where the journal was packed, entries come in another order than the first
 * time, and others may find no place.  Those that were spilled the first time
 * were logged again behind FREEZE.  Those that are spilled only now go to the
 * next log store here, and must be logged again (index_damaged). */
static void
replay_freeze (struct dedup_store *s, uint64_t seq)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t i, nr;

  if (dedup_index_frozen_locked (s->index) ||
      dedup_index_nr_current_locked (s->index) == 0)
    return;
  if (dedup_index_set_aside_locked (s->index, seq, spilled, &nr) < 0) {
    log_line (s->b->log, LOG_DEBUG, "%s: out of memory: part of the index "
              "is lost", s->b->path);
    dedup_config_entries_lost (s->config);
    return;
  }
  for (i = 0; i < nr; i++)
    insert_spilled (s, &spilled[i]);
  s->index_damaged = s->index_damaged || nr > 0;
}

/* Inserts the hash entries of a group in block SEQ into the log store. */
static void
index_group (struct replay *rp, uint64_t seq)
{
  struct dedup_store *s = rp->s;
  size_t i;

  LOCK_FOR_SCOPE (s->b->lock);
  for (i = 0; i < rp->nr; i++) {
    const struct dedup_record *rec = &rp->group[i];

    switch (rec->type) {
    case DEDUP_REC_HASH:
    case DEDUP_REC_HASHAT:
    case DEDUP_REC_PACKED:
    case DEDUP_REC_PACKEDAT:
    case DEDUP_REC_INDEX:
      dedup_index_insert_locked (s->index, &rec->hash, rec->host_idx);
      break;
    case DEDUP_REC_DELETE:
      dedup_index_insert_locked (s->index, &rec->hash, DEDUP_DELETED);
      break;
    case DEDUP_REC_FREEZE:
      replay_freeze (s, seq);
      break;
    default:
      break;
    }
  }
}

/* Applies the group, which is complete in block SEQ.  Returns 0, or 1 to end
 * the replay, or -errno. */
static int
take_group (struct replay *rp, uint64_t seq)
{
  struct dedup_config *c = rp->s->config;
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

/* --- cuts --------------------------------------------------------------- */

/* Returns how many bytes of block B's records count. */
static size_t
counted_len (const struct dedup_config *c, const struct dedup_journal_block *b)
{
  uint32_t i;

  for (i = 0; i < c->nr_cuts; i++)
    if (c->cuts[i].seq == b->seq)
      return MIN_OF (b->len, c->cuts[i].len - DEDUP_BLOCK_HEADER);
  return b->len;
}

/* Adds a cut where the last group that was taken ended.  A recovery that was
 * interrupted may have added cuts behind that before: they are removed.  If
 * there are too many, the oldest is dropped, from long before the checkpoint;
 * that costs ratio. */
static void
add_cut (struct replay *rp)
{
  struct dedup_config *c = rp->s->config;

  if (rp->taken.seq == 0)
    return;
  dedup_forget_cuts (c, c->index_start);
  while (c->nr_cuts > 0 && c->cuts[c->nr_cuts - 1].seq >= rp->taken.seq)
    c->nr_cuts--;
  if (c->nr_cuts == DEDUP_MAX_CUTS)
    dedup_forget_cuts (c, c->cuts[0].seq + 1);
  c->cuts[c->nr_cuts++] = rp->taken;
}

/* --- second pass -------------------------------------------------------- */

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

/* Takes the groups of a block.  A group that a crash cut off has no END, and
 * the records that follow it, of a later epoch, are no part of it. */
static int
take_block (void *opaque, const struct dedup_journal_block *b)
{
  struct replay *rp = opaque;
  struct dedup_record rec;
  size_t pos = 0, len = counted_len (rp->s->config, b);
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

/* Looks for blocks behind END, where the journal seems to end.  One may know
 * that later blocks were durable, which raises D; or it was written under a
 * later configuration than the one that was read (FAULT_CORRUPT). */
static int
look_behind (struct replay *rp, uint64_t end)
{
  const struct dedup_journal_place place = dedup_config_place (rp->s->config);
  struct dedup_journal_rest rest;
  int r;

  if (mutation (MUTATION_NO_LOOK_BEHIND))
    return 0;
  r = dedup_journal_rest (rp->s->b->io, &place, end, &rest);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "reading the journal: %s",
                     strerror (-r));
  if (rest.newer)
    return fault_corrupt (rp->fault, UINT64_MAX, "the dedup store's "
                          "configuration is older than its journal");
  rp->durable = MAX_OF (rp->durable, rest.durable);
  return 0;
}

/* Reads the blocks below the checkpoint, which have only entries of the index
 * that count: these are advice, so where a block can't be read, entries are
 * lost and no more. */
static int
read_index (struct replay *rp)
{
  struct dedup_config *c = rp->s->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  uint64_t end;
  int r;

  if (c->index_start >= c->checkpoint)
    return 0;
  r = dedup_journal_read (rp->s->b->io, &place, c->index_start, c->checkpoint,
                          take_block, rp, &end);
  rp->nr = 0;
  if (r == -ENOMEM)
    return fault_io (rp->fault, ENOMEM, UINT64_MAX, "out of memory");
  if (r == 0 && end == c->checkpoint)
    return 0;
  dedup_config_entries_lost (c);
  rp->s->index_damaged = true;
  log_line (rp->s->b->log, LOG_ERROR, "%s: part of the journal cannot be read: "
            "some of the index is lost", rp->s->b->path);
  return 0;
}

/* Reads the blocks from the checkpoint on, of which every record counts. */
static int
read_mapping (struct replay *rp)
{
  struct dedup_config *c = rp->s->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  struct io_store *io = rp->s->b->io;
  uint64_t end;
  int r;

  r = dedup_journal_read (io, &place, c->checkpoint, UINT64_MAX, see_block, rp,
                          &end);
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
  rp->taken.seq = 0;            /* no cut below the checkpoint */
  qcow2_replay_begin (rp->s->b->img);
  r = dedup_journal_read (io, &place, c->checkpoint, end, take_block, rp,
                          &end);
  if (r == 0)
    r = qcow2_replay_end (rp->s->b->img);
  if (r < 0)
    return fault_io (rp->fault, -r, UINT64_MAX, "replaying the journal: %s",
                     strerror (-r));
  if (!mutation (MUTATION_NO_CUT))
    add_cut (rp);
  return 0;
}

/* How far epochs and ids of tables are advanced when later ones are lost: more
 * than there can have been recoveries and tables since. */
#define EPOCH_LEAP 65536

int
dedup_renew_epoch (struct dedup_store *s, uint64_t next, bool *renewed,
                   struct fault *f)
{
  struct dedup_config *c = s->config;
  const struct dedup_journal_place place = dedup_config_place (c);
  struct dedup_journal_rest rest;
  int r;

  r = dedup_journal_newer (s->b->io, &place, next, renewed);
  if (mutation (MUTATION_OLD_EPOCH) || mutation (MUTATION_LAW_1_NO_SYNC))
    *renewed = false;
  if (r == 0 && *renewed)
    r = dedup_journal_rest (s->b->io, &place, c->areas[0].first_seq, &rest);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "reading the journal: %s",
                     strerror (-r));
  if (!*renewed)
    return 0;
  if (rest.epoch > UINT32_MAX - EPOCH_LEAP)
    return fault_corrupt (f, UINT64_MAX, "the journal has an epoch that is out "
                          "of range");
  log_line (s->b->log, LOG_ERROR, "%s: the dedup store's configuration is "
            "older than its journal: some of the index is lost", s->b->path);
  c->epoch = rest.epoch + EPOCH_LEAP;
  c->epoch_start = next;
  dedup_index_skip_ids (s->index, EPOCH_LEAP);   /* never used twice */
  dedup_config_entries_lost (c);
  return 0;
}

int
dedup_replay (struct dedup_store *s, bool replay, uint64_t *next,
              struct fault *f)
{
  struct replay rp = { .s = s, .mapping = replay, .fault = f };
  int64_t size = io_size (s->b->io);
  int r;

  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "the size of the file is "
                     "unknown: %s", strerror ((int) -size));
  rp.file_clusters = div_round_up ((uint64_t) size, s->b->cluster_size);
  rp.cluster = aligned_new (s->b->cluster_size);
  rp.run_bytes = aligned_new (MAX_OF (RUN_BYTES, s->b->cluster_size));
  if (rp.cluster == NULL || rp.run_bytes == NULL) {
    free (rp.cluster);
    free (rp.run_bytes);
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  /* A recovery first writes a configuration with the checkpoint from before it.
   * If a clean image has that one, it is an old one that came back. */
  if (!replay)
    s->config->checkpoint = s->checkpoint =
      MAX_OF (s->config->checkpoint, s->config->epoch_start);
  rp.durable = MAX_OF (s->config->checkpoint, s->config->epoch_start) - 1;
  rp.next = s->config->checkpoint;
  r = read_index (&rp);
  if (r == 0 && replay)
    r = read_mapping (&rp);
  *next = rp.next;
  free (rp.group);
  free (rp.cluster);
  free (rp.run_bytes);
  return r;
}
