/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses data that is stored plain (dedup-compress.h).
 *
 * It promises that each plain cluster which was there when it began, and which nobody
 * writes meanwhile, is tried once, and that no guest sees anything of it.
 *
 * One run goes through the tables of all roots (mover.c), twice:
 *
 *   1. How much plain data is there?
 *   2. Pieces of it are read and written again (write/rewrite.c).
 *
 * A piece is one operation, with the records of a write.  So a crash leaves some prefix
 * of the operations, each of which changes nothing that a guest can see.  What it frees
 * is given back as trimmed data is, when law 6 allows.
 *
 * What does not shrink is not tried again for ever: a run looks only at regions in which a
 * client has written something since the run before began (fresh.h).  When the image is
 * opened that counts for all, because nothing in the image says what was tried.  What is
 * written during a run is for the next one.
 *
 * Bytes get a new entry in the index only if they are what it knows for their cluster,
 * as far as it can tell: else rot would be moved to where no scrub can find it.
 *
 * Threads: one in dedup_compress_step; figures and marks on any.  The caller's lock keeps
 * requests off the guest clusters that are compressed.
 */
#include "fresh.h"
#include "mover.h"

#include <errno.h>
#include <stdlib.h>

/* What one operation compresses at most. */
#define PIECE_CLUSTERS 64u
#define PIECE_BYTES (UINT64_C (512) << 10)
/* What is looked at in one call of dedup_mover_map, and calls and regions without a mark
 * in one step. */
#define EXTENTS 64
#define MAPS_PER_STEP 64
#define REGIONS_PER_STEP 65536
/* After so much the moves are made durable, so that their clusters can be freed. */
#define FLUSH_BYTES (UINT64_C (64) << 20)

enum compress_phase {
  COMPRESS_COUNT,               /* counts plain data */
  COMPRESS_WORK,
  COMPRESS_DONE,
};

struct dedup_compress_work {
  struct dedup_pool *pool;      /* constant */
  struct dedup_compress_params p;
  struct dedup_marks *marks;    /* that this run has taken; NULL: it looks at all */
  enum compress_phase phase;
  struct dedup_mover m;         /* where it goes on */
  bool operated;                /* in this step */
  bool keep_shared;             /* roots are passed: they may need plain clusters that have
                                 * several references */
  uint64_t unflushed;           /* bytes */
  struct dedup_compress_figures f;      /* atomic */
};

static void
add (uint64_t *figure, uint64_t n)
{
  __atomic_add_fetch (figure, n, __ATOMIC_RELAXED);
}

/* Finds out whether there are roots whose data is not to be compressed. */
static void
look_for_plain_roots (struct dedup_compress_work *c)
{
  struct qcow2_image *img = c->pool->base.img;
  LOCK_FOR_SCOPE (c->pool->base.lock);
  const unsigned nr = qcow2_nr_roots_locked (img);
  unsigned root;

  c->keep_shared = false;
  for (root = 0; root < nr; root++)
    c->keep_shared |= qcow2_movable_size_locked (img, root) > 0 &&
      !dedup_packs_locked (&c->pool->writer.pack, root);
}

/* Goes on with the next root, or the next phase.  Returns 0 at the end. */
static int
end_root (struct dedup_compress_work *c)
{
  if (dedup_mover_next (&c->m))
    return 1;
  dedup_mover_begin (&c->m);
  c->phase++;
  look_for_plain_roots (c);
  return c->phase != COMPRESS_DONE;
}

/* --- Pieces ------------------------------------------------------------------- */

/* Compresses a piece as one operation.  -ENOENT: its root is not written any more. */
static int
compress (struct dedup_compress_work *c, uint64_t guest_idx, size_t nr)
{
  const uint64_t size = c->pool->base.cluster_size;
  struct dedup_compressed res;
  int r = dedup_pipeline_compress (&c->pool->writer, c->m.root, guest_idx, nr,
                                   c->keep_shared, &res);

  if (r < 0)
    return r == -EINVAL ? -ENOENT : r;
  add (&c->f.read_bytes, (res.moved + res.too_large + res.raced) * size);
  add (&c->f.compressed_bytes, res.moved * size);
  c->unflushed += res.moved * size;
  add (&c->f.too_large, res.too_large);
  add (&c->f.shared, res.shared);
  add (&c->f.doubtful, res.doubtful);
  if (res.raced > 0)
    dedup_fresh_note (c->pool->fresh, c->m.root, guest_idx, nr);
  return res.no_space > 0 ? -ENOSPC : 0;
}

