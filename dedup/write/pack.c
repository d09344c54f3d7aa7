/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses new data, and packs it into host clusters: the step "store" for data
 * that shrinks (docs/on-disk.md 14.3).
 *
 * There is one open run of host clusters, which are neighbours, for all threads.  An
 * operation compresses its new clusters without the lock, takes as many bytes of the
 * run as it needs under the lock, and writes them with one call without it: no byte
 * waits in memory for other data.  What it takes begins and ends with a whole block,
 * so no block is written twice (law 16), and two operations never write to the same
 * one.  Within an operation data follows data without a gap, and crosses from one
 * cluster of the run into the next.
 *
 * A host cluster of a run is reserved, until the first data in it is linked; from then
 * on the run holds it, so that it stays when all that is linked in it is dropped while
 * more is being appended.  The run lives until it is full and all operations have
 * linked or given up what they wrote there.  Then clusters in which nothing was linked
 * are free again, and those in which nothing is left in use are freed.
 *
 * Values that lead to bytes which may still be written are not linked (law 17): the
 * index may have some from when a cluster had other data.  Nor are those that lead to
 * bytes which their operation has written and not linked: no record before such a link
 * would have a replay compare them.  So the data of an operation that fails is made
 * durable before its claims end and others may link what is there.
 *
 * Any thread.  No lock beside the image lock.
 */
#include "aligned.h"
#include "checked.h"
#include "op.h"

#include <errno.h>

/* Bytes and clusters of a run at least, but no more than MAX_RUN_BYTES unless one
 * operation needs them.  The end of a run that has no room for the next data is lost: on
 * average half of what compressed data takes. */
#ifdef DEDUP_MUTATIONS         /* the crash harness writes little */
#define RUN_BYTES (UINT64_C (16) << 10)
#define RUN_CLUSTERS 2
#define MAX_RUN_BYTES (UINT64_C (128) << 10)
#define SMALL_RUN_BYTES (UINT64_C (8) << 10)
#else
#define RUN_BYTES (UINT64_C (256) << 10)
#define RUN_CLUSTERS 16
#define MAX_RUN_BYTES (UINT64_C (8) << 20)
/* Clusters that were written ahead (prewrite.c) are taken in smaller runs. */
#define SMALL_RUN_BYTES (UINT64_C (64) << 10)
#endif

/* Data takes at least this part of a cluster, so that no cluster gets more than
 * 129 references from data that is stored in it: the limit for sharing leaves room
 * for these, in refcounts of 16 bits and more. */
#define MIN_SHARE 128

struct dedup_codec_list {
  struct qcow2_codec *codec;
  struct dedup_codec_list *next;
};

/* Returns the bytes that an operation takes at least, and is rounded up to: what the
 * medium writes as a whole.  Where that is more than a cluster, plain data shares such
 * blocks, too. */
static size_t
block_of (const struct dedup_base *b)
{
  if (mutation (MUTATION_LAW_16_SECTOR))
    return DEDUP_SECTOR;
  return MIN_OF (io_block_size (b->io), b->cluster_size);
}

/* Returns the most bytes that compressed data may have to be stored so.  An eighth of
 * the cluster must be saved, because it costs time to expand it; and a sector, in which
 * descriptors count. */
static size_t
max_packed (const struct dedup_base *b)
{
  const size_t size = b->cluster_size;

  return size - MIN_OF (size, MAX_OF (size / 8, DEDUP_SECTOR));
}

/* Returns whether an eighth is still saved where LEN compressed bytes of NR clusters
 * fill whole blocks. */
static bool
are_worth_it (const struct dedup_base *b, size_t nr, size_t len)
{
  const size_t plain = nr * b->cluster_size;

  return round_up_pow2 (len, block_of (b)) <= plain - plain / 8;
}

static size_t
min_packed (const struct dedup_base *b)
{
  return MAX_OF (b->cluster_size / MIN_SHARE, 1);
}

/* --- Encoders ------------------------------------------------------------- */

/* Takes an encoder that nobody uses, or makes one; NULL: out of memory. */
static struct dedup_codec_list *
get_codec (struct dedup_pack *p)
{
  struct dedup_codec_list *c;

  lock_acquire (p->b->lock);
  c = p->codecs;
  if (c)
    p->codecs = c->next;
  lock_release (p->b->lock);
  if (c)
    return c;
  c = calloc (1, sizeof *c);
  if (c && qcow2_codec_new (p->b->img, &c->codec) < 0) {
    free (c);
    c = NULL;
  }
  return c;
}

