/* SPDX-License-Identifier: BSD-3-Clause */
/* Defragmentation: moves scattered guest clusters to one run of host clusters.
 *
 * Copy on write scatters clusters that are rewritten at random, and reading
 * them in sequence is slow afterwards.  One operation takes the guest clusters
 * of a piece, reads those that are not shared, writes them one behind the
 * other with one call, and links the new places.  The link step is that of a
 * write of the same bytes: it appends a HASH record for each, and drops the
 * old clusters into quarantine.  So laws 2 and 6 hold, and a recovery gives a
 * prefix of the operations, as with writes.
 *
 * A cluster moves if it is anchored and has one guest reference, the one that
 * the operation changes.  Shared clusters, and those of snapshots, stay where
 * they are, because moving them would store them twice.  If a writer links a
 * cluster while it is being moved, the writer keeps the old place, as with any
 * overwrite; the bytes are then stored twice, which costs ratio only.
 *
 * The bytes are read from where the guest's entry points, never from where the
 * index says that they are.  The caller keeps requests off the guest clusters,
 * so the bytes do not change meanwhile.  A compaction may move them, if a snapshot has the
 * table, too; then the link step leaves them where they are by then.  Until they are
 * read, what the entries led to keeps its bytes, as the operation is a reader.
 *
 * Whatever is missing (a free run that is long enough, space on the host, a
 * cluster that can be read) leaves the piece as it is, since nothing depends
 * on the move.
 *
 * Threads: any, as dedup_write.
 */
#include "aligned.h"
#include "op.h"

#include <errno.h>

/* Entries that no whole cluster of data belongs to, or a compressed one. */
#define LEFT_ALONE (QCOW2_L2_COMPRESSED | QCOW2_L2_ZERO | QCOW2_L2_PARTIAL)

/* A piece is scattered if its runs are, on average, shorter than both of
 * these: than 32 KiB with clusters of 4 KiB.  Reading 128 KiB at once makes
 * disks about as fast as they are (bench/README.md), so clusters of that size
 * never move. */
#define SHORT_RUN_CLUSTERS 8
#define SHORT_RUN_BYTES (UINT64_C (128) << 10)

/* Moving makes the file at most this many times as long as the clusters in
 * use, and this much longer; 5/4 times as long if the host takes no space
 * back.  Clusters that moved leave single free clusters behind, which are no
 * long runs until most of a range has moved.  So the file needs twice the
 * length for a while, most of it holes, and rewriting may have made it half as
 * long again before. */
#define GROW_FACTOR 3
#define GROW_BYTES (UINT64_C (64) << 20)

/* Space that stays free for clients: a share of the clusters in use, and a
 * share of the host's file system. */
#define KEEP_SHARE 16
#define HOST_KEEP_SHARE 8
#define HOST_KEEP_MOST (UINT64_C (1) << 30)

struct piece {
  struct op op;
  uint8_t *buf;                 /* a cluster for each slot */
  uint64_t *from;               /* a slot's host cluster now; 0: no data here */
  size_t nr_looked;             /* slots that were decided on */
  size_t nr_moving;             /* of SLOT_NEW; the others are SLOT_KEEP */
};

/* --- scattered pieces --------------------------------------------------- */

static bool
are_short (const struct dedup_base *b, uint64_t clusters, uint64_t runs)
{
  return runs > 1 && runs * SHORT_RUN_CLUSTERS > clusters &&
    runs * SHORT_RUN_BYTES > clusters * b->cluster_size;
}

#define EXTENTS 64

bool
dedup_move_would_help (const struct dedup_base *b, uint64_t guest_idx,
                       uint64_t nr)
{
  const uint64_t size = qcow2_geometry (b->img)->virtual_size;
  uint64_t at = guest_idx << b->cluster_bits, bytes = 0, runs = 0, next = 0;
  const uint64_t end = MIN_OF (size, (guest_idx + nr) << b->cluster_bits);
  struct qcow2_extent ext[EXTENTS];
  int n, i;

  for (; at < end; at = ext[n - 1].guest_off + ext[n - 1].len) {
    n = qcow2_map (b->img, QCOW2_ROOT_ACTIVE, at, end - at, ext, EXTENTS);
    if (n <= 0)
      return false;
    for (i = 0; i < n; i++) {
      if (ext[i].kind != QCOW2_DATA)
        continue;
      runs += ext[i].host_off != next;
      next = ext[i].host_off + ext[i].len;
      bytes += ext[i].len;
    }
  }
  return are_short (b, bytes >> b->cluster_bits, runs);
}