/* Does so; cluster by cluster where one of them cannot be read. */
static int
compress_readable (void *opaque, uint64_t guest_idx, size_t nr)
{
  struct dedup_compress_work *c = opaque;
  int r = compress (c, guest_idx, nr);
  size_t i;

  if (r != -EIO || dedup_failed (c->pool))
    return r;
  for (i = 0, r = 0; i < nr && r == 0; i++) {
    r = compress (c, guest_idx + i, 1);
    if (r == -EIO && !dedup_failed (c->pool)) {
      add (&c->f.doubtful, 1);
      r = 0;
    }
  }
  return r;
}

/* Returns how many guest clusters from one on are the next piece, of those before END_IDX
 * in its table. */
static size_t
piece_of (const struct dedup_compress_work *c, uint64_t guest_idx, uint64_t end_idx)
{
  const uint64_t per = qcow2_geometry (c->pool->base.img)->l2_entries;
  const uint64_t most = MAX_OF (1, MIN_OF (PIECE_CLUSTERS, PIECE_BYTES >>
                                           c->pool->base.cluster_bits));

  return MIN_OF (MIN_OF (end_idx - guest_idx, most), per - guest_idx % per);
}

/* Handles plain data, or the first part of it, and goes on behind that: counts it, or
 * compresses a piece of what begins there and ends before END_OFF at the latest. */
static int
take_plain (struct dedup_compress_work *c, const struct qcow2_extent *ext,
            uint64_t end_off)
{
  const unsigned bits = c->pool->base.cluster_bits;
  const uint64_t idx = MAX_OF (ext->guest_off, c->m.guest_off) >> bits;
  uint64_t end_idx = ((ext->guest_off + ext->len - 1) >> bits) + 1;
  int r = 0;

  if (c->phase == COMPRESS_COUNT)
    add (&c->f.found_bytes, (end_idx - idx) << bits);
  else {
    end_idx = idx + piece_of (c, idx, ((end_off - 1) >> bits) + 1);
    r = dedup_mover_run (&c->m, idx, end_idx - idx, compress_readable, c);
    c->operated = true;
  }
  if (r == 0)
    c->m.guest_off = end_idx << bits;
  return r;
}

/* Goes on behind N extents, which end at END_OFF at the latest, or behind the first
 * operation. */
static int
take_extents (struct dedup_compress_work *c, const struct qcow2_extent *ext, int n,
              uint64_t end_off)
{
  int i = 0, r = 0;

  while (i < n && r == 0 && !c->operated) {
    const uint64_t end = ext[i].guest_off + ext[i].len;

    if (ext[i].kind == QCOW2_DATA && end > c->m.guest_off)
      r = take_plain (c, &ext[i], end_off);
    else {
      c->m.guest_off = MAX_OF (c->m.guest_off, end);
      i++;
    }
  }
  return r;
}

/* Goes to the next place that has a mark.  Returns where that mark's region, or what is
 * looked at together, ends; 0: none was found yet. */
static uint64_t
next_marked (struct dedup_compress_work *c, uint64_t size)
{
  const uint64_t bytes = (uint64_t) DEDUP_REGION << c->pool->base.cluster_bits;
  unsigned i;

  if (c->marks == NULL)
    return size;
  for (i = 0; i < REGIONS_PER_STEP && c->m.guest_off < size; i++) {
    if (dedup_marks_have (c->marks, c->m.root, c->m.guest_off / bytes))
      return (c->m.guest_off / bytes + 1) * bytes;
    c->m.guest_off = (c->m.guest_off / bytes + 1) * bytes;
  }
  return 0;
}

