/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens an image: brings its parts together, and frees them at close.
 *
 * Open is a sequence of steps: the image; the store's configuration; the
 * journal, replayed if bit 48 is set; then, for writing, the recovered tables
 * are written to the file.  Whatever is wrong with the store of a clean image
 * makes the store void, never the data: a new store is begun.
 *
 * One thread.
 */
#include "fresh.h"
#include "pool.h"

#include <errno.h>
#include <inttypes.h>

/* --- open --------------------------------------------------------------- */

static int
open_format (struct dedup_base *b, const struct dedup_open_params *p,
             struct fault *f)
{
  struct qcow2_open_params q = {
    .path = p->path, .writable = b->writable, .allow_recovery = true,
    .cache_bytes = p->cache_bytes, .choose_cache = p->choose_cache,
    .log = p->log, .host_files = p->host_files,
  };

  return qcow2_open (b->io, &q, &b->img, f);
}

/* Checks that the image has an active disk: it has lost it once the anchor was
 * applied. */
static int
check_disk (const struct dedup_base *b, const struct dedup_open_params *p,
            struct fault *f)
{
  if (!qcow2_anchor_was_applied (b->img) || p->no_disk_ok)
    return 0;
  return fault_corrupt (f, UINT64_MAX, DEDUP_ANCHOR_APPLIED
                        ": restore a backup, or go back to a snapshot with "
                        "qemu-img snapshot -a; see qcow2-dedup-recover(1)");
}

/* Returns whether the image is to be written, and the refcounts in the file can
 * be relied on. */
static bool
can_change (const struct dedup_base *b)
{
  return b->writable && !(qcow2_geometry (b->img)->incompatible &
                          (QCOW2_INCOMPAT_RECOVERY | QCOW2_INCOMPAT_DIRTY));
}

/* Returns whether the first change gives up bitmaps.  While bit 48 is set, a
 * session before this one has given them up. */
static bool
gives_up_bitmaps (const struct dedup_base *b)
{
  return qcow2_bitmaps_given_up (b->img) && b->writable &&
    !(qcow2_geometry (b->img)->incompatible & QCOW2_INCOMPAT_RECOVERY);
}

static int
check_bitmaps (const struct dedup_base *b, struct fault *f)
{
  int r = can_change (b) ? qcow2_bitmaps_check_place (b->img) : 0;

  return r < 0 ? fault_io (f, -r, UINT64_MAX, "reading refcounts: %s",
                           strerror (-r)) : 0;
}

/* Logs that the rebuild of the refcounts, which had the result R, gave up
 * bitmaps. */
static void
log_bitmaps (const struct dedup_base *b, int r)
{
  if (gives_up_bitmaps (b))
    log_line (b->log, LOG_ERROR, "%s: bitmap directory: is not valid: "
              "all bitmaps are given up%s", b->path, r == 0 ? "" :
              ", and their clusters are freed by qemu-img check -r leaks");
}

/* Rebuilds the refcounts and closes the image, which must be opened again.
 * REQUIRED: a failure is an error; else the only reason is bitmaps, which are
 * given up with the first change at the latest. */
static int
rebuild_and_close (struct dedup_base *b, uint64_t min_clusters, bool required,
                   struct fault *f)
{
  const bool was_dirty =
    qcow2_geometry (b->img)->incompatible & QCOW2_INCOMPAT_DIRTY;
  int r = qcow2_rebuild_refcounts (b->img, min_clusters, f);

  log_bitmaps (b, r);
  if (!required && r < 0) {
    *f = (struct fault) { 0 };
    r = 0;
  }
  qcow2_close (b->img);
  b->img = NULL;
  if (r == 0 && was_dirty)
    log_line (b->log, LOG_INFO, "%s: was marked dirty: its refcounts were "
              "rebuilt", b->path);
  return r;
}

/* Opens the image and chooses its mode.  Refcounts that can't be relied on, or
 * that could not grow, are rebuilt first. */
static int
open_usable (struct dedup_pool *pool, const struct dedup_open_params *p,
             struct fault *f)
{
  struct dedup_base *b = &pool->base;
  uint64_t min_clusters;
  bool required;
  int r;

  r = open_format (b, p, f);
  if (r == 0)
    r = check_disk (b, p, f);
  if (r == 0)
    r = dedup_choose_mode (pool, p, f);
  if (r < 0)
    return r;
  r = check_bitmaps (b, f);
  if (r < 0)
    return r;
  required = dedup_needs_rebuild (b, dedup_is_storeless (pool), &min_clusters);
  if (!required && !gives_up_bitmaps (b))
    return 0;
  r = rebuild_and_close (b, min_clusters, required, f);
  return r == 0 ? open_format (b, p, f) : r;
}