/* --- what may move ------------------------------------------------------ */

/* Decides if slot I's cluster may move.  Needs the lock. */
static int
look_at (struct piece *p, size_t i)
{
  struct op *op = &p->op;
  struct slot *s = &op->slots[i];
  uint64_t entry, host_idx, refcount;
  bool anchored;
  int r;

  s->kind = SLOT_KEEP;
  r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i, &entry);
  if (r < 0)
    return r;
  host_idx = (entry & QCOW2_OFFSET_MASK) >> op->w->b->cluster_bits;
  if ((entry & LEFT_ALONE) || host_idx == 0)
    return 0;
  r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount, &anchored);
  if (r < 0)
    return r;
  p->from[i] = host_idx;
  if ((entry & ~QCOW2_OFFSET_MASK) != 0 ||     /* COPIED: not anchored */
      (entry & QCOW2_OFFSET_MASK) % op->w->b->cluster_size != 0 ||
      !anchored || refcount != 2 ||
      qcow2_guarded_locked (op->w->b->img, host_idx, 1))
    return 0;
  s->kind = SLOT_NEW;
  s->again = host_idx;
  p->nr_moving++;
  return 0;
}

/* Continues with slot nr_looked; called again after -EAGAIN. */
static int
look_on_locked (struct qcow2_txn *txn, void *opaque)
{
  struct piece *p = opaque;
  int r = 0;

  assert (lock_held (p->op.w->b->lock));
  for (; p->nr_looked < p->op.nr && r == 0; p->nr_looked += r == 0)
    r = look_at (p, p->nr_looked);
  return r;
}

static bool
moves (const struct piece *p, size_t i)
{
  return p->op.slots[i].kind == SLOT_NEW;
}

/* Returns true if a run begins with slot I, whose data follows that of slot
 * LAST (NONE: it is the first).  AFTER: when all that may move lies in one
 * run. */
#define NONE SIZE_MAX

static bool
begins_run (const struct piece *p, size_t last, size_t i, bool after)
{
  if (last == NONE)
    return true;
  if (after && (moves (p, last) || moves (p, i)))
    return moves (p, last) != moves (p, i);
  return p->from[last] + 1 != p->from[i];
}

/* Returns true if the piece is scattered and has at most half as many runs
 * after the move.  So a piece that was moved before, or most of which cannot
 * move, is left alone. */
static bool
is_worth_it (const struct piece *p)
{
  uint64_t clusters = 0, runs = 0, runs_after = 0;
  size_t i, last = NONE;

  for (i = 0; i < p->op.nr; i++) {
    if (p->from[i] == 0)
      continue;
    clusters++;
    runs += begins_run (p, last, i, false);
    runs_after += begins_run (p, last, i, true);
    last = i;
  }
  return are_short (p->op.w->b, clusters, runs) && runs_after <= runs / 2;
}

/* --- a place ------------------------------------------------------------ */

/* Returns true if the host's file system has space for NR clusters besides
 * what stays free: the old places are given back later. */
static bool
host_has_space (const struct dedup_base *b, size_t nr)
{
  uint64_t left, all, keep;

  if (!io_host_space (b->io, &left, &all))
    return true;
  keep = MIN_OF (all / HOST_KEEP_SHARE, HOST_KEEP_MOST);
  return left >= keep + nr * b->cluster_size;
}

/* Returns how many clusters the file may reach to.  Needs the lock. */
static uint64_t
longest (const struct dedup_writer *w)
{
  const uint64_t used = qcow2_in_use_locked (w->b->img);

  return (w->u->give.unable ? used + used / 4 : GROW_FACTOR * used) +
    (GROW_BYTES >> w->b->cluster_bits);
}