static void
put_codec (struct dedup_pack *p, struct dedup_codec_list *c)
{
  LOCK_FOR_SCOPE (p->b->lock);

  c->next = p->codecs;
  p->codecs = c;
}

/* --- Runs ------------------------------------------------------------------ */

static uint64_t
end_of (const struct dedup_base *b, const struct dedup_pack_run *run)
{
  return (run->first + run->count) << b->cluster_bits;
}

static bool
is_held (const struct dedup_pack_run *run, uint64_t i)
{
  return run->held[i / 64] >> i % 64 & 1;
}

/* Releases a closed run that nobody uses. */
static void
release_locked (struct qcow2_txn *txn, struct dedup_pack *p,
                struct dedup_pack_run *run)
{
  struct qcow2_run one = { .count = 1 };
  uint64_t i;

  assert (lock_held (p->b->lock));
  for (i = run->count; i-- > 0; ) {    /* the last first, as it was reserved last */
    one.host_idx = run->first + i;
    if (is_held (run, i)) {
      qcow2_unhold_locked (txn, one.host_idx);
      continue;
    }
    /* What a writer of the same data has read there is not in use. */
    qcow2_expanded_forget (p->b->img, one.host_idx, 1);
    qcow2_unreserve_locked (p->b->img, &one);
  }
  free (run);
}

void
dedup_pack_put_locked (struct qcow2_txn *txn, struct dedup_pack *p,
                       struct dedup_pack_run *run)
{
  assert (lock_held (p->b->lock));
  assert (run->users > 0);
  if (--run->users == 0 && run->closed)
    release_locked (txn, p, run);
}

void
dedup_pack_close_locked (struct qcow2_txn *txn, struct dedup_pack *p)
{
  struct dedup_pack_run *run = p->open;

  assert (lock_held (p->b->lock));
  if (run == NULL)
    return;
  p->open = NULL;
  run->closed = true;
  if (run->users == 0)
    release_locked (txn, p, run);
}

/* Forgets the open run without a record.  What is held stays so until the image is
 * closed; of that, clusters that nobody uses are found as garbage by the next
 * session. */
static void
forget_locked (struct dedup_pack *p)
{
  struct dedup_pack_run *run = p->open;
  struct qcow2_run one = { .count = 1 };
  uint64_t i;

  assert (lock_held (p->b->lock));
  p->open = NULL;
  for (i = run->count; i-- > 0; ) {
    one.host_idx = run->first + i;
    if (!is_held (run, i))
      qcow2_unreserve_locked (p->b->img, &one);
  }
  free (run);
}

/* In an image that is clean nothing is freed, as that would take a record. */
void
dedup_pack_end (struct dedup_writer *w)
{
  struct qcow2_txn txn;
  bool more;

  lock_acquire (w->b->lock);
  if (w->pack.open && !w->s->gate.recovery_bit)
    forget_locked (&w->pack);
  more = w->pack.open != NULL;
  lock_release (w->b->lock);
  if (!more || dedup_enter (&w->s->gate) < 0)
    return;
  qcow2_txn_begin (w->b->img, &txn);
  lock_acquire (w->b->lock);
  dedup_pack_close_locked (&txn, &w->pack);
  dedup_journal_end_locked (w->s->journal);
  qcow2_txn_end_locked (&txn);
  dedup_leave_locked (&w->s->gate);
  lock_release (w->b->lock);
}

void
dedup_pack_hold_locked (struct qcow2_txn *txn, struct dedup_pack_run *run,
                        uint64_t host_idx)
{
  const uint64_t i = host_idx - run->first;
  int r;

  assert (i < run->count);
  if (is_held (run, i))
    return;
  r = qcow2_hold_locked (txn, host_idx, UINT64_MAX);
  assert (r == 0);              /* it is anchored, and there is memory for holds */
  (void) r;
  run->held[i / 64] |= UINT64_C (1) << i % 64;
}

bool
dedup_pack_unfinished_locked (const struct dedup_pack *p, uint64_t value)
{
  uint64_t off = value << p->b->cluster_bits, len = p->b->cluster_size;
  const struct dedup_pack_piece *w;

  assert (lock_held (p->b->lock));
  if (mutation (MUTATION_LAW_17))
    return false;
  if (dedup_value_is_compressed (value))
    qcow2_compressed_extent (p->b->img, value, &off, &len);
  if (p->open && off < end_of (p->b, p->open) && p->open->fill < off + len)
    return true;
  for (w = p->unsettled; w; w = w->next)
    if (off < w->end && w->host_off < off + len)
      return true;
  return false;
}

