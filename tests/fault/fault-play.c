/* SPDX-License-Identifier: BSD-3-Clause */
/* Plays a workload on the real engine, one call of which fails.
 *
 * The workload takes errors as a client would, and continues.  A failed
 * operation must have done nothing or all of it, and a read without the fault
 * shows at once which; so the model is exact, and what a crash leaves must be
 * the model after a prefix of the operations that has all that were durable.
 *
 * After the fault the workload continues for a while, into the next session.
 * Then the process "dies" (dedup_free) and what is left is judged, and after a
 * sync that failed, also what a power cut at that moment would have left.
 *
 * A disk without a store promises less (fault-direct.c): an operation that
 * failed may be there in parts, and so may be what was not flushed.
 */
#include "fault-world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image.h"

#define OPS_AFTER_HIT 40

static bool
is_client_errno (int r)
{
  return r == -EIO || r == -ENOSPC || r == -ENOMEM || r == -EROFS;
}

static int
known (struct world *w, int r, const char *what)
{
  if (r != 0 && !is_client_errno (r))
    die (w, "%s returned %d (%s)", what, r, strerrorname_np (-r));
  if (r != 0 && (!w->hit || w->healed))
    die (w, "%s failed without a fault: %s", what, strerror (-r));
  if (r != 0 && w->plan.lifted && r != -ENOSPC)
    die (w, "%s failed on a full host: %s", what, strerror (-r));
  return r;
}

/* --- the model ----------------------------------------------------------- */

static void
apply (uint64_t ids[NR], const struct op *op)
{
  memcpy (ids + op->idx, op->ids, op->nr * sizeof op->ids[0]);
}

static void
took_effect (struct world *w, const struct op *op)
{
  w->ops[w->nr_ops++] = *op;
  apply (w->now, op);
}

/* Reads all clusters with the fault out of the way. */
static void
read_ids (struct world *w, struct dedup_pool *d, uint64_t ids[NR])
{
  bool armed = w->armed;
  int r;

  w->armed = false;
  r = read_slots (w, d, ids);
  if (r < 0)
    die (w, "a read that nothing disturbs failed: %s", strerror (-r));
  w->armed = armed;
}

/* OP failed without a store: of each cluster all is there, or nothing; and
 * the rest may come with a crash. */
static void
settle_parts (struct world *w, const struct op *op, const uint64_t got[NR])
{
  struct op parts = *op;
  size_t i;

  for (i = 0; i < NR; i++)
    if (got[i] != w->now[i] &&
        (i < op->idx || i >= op->idx + op->nr ||
         got[i] != op->ids[i - op->idx]))
      die (w, "an operation that failed did something else");
  took_effect (w, op);
  memcpy (parts.ids, got + op->idx, op->nr * sizeof parts.ids[0]);
  took_effect (w, &parts);
}

/* OP failed: is all of it there, or nothing? */
static void
settle_failed (struct world *w, const struct op *op)
{
  uint64_t got[NR], new[NR];

  memcpy (new, w->now, sizeof new);
  apply (new, op);
  read_ids (w, w->d, got);
  if (memcmp (got, w->now, sizeof got) == 0)
    return;
  if (w->shape->direct)
    settle_parts (w, op, got);
  else if (memcmp (got, new, sizeof got) != 0)
    die (w, "an operation that failed did something else");
  else
    took_effect (w, op);
}

int
settle_op (struct world *w, int r, const struct op *op, const char *what)
{
  if (known (w, r, what) == 0)
    took_effect (w, op);
  else
    settle_failed (w, op);
  return r;
}

bool
is_prefix (const struct world *w, const uint64_t got[NR])
{
  uint64_t ids[NR];
  size_t i;

  memcpy (ids, w->base_ids, sizeof ids);
  for (i = 0; ; i++) {
    if (i >= w->durable && memcmp (ids, got, sizeof ids) == 0)
      return true;
    if (i == w->nr_ops)
      return false;
    apply (ids, &w->ops[i]);
  }
}

/* --- operations ---------------------------------------------------------- */

