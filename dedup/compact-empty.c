/* SPDX-License-Identifier: BSD-3-Clause */
/* Moves data out of clusters that are to become free (compact-empty.h).
 *
 * The list of these clusters is given to the writer: no candidate that touches one of them
 * is linked any more, so data that is written again goes elsewhere, and its entry in the
 * index with it.  Then the tables of all roots are read, and each guest cluster with data
 * in such a cluster is read and written again (mover.c).
 *
 * A guest cluster is moved as by a write of the bytes that it has: the same records, so a
 * crash leaves some prefix of the moves, each of which changes nothing that a guest can
 * see.  The last one that leaves a cluster frees it, and its space is given back as that
 * of trimmed data, when law 6 allows.
 *
 * The bytes are what the guest's own entry leads to, never what the index says.  Before
 * they get a new entry they must be what the index knows for their descriptor, if it can
 * tell: else rot would be moved to where no scrub can find it.
 *
 * Threads: one in dedup_emptying_step.  The caller's lock keeps requests off the guest
 * clusters that are moved.
 */
#include "aligned.h"
#include "compact-empty.h"
#include "qcow2-packed.h"
#include "value.h"

#include <errno.h>
#include <stdlib.h>

/* Guest clusters that are looked at for one operation. */
#define MAX_MOVE QCOW2_PACKED_GROUP
/* Those of them that are moved while clients compete for the processors, and for the
 * image lock, which a link step holds for as long as it takes to link all of an
 * operation.  An operation loses half of its last block: of clusters of 4 KiB that shrink
 * to half, 16 lose 0.8 % with blocks of a sector.  With blocks of 4 KiB that would be
 * 6 %, and is 1.6 % of MAX_MOVE. */
#define SMALL_MOVE 16u
/* What is looked at in one call of qcow2_map, and calls in one step. */
#define EXTENTS 64
#define PER_STEP 64

static void
add (uint64_t *figure, uint64_t n)
{
  __atomic_add_fetch (figure, n, __ATOMIC_RELAXED);
}

/* Gives the list to the writer; none: takes it back. */
static void
tell_writer (struct dedup_emptying *e, const uint64_t *v, size_t nr)
{
  struct dedup_pool *pool = e->pool;
  LOCK_FOR_SCOPE (pool->base.lock);

  pool->writer.emptying = v;
  pool->writer.nr_emptying = nr;
}

/* --- What is moved ------------------------------------------------------------ */

/* Returns whether an L2 entry leads to data in a cluster that is to be emptied. */
static bool
is_in_list (const struct dedup_emptying *e, uint64_t entry)
{
  uint64_t first, count;

  if (!(entry & QCOW2_L2_COMPRESSED))
    return false;
  qcow2_entry_clusters (e->pool->base.img, entry, &first, &count);
  return dedup_any_between (e->v, e->nr, first, count);
}

struct look {
  unsigned root;
  uint64_t guest_idx;
  uint64_t entry;               /* results */
  bool anchored;
};

/* Gets an entry, and finds out whether all clusters that it touches are anchored. */
static int
look_locked (struct qcow2_txn *txn, void *opaque)
{
  struct look *l = opaque;
  uint64_t first, count, k, refcount;
  bool anchored;
  int r;

  assert (lock_held (qcow2_lock (txn->img)));
  r = qcow2_get_entry_locked (txn, l->root, l->guest_idx, &l->entry);
  l->anchored = true;
  if (r < 0)
    return r;
  qcow2_entry_clusters (txn->img, l->entry, &first, &count);
  for (k = first; k < first + count && r == 0; k++) {
    r = qcow2_get_refcount_locked (txn, k, &refcount, &anchored);
    l->anchored &= r == 0 && anchored;
  }
  return r;
}

static bool
index_is_complete (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);
  return dedup_index_complete_locked (pool->store.index);
}

/* Returns whether BYTES may be entered for the data of an entry: they are what the index
 * knows, or it cannot know them. */