static int
open_image (struct dedup_pool *pool, const struct dedup_open_params *p,
            struct fault *f)
{
  struct dedup_base *b = &pool->base;
  const struct qcow2_geometry *g;
  size_t cache_bytes;
  int r;

  r = open_usable (pool, p, f);
  if (r < 0)
    return r;
  if (dedup_is_storeless (pool))
    qcow2_unlogged_begin (b->img);
  g = qcow2_geometry (b->img);
  b->lock = qcow2_lock (b->img);
  b->cluster_bits = g->cluster_bits;
  b->cluster_size = g->cluster_size;
  b->has_backing = g->has_backing;
  /* Half, so that an internal snapshot can still double every refcount; a
   * width of two bits leaves no room for sharing. */
  b->ref_limit = MAX_OF (g->refcount_max / 2, 2);
  pool->store.gate.recovery_bit =
    (g->incompatible & QCOW2_INCOMPAT_RECOVERY) != 0;
  cache_bytes = p->choose_cache ? p->choose_cache (b->img) : p->cache_bytes;
  pool->upkeep.dirty_high = MAX_OF (cache_bytes / 4, 8 << 20);
  pool->upkeep.dirty_max = MAX_OF (cache_bytes, 32 << 20);
  return 0;
}

static void
log_recovery (const struct dedup_base *b, bool crashed, bool went_on)
{
  if (went_on && b->writable)
    log_line (b->log, LOG_INFO, "%s: counting references of clones, and freeing "
              "deleted disks, goes on where it was when the image was closed",
              b->path);
  else if (crashed && b->writable)
    log_line (b->log, LOG_INFO, "%s: recovered after a crash: guests that "
              "still run must be reset", b->path);
  else if (crashed && !went_on)
    log_line (b->log, LOG_INFO, "%s: not closed cleanly: replayed in memory",
              b->path);
}

/* Wipes the hints when much of the index was forgotten.  What hints find is not
 * looked up, so hits would not renew what the index is about to forget. */
static void
forget_hints (void *opaque)
{
  struct dedup_pool *pool = opaque;

  if (pool->writer.hints)
    dedup_hints_wipe (pool->writer.hints);
}

static int
drain_quarantine (void *opaque)
{
  struct dedup_pool *pool = opaque;

  return dedup_drain_quarantine (&pool->upkeep);
}

static int
new_pool (struct io_store *io, const struct dedup_open_params *p,
          struct dedup_pool **out)
{
  struct dedup_pool *pool = calloc (1, sizeof *pool);

  if (pool == NULL)
    return -ENOMEM;
  pool->base.io = io;
  pool->base.path = strdup (p->path ? p->path : "image");
  pool->store.config = calloc (1, sizeof *pool->store.config);
  if (pool->base.path == NULL || pool->store.config == NULL) {
    free (pool->base.path);
    free (pool->store.config);
    free (pool);
    return -ENOMEM;
  }
  pool->base.log = p->log;
  pool->base.writable = p->writable;
  pool->writer.dedup = p->dedup;
  pool->writer.verify = p->verify;
  pool->base.hasher.alg = p->hash;
  pool->base.wake = p->wake;
  pool->base.wake_opaque = p->opaque;
  pool->ops = &dedup_store_ops;
  pool->store.b = pool->store.gate.b = &pool->base;
  pool->store.events.aged = forget_hints;
  pool->store.events.drain = drain_quarantine;
  pool->store.events.opaque = pool;
  pthread_cond_init (&pool->store.gate.opened, NULL);
  dedup_upkeep_init (&pool->upkeep, &pool->base, &pool->store);
  dedup_writer_init (&pool->writer, &pool->base, &pool->store, &pool->upkeep);
  *out = pool;
  if (dedup_disks_init (&pool->disks, &pool->base, &pool->store,
                        &pool->upkeep) == 0)
    return 0;
  dedup_free (pool);
  *out = NULL;
  return -ENOMEM;
}

/* Checks that the store's hash suits what was asked for. */
static int
check_hash (const struct dedup_base *b, const struct dedup_open_params *p,
            struct fault *f)
{
  const char *name = dedup_hash_name (b->hasher.alg);

  if (p->hash_given && p->hash != b->hasher.alg)
    return fault_usage (f, "hash=%s: its index was made with hash=%s: give "
                        "that, or leave hash= out", dedup_hash_name (p->hash),
                        name);
  return dedup_check_verify (b->hasher.alg, p->verify, f);
}

/* Checks that the memory limit suffices for an index with log stores of this
 * order. */
static int
check_memory_limit (const struct dedup_store *s,
                    const struct dedup_open_params *p, unsigned order,
                    struct fault *f)
{
  const bool incarnations = p->max_incarnations < 0
    ? s->config->index.max_incarnations > 0 : p->max_incarnations > 0;
  const uint64_t least =
    dedup_index_least_memory (order, incarnations, dedup_hints_size
                              (qcow2_geometry (s->b->img)->nr_clusters));