static int
reserve (struct piece *p, struct qcow2_run *run)
{
  const struct dedup_writer *w = p->op.w;
  struct qcow2_image *img = w->b->img;
  LOCK_FOR_SCOPE (w->b->lock);
  int r;

  run->count = p->nr_moving;
  r = qcow2_reserve_run_locked (img, run->count, longest (w),
                                qcow2_in_use_locked (img) / KEEP_SHARE,
                                &run->host_idx);
  if (r == 0 && qcow2_guarded_locked (img, run->host_idx, run->count))
    return -EIO;                /* stays reserved: others are tried next */
  return r;
}

static void
unreserve (struct piece *p, const struct qcow2_run *run)
{
  const struct dedup_base *b = p->op.w->b;
  LOCK_FOR_SCOPE (b->lock);

  qcow2_unreserve_unbacked_locked (b->img, run);
}

/* --- the bytes ---------------------------------------------------------- */

static uint8_t *
bytes_of (const struct piece *p, size_t i)
{
  return p->buf + i * p->op.w->b->cluster_size;
}

/* Reads all at once.  Clusters that lie in sequence already are one part. */
static int
read_all (struct piece *p)
{
  const uint64_t size = p->op.w->b->cluster_size;
  CLEANUP_FREE struct io_part *v = malloc (p->nr_moving * sizeof *v);
  size_t i, nr = 0;

  if (v == NULL)
    return -ENOMEM;
  for (i = 0; i < p->op.nr; i++) {
    if (!moves (p, i))
      continue;
    if (i > 0 && moves (p, i - 1) && p->from[i - 1] + 1 == p->from[i])
      v[nr - 1].len += size;
    else
      v[nr++] = (struct io_part) { .buf = bytes_of (p, i), .len = size,
                                   .host_off = p->from[i] * size };
  }
  return io_read_many (p->op.w->b->io, v, nr);
}

static int
hash_all (struct piece *p)
{
  const struct dedup_writer *w = p->op.w;
  size_t i;
  int r = 0;

  for (i = 0; i < p->op.nr && r == 0; i++) {
    if (!moves (p, i))
      continue;
    p->op.slots[i].checksum = dedup_checksum (bytes_of (p, i),
                                              w->b->cluster_size);
    if (w->dedup)
      r = dedup_hash_slot (&p->op, i);
  }
  return r;
}

/* Finds the cluster that the index names for the bytes of slot I, if that is not
 * the one that they are moved from: the move replaces its entry. */
static void
find_replaced (struct piece *p, size_t i)
{
  struct slot *s = &p->op.slots[i];
  const uint64_t named = dedup_named_for (p->op.w, &s->hash);

  s->moved = p->from[i];
  if (named != 0 && named != p->from[i])
    s->replaced = named;
}

static void
find_all_replaced (struct piece *p)
{
  size_t i;

  for (i = 0; i < p->op.nr; i++)
    if (moves (p, i) && p->op.slots[i].hashed)
      find_replaced (p, i);
}

/* Writes all to the clusters of RUN, in the guest's order. */
static int
write_all (struct piece *p, const struct qcow2_run *run)
{
  const uint64_t size = p->op.w->b->cluster_size;
  CLEANUP_FREE struct iovec *v = malloc (p->nr_moving * sizeof *v);
  int nr = 0;
  size_t i;

  if (v == NULL)
    return -ENOMEM;
  for (i = 0; i < p->op.nr; i++) {
    if (!moves (p, i))
      continue;
    if (i > 0 && moves (p, i - 1))
      v[nr - 1].iov_len += size;
    else
      v[nr++] = (struct iovec) { bytes_of (p, i), size };
  }
  return io_pwritev (p->op.w->b->io, v, nr, run->host_idx * size);
}

/* --- the operation ------------------------------------------------------ */

static void
assign_places (struct piece *p, const struct qcow2_run *run)
{
  uint64_t host_idx = run->host_idx;
  size_t i;

  for (i = 0; i < p->op.nr; i++)
    if (moves (p, i)) {
      p->op.slots[i].value = host_idx++;
      p->op.slots[i].stored = true;
    }
}

/* Frees the clusters of slots that stay after all, as compaction has moved them. */
static void
unreserve_left (struct piece *p)
{
  size_t i;

  for (i = 0; i < p->op.nr; i++)
    if (p->op.slots[i].left) {
      unreserve (p, &(struct qcow2_run) { p->op.slots[i].value, 1, false });
      p->nr_moving--;
    }
}