/* OP is in a disk that has CLUSTERS. */
static void
random_op (struct world *w, struct op *op, uint64_t clusters)
{
  size_t i;

  op->nr = 1 + rnd (&w->rng, rnd (&w->rng, 4) ? 4 : 16);
  op->idx = rnd (&w->rng, clusters - op->nr + 1);
  for (i = 0; i < op->nr; i++)
    if (rnd (&w->rng, 8) == 0)
      op->ids[i] = 0;
    else if (rnd (&w->rng, w->shape->unique_in) == 0)
      op->ids[i] = w->next_id++;
    else
      op->ids[i] = 1 + rnd (&w->rng, 40);
}

static void
do_change (struct world *w)
{
  uint8_t buf[16 * CLUSTER];
  struct op op;
  bool unmap = rnd (&w->rng, 5) == 0, writable;
  unsigned slot = w->shape->disks ? (unsigned) rnd (&w->rng, w->shape->disks)
    : 0, root;
  uint64_t clusters = slot_find (w, w->d, slot, &root, &writable);
  size_t i;
  int r;

  if (clusters == 0 || !writable)
    return;
  random_op (w, &op, clusters);
  if (unmap) {
    memset (op.ids, 0, sizeof op.ids);
    r = ENGINE (w, dedup_unmap (w->d, root, op.idx, op.nr, rnd (&w->rng, 2) ?
                                DEDUP_TRIM : DEDUP_ZERO));
  }
  else {
    for (i = 0; i < op.nr; i++)
      fill_cluster (buf + i * CLUSTER, op.ids[i]);
    r = ENGINE (w, dedup_write (w->d, root, buf, op.idx, op.nr));
  }
  op.idx += slot * slot_clusters (w);
  settle_op (w, r, &op, unmap ? "unmap" : "write");
}

static void
do_read (struct world *w)
{
  uint8_t buf[8 * CLUSTER];
  uint64_t idx = rnd (&w->rng, slot_clusters (w) - 8), id;
  size_t i;

  if (known (w, ENGINE (w, dedup_read (w->d, 0, buf, idx * CLUSTER,
                                       sizeof buf)), "read") < 0)
    return;
  for (i = 0; i < 8; i++)
    if (!identify_cluster (buf + i * CLUSTER, &id) || id != w->now[idx + i])
      die (w, "cluster %d reads as another", (int) (idx + i));
}

/* Contents stay, whatever fails. */
static void
do_index (struct world *w)
{
  struct dedup_existing counts = { 0 };
  uint64_t idx = rnd (&w->rng, NR - 16);
  size_t nr;
  int r;

  r = ENGINE (w, dedup_existing_next (w->d, &idx, &nr, &counts));
  if (r != 1) {
    known (w, r, "looking for clusters to index");
    return;
  }
  nr = MIN_OF (nr, 1 + rnd (&w->rng, 16));
  known (w, ENGINE (w, dedup_existing_index (w->d, idx, nr, true, &counts)),
         "indexing");
}

static void
do_flush (struct world *w)
{
  if (known (w, ENGINE (w, dedup_flush (w->d)), "flush") < 0)
    return;
  if (w->sync_failed)
    die (w, "a flush returned 0 after a sync had failed");
  w->durable = w->nr_ops;
}

/* Nobody is reading a table now. */
static void
check_cache (struct world *w)
{
  struct qcow2_image *img = dedup_image (w->d);
  LOCK_FOR_SCOPE (&img->lock);

  for (size_t i = 0; i < img->cache.nr_slices; i++)
    if (img->cache.clock[i]->loading || !img->cache.clock[i]->data)
      die (w, "a slice of a table is left without contents");
}

/* A failed sync must be known to all; what merely finds no space, or gives
 * none back, must not stop the disk. */
static void
check_state (struct world *w)
{
  bool harmless = (w->plan.kind == IO_ALLOCATE && w->plan.err == ENOSPC) ||
    w->plan.kind == IO_DISCARD || w->plan.kind == IO_PREAD || w->plan.lifted;
  int failed = dedup_failed (w->d);

  if (w->sync_failed && failed == 0)
    die (w, "a sync failed and the disk takes writes");
  if (failed != 0 && (!w->hit || harmless))
    die (w, "the disk has stopped for no good reason");
  check_cache (w);
}