/* Counts or compresses in the next part of a root. */
static int
take_root (struct dedup_compress_work *c)
{
  const uint64_t size = dedup_mover_size (&c->m);
  struct qcow2_extent ext[EXTENTS];
  uint64_t end;
  int i, n, r = 0;

  c->operated = false;
  for (i = 0; i < MAPS_PER_STEP && !c->operated && r == 0; i++) {
    end = MIN_OF (next_marked (c, size), size);
    if (end <= c->m.guest_off)
      break;
    n = dedup_mover_map (&c->m, end, ext, EXTENTS);
    r = n < 0 ? n : take_extents (c, ext, n, end);
  }
  if (r == -ENOENT)
    return end_root (c);
  return r < 0 ? r : c->m.guest_off < size ? 1 : end_root (c);
}

/* --- The whole ----------------------------------------------------------------- */

static int
flush (struct dedup_compress_work *c)
{
  int r = dedup_flush (c->pool);

  if (r == 0)
    c->unflushed = 0;
  return r;
}

int
dedup_compress_step (struct dedup_compress_work *c)
{
  int r = 1;

  if (c->unflushed >= FLUSH_BYTES)
    return (r = flush (c)) < 0 ? r : 1;
  switch (c->phase) {
  case COMPRESS_COUNT: case COMPRESS_WORK: r = take_root (c); break;
  case COMPRESS_DONE: r = 0; break;
  }
  return r == 0 && c->unflushed > 0 ? flush (c) : r;
}

void
dedup_compress_figures (struct dedup_compress_work *c,
                        struct dedup_compress_figures *f)
{
  f->read_bytes = __atomic_load_n (&c->f.read_bytes, __ATOMIC_RELAXED);
  f->found_bytes = MAX_OF (__atomic_load_n (&c->f.found_bytes, __ATOMIC_RELAXED),
                           f->read_bytes);
  f->compressed_bytes = __atomic_load_n (&c->f.compressed_bytes, __ATOMIC_RELAXED);
  f->too_large = __atomic_load_n (&c->f.too_large, __ATOMIC_RELAXED);
  f->shared = __atomic_load_n (&c->f.shared, __ATOMIC_RELAXED);
  f->doubtful = __atomic_load_n (&c->f.doubtful, __ATOMIC_RELAXED);
}

bool
dedup_compress_due (struct dedup_pool *pool)
{
  return dedup_fresh_is_due (pool->fresh) && dedup_packs_any (&pool->writer.pack);
}

bool
dedup_compress_met_readers (struct dedup_pool *pool)
{
  return dedup_fresh_was_read (pool->fresh);
}

/* Takes the one place that there is. */
static int
claim (struct dedup_pool *pool, bool all)
{
  if (!pool->store.has_store || !pool->base.writable ||
      !dedup_packs_any (&pool->writer.pack) || (!all && pool->fresh == NULL))
    return -ENOTSUP;
  LOCK_FOR_SCOPE (pool->base.lock);
  if (pool->compressing)
    return -EBUSY;
  pool->compressing = true;
  return 0;
}

static void
give_place_back (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);

  pool->compressing = false;
}

int
dedup_compress_begin (struct dedup_pool *pool, const struct dedup_compress_params *p,
                      struct dedup_compress_work **out)
{
  struct dedup_compress_work *c;
  int r = claim (pool, p->all);

  if (r < 0)
    return r;
  c = calloc (1, sizeof *c);
  if (c) {
    c->pool = pool;
    c->p = *p;
    c->m = (struct dedup_mover) { .pool = pool, .lock = p->lock, .unlock = p->unlock,
                                  .opaque = p->opaque, .fresh = pool->fresh,
                                  .to_compress = true };
    c->marks = p->all ? NULL : dedup_fresh_take (pool->fresh);
  }
  r = c == NULL || (!p->all && c->marks == NULL) ? -ENOMEM : dedup_mover_prepare (pool);
  if (r < 0) {
    if (c && c->marks)
      dedup_fresh_put_back (pool->fresh, c->marks);
    free (c ? c->marks : NULL);
    free (c);
    give_place_back (pool);
    return r;
  }
  dedup_mover_begin (&c->m);
  look_for_plain_roots (c);
  *out = c;
  return 0;
}

void
dedup_compress_end (struct dedup_compress_work *c)
{
  if (c == NULL)
    return;
  if (c->marks && c->phase != COMPRESS_DONE)
    dedup_fresh_put_back (c->pool->fresh, c->marks);
  give_place_back (c->pool);
  dedup_mover_end (&c->m);
  free (c->marks);
  free (c);
}