void
dedup_pack_free (struct dedup_pack *p)
{
  struct dedup_codec_list *c;

  free (p->open);
  while ((c = p->codecs) != NULL) {
    p->codecs = c->next;
    qcow2_codec_free (c->codec);
    free (c);
  }
}

/* --- One operation --------------------------------------------------------- */

/* Compressed data that waits for its place. */
struct packed {
  size_t i;                    /* its slot */
  size_t at, len;              /* in the buffer; the data behind it follows at once */
};

struct packing {
  struct op *op;
  struct packed *v;
  size_t nr;
  uint8_t *buf;
};

/* Returns whether the slot's data may be compressed: a record of it needs the hash. */
static bool
may_be_packed (const struct slot *s)
{
  return s->kind == SLOT_NEW && s->hashed && !s->stored && !s->plain &&
    s->own == 0;
}

/* Compresses the data of all slots that shrink.  The others are stored plain; all are
 * if together they save too little. */
static void
compress_all (struct packing *pk, struct qcow2_codec *codec)
{
  struct op *op = pk->op;
  const struct dedup_base *b = op->w->b;
  size_t i, at = 0, n;

  for (i = 0; i < op->nr; i++) {
    if (!may_be_packed (&op->slots[i]))
      continue;
    n = qcow2_codec_compress (codec, slot_data (op, i), b->cluster_size,
                              pk->buf + at, max_packed (b));
    if (n == 0) {
      op->slots[i].plain = true;
      continue;
    }
    if (n < min_packed (b)) {
      memset (pk->buf + at + n, 0, min_packed (b) - n);
      n = min_packed (b);
    }
    pk->v[pk->nr++] = (struct packed) { i, at, n };
    at += n;
  }
  if (!are_worth_it (b, pk->nr, at))
    while (pk->nr > 0)
      op->slots[pk->v[--pk->nr].i].plain = true;
}

/* Returns how many of the data from K on have room in the open run, as one piece, and
 * sets *LEN to their bytes. */
static size_t
fitting (const struct packing *pk, size_t k, uint64_t room, uint64_t *len)
{
  size_t n = 0;

  *len = 0;
  while (k + n < pk->nr && *len + pk->v[k + n].len <= room)
    *len += pk->v[k + n++].len;
  return n;
}

/* Reserves a whole run for data that compaction moves.  The free clusters of an image that
 * needs it are alone or few together, and a run that is as short as these loses the end of
 * its last cluster: so that data would have to be moved again.  The file may become twice
 * as long as what is in use, since the host is given back what was emptied.  A host that
 * takes nothing back, or is full, is not asked for more. */
static bool
reserve_for_moved_locked (struct op *op, struct qcow2_run *got)
{
  const struct dedup_writer *w = op->w;
  const uint64_t used = qcow2_in_use_locked (w->b->img);

  assert (lock_held (w->b->lock));
  if (op->avoids == NULL || w->emptying == NULL || w->u->give.unable ||
      w->pack.no_room_behind)
    return false;
  got->count = RUN_CLUSTERS;
  return qcow2_reserve_run_locked (w->b->img, got->count, 2 * used, used / 16,
                                   &got->host_idx) == 0;
}

/* Opens a run with room for the data from K on, as far as a run may be that long. */
static int
open_run_locked (struct packing *pk, size_t k, struct dedup_pack_run *run,
                 bool *guarded)
{
  struct dedup_writer *w = pk->op->w;
  const unsigned bits = w->b->cluster_bits;
  const struct packed *last = &pk->v[pk->nr - 1];
  const uint64_t left = last->at + last->len - pk->v[k].at;
  const uint64_t least = MAX_OF (RUN_BYTES >> bits,
                                 MIN_OF (RUN_CLUSTERS, MAX_RUN_BYTES >> bits));
  const uint64_t wanted = MAX_OF (least, div_round_up (left, w->b->cluster_size));
  struct qcow2_run got = { 0 };
  int r = 0;

  assert (lock_held (w->b->lock));
  if (!reserve_for_moved_locked (pk->op, &got) &&
      (left > SMALL_RUN_BYTES ||
       !dedup_prewrite_take_locked (&w->u->prewrite,
                                    MAX_OF (SMALL_RUN_BYTES >> bits, 1), &got)))
    r = qcow2_reserve_locked (w->b->img, MIN_OF (wanted, DEDUP_PACK_MAX),
                              &got);
  if (r < 0)
    return r;
  dedup_prewrite_count_locked (&w->u->prewrite, got.count);
  *guarded = qcow2_guarded_locked (w->b->img, got.host_idx, got.count);
  if (*guarded)                 /* it stays reserved, so that others are tried next */
    return -EIO;
  if (qcow2_compressed_entry (w->b->img, ((got.host_idx + got.count) << bits) - 1,
                              1) == 0) {     /* no entry can say where it is */
    qcow2_unreserve_locked (w->b->img, &got);
    return -ENOSPC;
  }
  run->first = got.host_idx;
  run->count = got.count;
  run->fill = run->first << bits;
  w->pack.open = run;
  return 0;
}