static void
do_job (struct world *w)
{
  unsigned urgent, job = DEDUP_JOB_COMMIT, due = dedup_due (w->d, &urgent);

  if (rnd (&w->rng, 4) == 0)
    urgent = due;
  if (urgent == 0)
    return;
  do
    job = 1u << rnd (&w->rng, w->shape->disks ? 11 : 10);
  while (!(urgent & job));
  known (w, ENGINE (w, dedup_run (w->d, job)), "a job");
  w->jobs_done |= job;
}

/* Compacts for a while; nobody else is there, so it needs no lock. */
static void
do_compact (struct world *w)
{
  const struct dedup_compact_params p = { .percent = 1, .max_packed = 8,
                                          .max_clusters = 4 };
  struct dedup_compact *c;
  int i, r = ENGINE (w, dedup_compact_begin (w->d, &p, &c));

  if (r == -ENOTSUP)            /* the image could not record that it compresses */
    return;
  if (known (w, r, "compaction") < 0)
    return;
  for (i = 0, r = 1; i < 40 && r == 1; i++) {
    r = ENGINE (w, dedup_compact_step (c));
    (void) known (w, MIN_OF (r, 0), "a step of compaction");
  }
  dedup_compact_end (c);
}

/* Compresses likewise what is plain. */
static void
do_compress (struct world *w)
{
  const struct dedup_compress_params p = { .all = false };
  struct dedup_compress_work *c;
  int i, r = ENGINE (w, dedup_compress_begin (w->d, &p, &c));

  if (r == -ENOTSUP)            /* the image could not record that it compresses */
    return;
  if (known (w, r, "compressing") < 0)
    return;
  for (i = 0, r = 1; i < 40 && r == 1; i++) {
    r = ENGINE (w, dedup_compress_step (c));
    (void) known (w, MIN_OF (r, 0), "a step of compressing");
  }
  dedup_compress_end (c);
}

/* --- sessions ------------------------------------------------------------ */

/* Open; false: it failed. */
static bool
start_session (struct world *w)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  int r;

  open_params (w->shape, &p);
  if (w->shape->limit_removed && w->sessions > 0)
    p.max_incarnations = 0;
  w->sessions++;
  w->sync_failed = false;
  w->d = NULL;
  r = ENGINE (w, dedup_open (w->image.io, &p, &w->d, &f));
  if (r < 0 && f.err != -r)
    die (w, "open returned %d, its fault says %d", r, f.err);
  if (known (w, r, "open") < 0) {
    w->d = NULL;
    return false;
  }
  data_attach (w->d, w->data.io);
  check_state (w);
  return true;
}

static bool
image_is_marked (struct world *w)
{
  uint8_t byte;

  /* Incompatible features are bytes 72 to 79: bit 48 is in byte 73. */
  if (io_pread (w->image.mem, &byte, 1, 73) < 0)
    die (w, "the test itself: header");
  return byte & 1;
}

static void
end_session (struct world *w)
{
  bool left;
  int r;

  /* Some close with lent tables and deleted disks. */
  if (w->shape->disks && rnd (&w->rng, 2))
    known (w, ENGINE (w, dedup_disks_settle (w->d)), "settle");
  left = dedup_disks_pending (w->d);
  r = known (w, ENGINE (w, dedup_finish (w->d)), "finish");
  if (r == 0 && w->sync_failed)
    die (w, "a close was clean after a sync had failed");
  if (r == 0 && !left && image_is_marked (w))
    die (w, "closed, and still to be recovered");
  if (r == 0)
    w->durable = w->nr_ops;
  world_close (w);
}

static void
one_step (struct world *w)
{
  if (w->shape->disks && rnd (&w->rng, 4) == 0)
    change_disks (w);
  do_change (w);
  if (w->shape->flush_always || rnd (&w->rng, 6) == 0)
    do_flush (w);
  if (!w->shape->no_jobs && rnd (&w->rng, 3) == 0)
    do_job (w);
  if (w->shape->indexes && rnd (&w->rng, 3) == 0)
    do_index (w);
  if (w->shape->compress && rnd (&w->rng, 20) == 0)
    do_compact (w);
  if (w->shape->later && rnd (&w->rng, 5) == 0)
    do_compress (w);
  if (rnd (&w->rng, 6) == 0)
    do_read (w);
  check_state (w);
}