/* Links the bytes, which are at RUN by now. */
static int
link_all (struct piece *p, const struct qcow2_run *run)
{
  struct dedup_hints *hints = p->op.w->hints;
  size_t i;
  int r;

  assign_places (p, run);
  r = dedup_link (&p->op);
  if (r == 0)
    unreserve_left (p);
  for (i = 0; i < p->op.nr && r == 0 && hints; i++)
    if (moves (p, i))
      dedup_hints_put (hints, p->op.slots[i].checksum,
                       p->op.slots[i].value);
  return r;
}

static int
move (struct piece *p)
{
  const bool late = mutation (MUTATION_DEFRAGMENT_TOO_LATE);
  struct qcow2_run run;
  int r;

  if ((r = hash_all (p)) < 0 ||
      (r = reserve (p, &run)) < 0)
    return r;
  find_all_replaced (p);
  r = late ? 0 : write_all (p, &run);
  if (r == 0)
    r = link_all (p, &run);
  if (r < 0) {
    unreserve (p, &run);
    return r;
  }
  return late ? write_all (p, &run) : 0;
}

static int
count_moved (struct piece *p)
{
  struct dedup_writer *w = p->op.w;
  LOCK_FOR_SCOPE (w->b->lock);

  w->counts.pieces_moved++;
  w->counts.clusters_moved += p->nr_moving;
  w->counts.stored -= p->nr_moving;     /* no client wrote them */
  return (int) p->nr_moving;
}

static int
look_at_all (struct piece *p)
{
  int r;

  qcow2_txn_begin (p->op.w->b->img, &p->op.txn);
  r = qcow2_txn_retry (&p->op.txn, look_on_locked, p);
  qcow2_txn_end (&p->op.txn);
  return r;
}

static int
move_inside (struct piece *p)
{
  struct dedup_writer *w = p->op.w;
  int r = dedup_admit (w->s);

  if (r == 0)
    r = dedup_wait_for_quarantine (w->u);
  if (r == 0)
    r = dedup_enter (&w->s->gate);
  if (r < 0)
    return r;
  qcow2_txn_begin (w->b->img, &p->op.txn);
  r = move (p);
  qcow2_txn_end (&p->op.txn);
  dedup_leave (&w->s->gate);
  return r < 0 ? r : count_moved (p);
}

/* Looks before it enters the gate, because entering sets bit 48: a piece that
 * stays as it is must leave a clean image alone.  What was seen is still so
 * inside, because the caller keeps requests off the guest clusters; only other
 * references to their host clusters may have come, as at any later time. */
static int
look_and_read (struct piece *p)
{
  struct qcow2_image *img = p->op.w->b->img;
  const unsigned reader = qcow2_reader_begin (img);
  int r = look_at_all (p);
  const bool wanted = r == 0 && is_worth_it (p) &&
    host_has_space (p->op.w->b, p->nr_moving);

  if (wanted)
    r = read_all (p);
  qcow2_reader_end (img, reader);
  return r < 0 ? r : wanted;
}

static int
look_and_move (struct piece *p)
{
  int r = look_and_read (p);

  return r <= 0 ? r : move_inside (p);
}

int
dedup_move (struct dedup_writer *w, uint64_t guest_idx, size_t nr)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  CLEANUP_FREE uint64_t *from = NULL;
  struct piece p = { 0 };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  if (!w->s->has_store || !w->b->writable)
    return -ENOTSUP;
  if (!dedup_move_would_help (w->b, guest_idx, nr))
    return 0;                   /* the usual case, which needs no memory */
  p.op = (struct op) { .w = w, .root = QCOW2_ROOT_ACTIVE,
                       .guest_idx = guest_idx, .nr = nr,
                       .zero_entry = dedup_zero_entry (w->b) };
  p.buf = buf = aligned_new (nr * w->b->cluster_size);
  p.from = from = calloc (nr, sizeof *from);
  p.op.buf = buf;
  r = dedup_op_alloc (&p.op);
  if (r == 0)
    r = buf && from ? look_and_move (&p) : -ENOMEM;
  dedup_op_free (&p.op);
  return r;
}