/* Takes bytes of a run for as much of the data from K on as has room, which become
 * PIECE.  Returns how many slots; 0: a run has no room for the first. */
static ssize_t
take_locked (struct packing *pk, size_t k, struct dedup_pack_run **spare,
             struct dedup_pack_piece *piece, struct dedup_pack_run **run,
             bool *guarded)
{
  struct dedup_pack *p = &pk->op->w->pack;
  const struct dedup_base *b = p->b;
  uint64_t len = 0;
  size_t n = 0;
  int r;

  assert (lock_held (b->lock));
  if (p->open)
    n = fitting (pk, k, end_of (b, p->open) - p->open->fill, &len);
  if (n == 0) {
    dedup_pack_close_locked (&pk->op->txn, p);
    dedup_journal_end_locked (pk->op->w->s->journal);
    r = open_run_locked (pk, k, *spare, guarded);
    if (r < 0)
      return r;
    *spare = NULL;
    n = fitting (pk, k, end_of (b, p->open) - p->open->fill, &len);
  }
  *run = p->open;
  *piece = (struct dedup_pack_piece) { p->open->fill, p->open->fill + len,
                                       p->unsettled, pk->op->pieces };
  if (!mutation (MUTATION_LAW_16))
    piece->end = round_up_pow2 (piece->end, block_of (b));
  p->open->fill = piece->end;
  p->open->users += n;
  p->unsettled = pk->op->pieces = piece;
  return (ssize_t) n;
}

/* Takes the last piece of the operation from the list, and frees it. */
static void
settle_piece_locked (struct op *op)
{
  struct dedup_pack_piece *piece = op->pieces, **at = &op->w->pack.unsettled;

  assert (lock_held (op->w->b->lock));
  while (*at != piece)
    at = &(*at)->next;
  *at = piece->next;
  op->pieces = piece->next_own;
  free (piece);
}

/* Gives up N slots of the last piece, whose write failed with R, and which is durable as it is.
 * They have no place, and nothing more is appended to that run. */
static void
give_up_locked (struct packing *pk, struct dedup_pack_run *run, size_t n, int r)
{
  struct dedup_pack *p = &pk->op->w->pack;

  assert (lock_held (p->b->lock));
  p->no_room_behind |= r == -ENOSPC;
  settle_piece_locked (pk->op);
  run->users++;                 /* so that it lives until here is done */
  if (p->open == run)
    dedup_pack_close_locked (&pk->op->txn, p);
  run->users -= n;
  dedup_pack_put_locked (&pk->op->txn, p, run);
  dedup_journal_end_locked (pk->op->w->s->journal);
}

/* Writes a piece: the data, and zeroes up to the end of the block. */
static int
write_piece (const struct packing *pk, size_t k, size_t n,
             const struct dedup_pack_piece *piece)
{
  static const uint8_t zeroes[4096];
  const struct packed *last = &pk->v[k + n - 1];
  const size_t len = last->at + last->len - pk->v[k].at;
  struct iovec iov[1 + IO_MAX_BLOCK / sizeof zeroes] = {
    { pk->buf + pk->v[k].at, len },
  };
  size_t rest = piece->end - piece->host_off - len;
  int cnt = 1;

  for (; rest > 0; rest -= iov[cnt++].iov_len)
    iov[cnt] = (struct iovec) { (void *) zeroes, MIN_OF (rest, sizeof zeroes) };
  return io_pwritev (pk->op->w->b->io, iov, cnt, piece->host_off);
}

/* Gives N slots their places in a piece that was written. */
static void
place_slots (struct packing *pk, size_t k, size_t n,
             const struct dedup_pack_piece *piece, struct dedup_pack_run *run)
{
  struct dedup_writer *w = pk->op->w;
  size_t j;

  for (j = k; j < k + n; j++) {
    struct slot *s = &pk->op->slots[pk->v[j].i];

    s->value = qcow2_compressed_entry (w->b->img, piece->host_off +
                                       pk->v[j].at - pk->v[k].at, pk->v[j].len);
    assert (s->value != 0);     /* open_run_locked looked at the end of the run */
    s->stored = true;
    s->run = run;
  }
}