  if (p->index_memory == 0 || p->index_memory >= least || !s->b->writable)
    return 0;
  return fault_usage (f, "index-memory=%" PRIu64 ": the index of this image "
                      "needs at least %" PRIu64 " bytes", p->index_memory,
                      least);
}

static void
set_max_incarnations (struct dedup_store *s,
                      const struct dedup_open_params *p)
{
  if (s->b->writable && p->max_incarnations >= 0)
    s->config->index.max_incarnations = (uint32_t)
      MIN_OF (p->max_incarnations, DEDUP_MAX_INCARNATIONS);
}

/* Returns an error for a store that can't be loaded, or 0 where the image is
 * opened without it.  R and WHY: what loading returned; R is 0 where there is
 * no store. */
static int
judge_void_store (const struct dedup_base *b, bool asked_writable,
                  bool crashed, int r, const struct fault *why,
                  struct fault *f)
{
  const char *msg = why->msg[0] ? why->msg : NULL;

  if (r == -ENOSPC && crashed && asked_writable)
    return fault_io (f, ENOSPC, why->off, "was not closed cleanly, and there "
                     "is no space on the host to recover it: free some, and "
                     "start again (nothing is lost)");
  if (r == -ENOMEM ||
      (r < 0 && why->kind == FAULT_IO && (asked_writable || crashed)))
    return fault_io (f, -r, why->off, "%s", msg ? msg : strerror (-r));
  if (crashed)
    return fault_corrupt (f, why->off, "needs recovery, but %s",
                          msg ? msg : "has no dedup store");
  if (r < 0)
    log_line (b->log, LOG_ERROR, "%s: %s: its index cannot be used%s; the data "
              "is not affected", b->path, why->msg,
              b->writable ? ", a new one is begun" : "");
  return 0;
}

/* Opens the image with the store that it has; ADOPTED: which was made just now.
 * 1: done; 0: opened, but without a store. */
static int
open_with_store (struct dedup_pool *pool, const struct dedup_open_params *p,
                 bool adopted, struct fault *f)
{
  const struct dedup_store_file_place place = { p->store, p->store_path };
  struct fault why = { 0 };
  bool crashed;
  int r;

  r = open_image (pool, p, f);
  if (r < 0)
    return r;
  crashed = pool->store.gate.recovery_bit;
  if (pool->base.writable && !crashed) {
    r = qcow2_guard_begin (pool->base.img, f);
    if (r < 0)
      return r;
  }
  if (dedup_is_storeless (pool) ||
      (p->no_disk_ok && qcow2_anchor_was_applied (pool->base.img)))
    return 0;
  r = dedup_read_config (&pool->store, &pool->base.hasher, &why);
  if (r == 1) {
    if ((r = check_hash (&pool->base, p, f)) < 0 ||
        (r = dedup_store_file_attach (&pool->store, &place, f)) < 0 ||
        (r = check_memory_limit (&pool->store, p,
                                 pool->store.config->index.order, f)) < 0)
      return r;
    set_max_incarnations (&pool->store, p);
    r = dedup_load_store (&pool->writer, adopted, &why);
    if (r == 0) {
      if (!adopted)
        log_recovery (&pool->base, crashed, pool->store.went_on);
      return 1;
    }
  }
  return judge_void_store (&pool->base, p->writable, crashed, r, &why, f);
}

/* Ends what the index claims and this session does not keep.  Returns whether
 * something changed. */
static bool
give_up_claims (struct dedup_writer *w)
{
  struct dedup_index *x = w->s->index;
  LOCK_FOR_SCOPE (w->b->lock);
  const bool not_exact = w->verify && dedup_index_exact_locked (x);
  const bool not_complete = !w->dedup && dedup_index_complete_locked (x);

  if (not_exact)
    dedup_index_doubt_locked (x);
  if (not_complete)
    dedup_index_incomplete_locked (x);
  return not_exact || not_complete;
}

/* Ends the index's exactness if verify=on, because freed clusters are not
 * deleted from it one by one then, and its completeness if dedup=off, because
 * data gets no entries.  The configuration must say so before the first cluster
 * is used again. */
static int
give_up_exact (struct dedup_writer *w, struct fault *f)
{
  int r = 0;

  if (give_up_claims (w))
    r = dedup_config_commit (w->s);
  if (r == -ENOSPC)             /* owed: until then nothing is used again */
    return 0;
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "writing the store's "
                           "configuration: %s", strerror (-r)) : 0;
}

/* Sets the index's memory limit.  What an earlier session kept may be above it,
 * so the index is made smaller. */