static bool
are_right (struct dedup_emptying *e, const struct look *l, const uint8_t *bytes)
{
  struct dedup_writer *w = &e->pool->writer;
  const uint64_t value = l->entry & ~QCOW2_L2_COPIED;
  const struct dedup_hash mark = dedup_unknown_mark (value);
  struct dedup_hash h;

  if (!l->anchored || !w->dedup || !index_is_complete (e->pool))
    return true;
  return dedup_hash_compute (&w->b->hasher, bytes, w->b->cluster_size, &h) == 0 &&
    (dedup_named_value (w, &h) == value ||
     dedup_named_value (w, &mark) == value);
}

/* Counts guest clusters that were to be moved, and stay. */
static void
leave (struct dedup_emptying *e, uint64_t nr)
{
  add (&e->f->left, nr);
  add (&e->f->handled_bytes, nr * e->pool->base.cluster_size);
}

/* Gets an entry, and reads the data.  -ENOENT: it is not in the list. */
static int
look_and_read (struct dedup_emptying *e, struct look *l)
{
  struct qcow2_image *img = e->pool->base.img;
  const unsigned reader = qcow2_reader_begin (img);
  int r = qcow2_txn_run (img, look_locked, l);

  if (r < 0 || !is_in_list (e, l->entry))
    r = r == -ENOMEM ? r : -ENOENT;
  else
    r = qcow2_compressed_read (img, l->entry & ~QCOW2_L2_COPIED, e->buf);
  qcow2_reader_end (img, reader);
  return r;
}

/* Decides on a guest cluster.  1: it is to be moved; 0: it is not in the list; 2: it is,
 * and stays. */
static int
look_at_data (struct dedup_emptying *e, uint64_t guest_idx)
{
  struct look l = { .root = e->m.root, .guest_idx = guest_idx };
  int r = look_and_read (e, &l);

  if (r == -ENOENT)
    return 0;
  if (r == -ENOMEM)
    return r;
  if (r == 0 && are_right (e, &l, e->buf))
    return 1;
  leave (e, 1);
  add (&e->f->doubtful, 1);
  return 2;
}

static bool
avoids_cb (const void *opaque, uint64_t entry)
{
  return is_in_list (opaque, entry);
}

/* Moves those of NR guest clusters that are in the list, N of them, as one operation.
 * What does not shrink, or finds no space, stays. */
static int
move_run (struct dedup_emptying *e, uint64_t guest_idx, size_t nr, size_t n)
{
  int r = dedup_pipeline_rewrite (&e->pool->writer, e->m.root, guest_idx, nr,
                                  avoids_cb, e);

  if (r < 0)
    return r == -EINVAL ? -ENOENT : r;  /* the root cannot be written any more */
  add (&e->f->moved_bytes, (uint64_t) r * e->pool->base.cluster_size);
  add (&e->f->handled_bytes, (uint64_t) r * e->pool->base.cluster_size);
  leave (e, n - MIN_OF (n, (size_t) r));
  return 0;
}

/* Moves those of NR guest clusters that are to be moved, in one operation, or in several
 * where one that is in the list stays. */
static int
move_range (void *opaque, uint64_t guest_idx, size_t nr)
{
  struct dedup_emptying *e = opaque;
  size_t i, from = 0, n = 0;
  int r = 0;

  for (i = 0; i <= nr && r >= 0; i++) {
    r = i < nr ? look_at_data (e, guest_idx + i) : 2;
    if (r == 1 && n++ == 0)
      from = i;
    else if (r == 2 && n > 0) {
      r = move_run (e, guest_idx + from, i - from, n);
      n = 0;
    }
  }
  return MIN_OF (r, 0);
}

/* --- The roots ---------------------------------------------------------------- */

static bool
is_to_move (const struct dedup_emptying *e, const struct qcow2_extent *ext)
{
  return ext->kind == QCOW2_COMPRESSED && is_in_list (e, ext->entry);
}

static uint64_t
end_of (const struct qcow2_extent *ext)
{
  return ext->guest_off + ext->len;
}