/* Makes durable what was written to a run and is not linked.  If that fails, nothing
 * that is linked later becomes durable either (law 10). */
static void
make_durable (struct dedup_writer *w)
{
  (void) !dedup_journal_sync (w->s->journal);
}

/* Writes as much of the data from K on as has room in one run.  Returns how many
 * slots got a place; 0: no more of them can. */
static ssize_t
pack_piece (struct packing *pk, size_t k)
{
  struct dedup_writer *w = pk->op->w;
  CLEANUP_FREE struct dedup_pack_piece *spare_piece = malloc (sizeof *spare_piece);
  struct dedup_pack_run *spare = calloc (1, sizeof *spare), *run = NULL;
  const struct dedup_pack_piece *piece = spare_piece;
  bool guarded = false;
  ssize_t n;
  int r;

  if (spare == NULL || spare_piece == NULL) {
    free (spare);
    return -ENOMEM;
  }
  lock_acquire (w->b->lock);
  n = take_locked (pk, k, &spare, spare_piece, &run, &guarded);
  lock_release (w->b->lock);
  free (spare);
  if (guarded)
    dedup_contradiction (&w->s->gate);
  if (n <= 0)
    return n == -ENOSPC ? 0 : n;
  spare_piece = NULL;           /* it is the operation's now */
  r = write_piece (pk, k, (size_t) n, piece);
  if (r < 0)
    make_durable (w);
  else
    place_slots (pk, k, (size_t) n, piece, run);
  lock_acquire (w->b->lock);
  if (r < 0)
    give_up_locked (pk, run, (size_t) n, r);
  else {
    w->pack.stored += (uint64_t) n;
    w->pack.stored_bytes += piece->end - piece->host_off;
  }
  lock_release (w->b->lock);
  if (r < 0)                    /* plain data may find space, or another place */
    return r == -ENOSPC || r == -ESTALE ? 0 : r;
  return n;
}

static int
pack_all (struct packing *pk)
{
  ssize_t n;
  size_t k;

  for (k = 0; k < pk->nr; k += (size_t) n) {
    n = pack_piece (pk, k);
    if (n <= 0)
      return (int) n;
  }
  return 0;
}

static size_t
count_packable (const struct op *op)
{
  size_t i, nr = 0;

  for (i = 0; i < op->nr; i++)
    nr += may_be_packed (&op->slots[i]);
  return nr;
}

bool
dedup_packs_locked (const struct dedup_pack *p, unsigned root)
{
  const unsigned says = qcow2_root_compress_locked (p->b->img, root);

  return p->able && says != QCOW2_COMPRESS_OFF && (p->on || says == QCOW2_COMPRESS_ON);
}

bool
dedup_packs_any (const struct dedup_pack *p)
{
  LOCK_FOR_SCOPE (p->b->lock);

  return p->on || (p->able && qcow2_nr_compress_on_locked (p->b->img) > 0);
}

static bool
packs (const struct dedup_pack *p, unsigned root)
{
  LOCK_FOR_SCOPE (p->b->lock);

  return dedup_packs_locked (p, root);
}

/* What is stored again is compressed whatever its disk says: else its cluster would not
 * become free. */
static bool
may_pack (const struct op *op)
{
  const struct dedup_pack *p = &op->w->pack;

  if (!p->able || op->short_of_space || !dedup_may_pack (op->w->s))
    return false;
  return op->avoids ? true : !p->rewrites_only && packs (p, op->root);
}

int
dedup_pack_all (struct op *op)
{
  struct dedup_pack *p = &op->w->pack;
  const size_t nr = may_pack (op) ? count_packable (op) : 0;
  CLEANUP_FREE uint8_t *buf = NULL;
  CLEANUP_FREE struct packed *v = NULL;
  struct packing pk = { .op = op };
  struct dedup_codec_list *codec;

  if (nr == 0 || !are_worth_it (p->b, nr, 1))
    return 0;
  codec = get_codec (p);
  pk.buf = buf = aligned_new (nr * p->b->cluster_size);
  pk.v = v = malloc (nr * sizeof *v);
  if (codec && buf && v)
    compress_all (&pk, codec->codec);
  if (codec)
    put_codec (p, codec);
  return codec && buf && v ? pack_all (&pk) : -ENOMEM;
}

void
dedup_pack_settle (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++) {
    const struct slot *s = &op->slots[i];

    if (s->stored && !s->linked && dedup_value_is_compressed (s->value)) {
      make_durable (op->w);
      return;
    }
  }
}

void
dedup_pack_settled_locked (struct op *op)
{
  while (op->pieces != NULL)
    settle_piece_locked (op);
}