static int
set_memory_limit (struct dedup_store *s, const struct dedup_open_params *p,
                  struct fault *f)
{
  int r = dedup_index_set_memory (s->index, p->index_memory);

  if (r == -ENOSPC)             /* owed, or tried again later */
    r = 0;
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot make the index smaller: "
                           "%s", strerror (-r)) : 0;
}

static void
index_is_incomplete (struct dedup_store *s)
{
  LOCK_FOR_SCOPE (s->b->lock);
  dedup_index_incomplete_locked (s->index);
}

/* Logs the index's entries again, if the journal lacks some of them. */
static int
mend_index (struct dedup_upkeep *u, struct fault *f)
{
  int r = u->s->index_damaged ? dedup_relog_index (u) : 0;

  if (r == -ENOSPC) {           /* entries may be lost in the next crash */
    dedup_doubt_index (u->s);
    index_is_incomplete (u->s);
    r = 0;
  }
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot write the index again: "
                           "%s", strerror (-r)) : 0;
}

/* Makes ready for writing what was opened with its store. */
static int
prepare_writing (struct dedup_pool *pool, const struct dedup_open_params *p,
                 struct fault *f)
{
  int r;

  if ((r = set_memory_limit (&pool->store, p, f)) < 0 ||
      (r = give_up_exact (&pool->writer, f)) < 0 ||
      (r = dedup_set_compress (pool, p->compress, p->compress_later, f)) < 0 ||
      (r = mend_index (&pool->upkeep, f)) < 0 ||
      (r = dedup_grow_tables (&pool->upkeep, f)) < 0)
    return r;
  dedup_index_look (pool->store.index, false);
  dedup_disks_begin (&pool->disks, !pool->store.gate.recovery_bit);
  return 1;
}

/* Opens the image as it is.  1: with its store; 0: without one. */
static int
open_once (struct io_store *io, const struct dedup_open_params *p,
           bool adopted, struct dedup_pool **out, struct fault *f)
{
  struct dedup_pool *pool;
  int r;

  r = new_pool (io, p, &pool);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = open_with_store (pool, p, adopted, f);
  if (r == 1 && pool->base.writable)
    r = prepare_writing (pool, p, f);
  if (r < 0) {
    dedup_free (pool);
    return r;
  }
  *out = pool;
  return r;
}

/* Takes the hash of the void store, whose extension is EXT, for the store in
 * its place, unless another hash was asked for. */
static void
keep_hash (const struct dedup_ext *ext, struct dedup_open_params *p)
{
  if (ext->config_size > 0 && !p->hash_given &&
      dedup_hash_name (ext->hash_alg) != NULL)
    p->hash = ext->hash_alg;
}

int
dedup_open (struct io_store *io, const struct dedup_open_params *p,
            struct dedup_pool **out, struct fault *f)
{
  const struct dedup_store_file_place place = { p->store, p->store_path };
  struct dedup_open_params q = *p;
  uint64_t void_id;
  int r;

  r = open_once (io, p, false, out, f);
  if (r != 0 || !(*out)->base.writable || dedup_is_storeless (*out))
    return MIN_OF (r, 0);
  keep_hash (&(*out)->store.ext, &q);
  void_id = (*out)->store.config->store_id;
  r = check_memory_limit (&(*out)->store, p, p->order ? p->order :
                          dedup_default_order
                          (qcow2_geometry ((*out)->base.img)->nr_clusters), f);
  dedup_free (*out);
  *out = NULL;                  /* callers free what is there on failure */
  if (r == 0)
    r = dedup_store_file_take_over (&place, void_id, f);
  if (r == 0)
    r = dedup_adopt (io, &q, f);
  if (r < 0)
    return r;
  r = open_once (io, &q, true, out, f);
  if (r == 0) {
    dedup_free (*out);
    *out = NULL;
    return fault_corrupt (f, UINT64_MAX, "the dedup store that was just made "
                          "cannot be read back");
  }
  return MIN_OF (r, 0);
}

/* --- close -------------------------------------------------------------- */

void
dedup_free (struct dedup_pool *pool)
{
  if (pool == NULL)
    return;
  dedup_journal_free (pool->store.journal);
  dedup_index_close (pool->store.index);
  dedup_writer_destroy (&pool->writer);
  dedup_disks_destroy (&pool->disks);
  dedup_store_file_free (pool->store.store_file);
  qcow2_close (pool->base.img);
  dedup_upkeep_destroy (&pool->upkeep);
  pthread_cond_destroy (&pool->store.gate.opened);
  free (pool->store.config);
  free (pool->samples);
  free (pool->fresh);
  free (pool->base.path);
  free (pool);
}

int
dedup_store_file_open (const char *path, bool writable, struct io_store **out,
                       bool *created, struct fault *f)
{
  return dedup_store_file_open_at (path, writable, out, created, f);
}