/* Returns how many of N extents from number I on are looked at for one operation: up to the
 * last one to be moved of MAX_MOVE guest clusters, or as many as it may move.  What is
 * between them and stays costs nothing.  0: number I stays. */
static int
run_of (const struct dedup_emptying *e, const struct qcow2_extent *ext, int i, int n)
{
  const uint64_t end =
    ext[i].guest_off + ((uint64_t) MAX_MOVE << e->pool->base.cluster_bits);
  unsigned moves = 0;
  int k, nr = 0;

  if (!is_to_move (e, &ext[i]))
    return 0;
  for (k = i; k < n && end_of (&ext[k]) <= end && moves < e->max_move; k++)
    if (is_to_move (e, &ext[k])) {
      nr = k - i + 1;
      moves++;
    }
  /* The table may have more for it behind the extents that there was room for. */
  return k == n && n == EXTENTS && i > 0 ? -1 : nr;
}

/* Moves what is to be moved of N extents of one table, or one operation of that in a small
 * step, and goes on behind it. */
static int
move_extents (struct dedup_emptying *e, const struct qcow2_extent *ext, int n)
{
  const struct dedup_base *b = &e->pool->base;
  int i, k, r = 0;

  for (i = 0; i < n && r == 0; i += MAX_OF (k, 1)) {
    k = run_of (e, ext, i, n);
    if (k < 0)
      return 0;
    if (k > 0) {
      const uint64_t len = end_of (&ext[i + k - 1]) - ext[i].guest_off;

      r = dedup_mover_run (&e->m, ext[i].guest_off >> b->cluster_bits,
                           div_round_up (len, b->cluster_size), move_range, e);
    }
    if (r == 0)
      e->m.guest_off = end_of (&ext[i + MAX_OF (k, 1) - 1]);
    if (k > 0 && e->max_move < MAX_MOVE)
      break;
  }
  return r;
}

/* Goes on with the next part of the root.  0: the root is done. */
static int
move_in_root (struct dedup_emptying *e)
{
  const uint64_t size = dedup_mover_size (&e->m);
  struct qcow2_extent ext[EXTENTS];
  int n, i, r = 0;

  for (i = 0; i < PER_STEP && e->m.guest_off < size && r == 0; i++) {
    const uint64_t before = e->f->moved_bytes;

    n = dedup_mover_map (&e->m, size, ext, EXTENTS);
    r = n < 0 ? n : move_extents (e, ext, n);
    if (e->f->moved_bytes != before)
      break;                    /* that was an operation, or some */
  }
  if (r == -ENOENT)
    return 0;
  return r < 0 ? r : e->m.guest_off < size;
}

/* --- The whole ---------------------------------------------------------------- */

int
dedup_emptying_init (struct dedup_emptying *e, struct dedup_pool *pool,
                     const struct dedup_compact_params *p,
                     struct dedup_compact_figures *f)
{
  *e = (struct dedup_emptying) {
    .pool = pool, .f = f,
    .m = { .pool = pool, .lock = p->lock, .unlock = p->unlock, .opaque = p->opaque },
    .buf = aligned_new (pool->base.cluster_size),
  };
  return e->buf == NULL ? -ENOMEM : 0;
}

void
dedup_emptying_destroy (struct dedup_emptying *e)
{
  tell_writer (e, NULL, 0);
  dedup_mover_end (&e->m);
  free (e->buf);
}

void
dedup_emptying_begin (struct dedup_emptying *e, const uint64_t *v, size_t nr)
{
  e->v = v;
  e->nr = nr;
  tell_writer (e, v, nr);
  dedup_mover_begin (&e->m);
}

int
dedup_emptying_step (struct dedup_emptying *e, bool small)
{
  const bool loses_little = io_block_size (e->pool->base.io) <= DEDUP_SECTOR;
  int r;

  e->max_move = small && loses_little ? SMALL_MOVE : MAX_MOVE;
  r = move_in_root (e);
  if (r != 0)
    return r;
  if (dedup_mover_next (&e->m))
    return 1;
  tell_writer (e, NULL, 0);
  return 0;
}