/* With a base of nothing: make the image first. */
static bool
make_image (struct world *w)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = (uint64_t) NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = w->shape->order, .journal_areas = w->shape->journal_areas,
  };
  struct fault f = { 0 };

  return known (w, ENGINE (w, dedup_create (w->image.io, &p, &f)), "create") == 0;
}

/* Without a store nothing has made durable what is there now. */
static void
take_stock_of_parts (struct world *w, const uint64_t got[NR])
{
  struct op op = { .nr = 16 };

  if (!is_explained (w, got))
    die (w, "the process died: what is left nobody wrote");
  for (; op.idx < NR; op.idx += op.nr) {
    memcpy (op.ids, got + op.idx, sizeof op.ids);
    took_effect (w, &op);
  }
}

/* What the dead process had not flushed may be gone; what is there now, the
 * recovery has made durable. */
static void
take_stock (struct world *w)
{
  uint64_t got[NR];

  read_ids (w, w->d, got);
  if (w->shape->direct) {
    take_stock_of_parts (w, got);
    return;
  }
  if (!is_prefix (w, got))
    die (w, "the process died: what is left is no prefix");
  memcpy (w->base_ids, got, sizeof got);
  memcpy (w->now, got, sizeof got);
  w->nr_ops = w->durable = 0;
}

static void
heal (struct world *w)
{
  w->healed = w->plan.lifted;
}

/* What a fault stops once, goes the second time; a full host may refuse until
 * it is not full any more. */
static bool
start_again (struct world *w)
{
  if (start_session (w))
    return true;
  heal (w);
  return start_session (w);
}

/* End this session, cleanly or not, and start another; false: it cannot. */
static bool
next_session (struct world *w)
{
  /* A crash ends exactness, and leaves bitmaps marked for ever. */
  if (rnd (&w->rng, 3) || w->healed ||
      ((w->shape->exact || w->shape->bitmaps) && !w->hit))
    end_session (w);
  else                          /* the process dies, the host does not */
    world_close (w);
  /* Nobody writes again what the host threw away then: only a recovery from a
   * journal could. */
  if (w->shape->direct && w->sync_failed)
    return false;
  if (!start_again (w))
    return false;
  take_stock (w);
  return true;
}

/* Operations on a full host.  One play in three ends there: what was synced and
 * some of the rest must be a prefix. */
static unsigned
ops_until_healed (const struct world *w)
{
  return w->plan.k % 3 == 0 ? 2 * OPS_AFTER_HIT
    : 1 + (unsigned) (w->plan.k % OPS_AFTER_HIT);
}

static void
act (struct world *w)
{
  unsigned i, left = w->shape->nr_ops, often = left * 2 / 3, heals = 0;
  bool seen = false;

  if (!start_again (w))
    return;
  for (i = 0; i < left; i++) {
    if (w->hit && !seen) {
      seen = true;
      left = MIN_OF (left, i + OPS_AFTER_HIT);
      heals = i + ops_until_healed (w);
      if (w->plan.lifted)
        left = i + 2 * OPS_AFTER_HIT;
    }
    if (seen && i == heals)
      heal (w);
    one_step (w);
    if ((rnd (&w->rng, seen ? OPS_AFTER_HIT / 2 : often) == 0 ||
         (w->shape->limit_removed && w->sessions == 1 && i == left / 2)) &&
        !next_session (w))
      return;
  }
  if (!w->hit || w->healed)
    end_session (w);
}

void
play (struct world *w)
{
  w->armed = true;
  if (w->shape->base != BASE_NOTHING || make_image (w))
    act (w);
  w->armed = false;
  world_close (w);
  if (w->shape->direct) {
    judge_all_direct (w);
    return;
  }
  if (w->plan.lifted)           /* some of what was not synced is there, too */
    world_settle (w, &w->chance);
  judge (w, w->image.mem, "after the process died");
  if (w->plan.kind == IO_SYNC || w->plan.lifted)
    judge (w, w->image.power, "after a power cut");
}
