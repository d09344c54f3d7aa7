/* SPDX-License-Identifier: BSD-3-Clause */
/* How the parts of a disk come together at open, and part at close.
 *
 * Open is a sequence of steps: the image; the store's configuration; the
 * journal, replayed if bit 48 is set; then, for writing, the finished
 * recovery in the file.  Anything wrong with the store of a clean image makes
 * the store void, never the data: a new one is started.
 */
#include "direct.h"

#include <errno.h>
#include <inttypes.h>

/* --- open --------------------------------------------------------------------------------- */

static int
open_format (struct dedup_disk *d, const struct dedup_open_params *p,
             struct fault *f)
{
  struct qcow2_open_params q = {
    .path = p->path, .writable = d->writable, .allow_recovery = true,
    .cache_bytes = p->cache_bytes, .log = p->log,
    .host_files = p->host_files,
  };

  return qcow2_open (d->io, &q, &d->img, f);
}

/* Is the active disk one?  It is none once the anchor was applied. */
static int
check_disk (struct dedup_disk *d, const struct dedup_open_params *p,
            struct fault *f)
{
  if (!qcow2_anchor_was_applied (d->img) || p->no_disk_ok)
    return 0;
  return fault_corrupt (f, UINT64_MAX, DEDUP_ANCHOR_APPLIED
                        ": restore a backup, or go back to a snapshot with "
                        "qemu-img snapshot -a; see qcow2-dedup-recover(1)");
}

/* The refcounts in the file mean something, and it is to be written. */
static bool
can_change (const struct dedup_disk *d)
{
  return d->writable && !(qcow2_geometry (d->img)->incompatible &
                          (QCOW2_INCOMPAT_RECOVERY | QCOW2_INCOMPAT_DIRTY));
}

/* Would the first change give up bitmaps?  While bit 48 is set, a session before
 * this one has given them up. */
static bool
gives_up_bitmaps (const struct dedup_disk *d)
{
  return qcow2_bitmaps_given_up (d->img) && d->writable &&
    !(qcow2_geometry (d->img)->incompatible & QCOW2_INCOMPAT_RECOVERY);
}

static int
check_bitmaps (struct dedup_disk *d, struct fault *f)
{
  int r = can_change (d) ? qcow2_bitmaps_check_place (d->img) : 0;

  return r < 0 ? fault_io (f, -r, UINT64_MAX, "out of memory") : 0;
}

/* Refcounts were made anew, with result R. */
static void
log_bitmaps (const struct dedup_disk *d, int r)
{
  if (gives_up_bitmaps (d))
    log_line (d->log, LOG_ERROR, "%s: bitmap directory: is not valid: "
              "all bitmaps are given up%s", d->path, r == 0 ? "" :
              ", and what they have is free after qemu-img check -r leaks");
}

/* Refcounts that can't be relied on, or not grow, are made anew first. */
static int
open_usable (struct dedup_disk *d, const struct dedup_open_params *p,
             struct fault *f)
{
  uint64_t min_clusters;
  bool was_dirty, wanted;
  int r;

  r = open_format (d, p, f);
  if (r == 0)
    r = check_disk (d, p, f);
  if (r == 0)
    r = dedup_choose_mode (d, p, f);
  if (r < 0)
    return r;
  r = check_bitmaps (d, f);
  if (r < 0)
    return r;
  wanted = dedup_wants_rebuild (d, &min_clusters);
  if (!wanted && !gives_up_bitmaps (d))
    return 0;
  was_dirty = qcow2_geometry (d->img)->incompatible & QCOW2_INCOMPAT_DIRTY;
  r = qcow2_rebuild_refcounts (d->img, min_clusters, f);
  log_bitmaps (d, r);
  if (!wanted && r < 0) {       /* they are given up with the first change */
    *f = (struct fault) { 0 };
    r = 0;
  }
  qcow2_close (d->img);
  d->img = NULL;
  if (r == 0 && was_dirty)
    log_line (d->log, LOG_INFO, "%s: was marked dirty: its refcounts were "
              "rebuilt", d->path);
  return r == 0 ? open_format (d, p, f) : r;
}

static int
open_image (struct dedup_disk *d, const struct dedup_open_params *p,
            struct fault *f)
{
  const struct qcow2_geometry *g;
  int r;

  r = open_usable (d, p, f);
  if (r < 0)
    return r;
  if (d->direct)
    qcow2_direct_begin (d->img);
  g = qcow2_geometry (d->img);
  d->lock = qcow2_lock (d->img);
  d->cluster_bits = g->cluster_bits;
  d->cluster_size = g->cluster_size;
  d->has_backing = g->has_backing;
  d->recovery_bit = (g->incompatible & QCOW2_INCOMPAT_RECOVERY) != 0;
  /* Half, so that an internal snapshot can still double every refcount; a
   * width of two bits leaves no room for sharing. */
  d->ref_limit = MAX_OF (g->refcount_max / 2, 2);
  d->dirty_high = MAX_OF (p->cache_bytes / 4, 8 << 20);
  d->dirty_max = MAX_OF (p->cache_bytes, 32 << 20);
  return 0;
}

static bool
has_key (const struct dedup_config *c)
{
  static const uint8_t none[DEDUP_HASH_KEY_SIZE];

  return memcmp (c->hash_key, none, sizeof none) != 0;
}

/* Read extension and configuration: 1 if there is a usable store, 0 if none,
 * -errno with a fault that says why it is void. */
static int
read_config (struct dedup_disk *d, struct fault *f)
{
  const uint8_t *ext = qcow2_store_extension (d->img);
  int r;

  if (ext == NULL)
    return 0;
  if (!qcow2_has_anchor (d->img)) {
    log_line (d->log, LOG_INFO, "%s: deduplication was turned off by deleting "
              "the anchor snapshot", d->path);
    return 0;
  }
  if (dedup_ext_decode (ext, &d->ext) < 0)
    return fault_unsupported (f, "its dedup store has a layout that this "
                              "version does not know");
  if (dedup_hash_name (d->ext.hash_alg) == NULL)
    return fault_unsupported (f, "its dedup store has hash number %u, which "
                              "this version does not know",
                              (unsigned) d->ext.hash_alg);
  r = dedup_config_read (d->io, &d->ext, d->cluster_size, d->config, f);
  if (r < 0)
    return r;
  d->lookups_before = d->config->lookups;
  if (!dedup_hash_is_keyed (d->ext.hash_alg) && has_key (d->config))
    return fault_corrupt (f, UINT64_MAX, "the dedup store's configuration has "
                          "a key for a hash without keys");
  r = dedup_hasher_init (&d->hasher, d->ext.hash_alg, d->config->hash_key);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "the hash %s cannot be used here",
                     dedup_hash_name (d->ext.hash_alg));
  d->checkpoint = d->config->checkpoint;
  return 1;
}

static int
open_journal (struct dedup_disk *d, uint64_t next)
{
  struct dedup_journal_params p = {
    .io = d->io, .lock = d->lock, .store_id = d->config->store_id,
    .epoch = d->config->epoch, .next_seq = next,
    .areas = d->config->areas, .nr_areas = d->config->nr_areas,
  };

  return dedup_journal_new (&p, &d->journal);
}

/* Bring the file to what was replayed in memory, and clear bit 48
 * (docs/on-disk.md section 5, steps 4 and 5).  The configuration says that what
 * was replayed is durable, before any table has it (law 3).  Where the host has
 * no space for tables, they stay in memory, bit 48 stays set, and the session
 * goes on as one in which no checkpoint came yet. */
static int
complete_recovery (struct dedup_disk *d, struct fault *f)
{
  int r;

  r = dedup_sync (d);           /* what dedup_replay wrote again */
  if (r == 0)
    r = dedup_config_save (d);
  if (r == 0) {
    r = dedup_clean (d);
    r = r == -ENOSPC ? 0 : r;
  }
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot write the recovered tables: %s",
                     strerror (-r));
  return 0;
}

static bool
read_failed (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  return qcow2_read_failed_locked (d->img);
}

static void
doubt_index (struct dedup_disk *d)
{
  LOCK_FOR_SCOPE (d->lock);
  dedup_index_doubt_locked (d->index);
}

/* Load the store: index from the journal, tables too after a crash, as which
 * a store that was ADOPTED just now counts. */
static int
load_store (struct dedup_disk *d, bool adopted, struct fault *f)
{
  bool crashed = d->recovery_bit, ok, renewed = false;
  uint64_t next;
  int r;

  r = dedup_open_index (d);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = dedup_replay (d, crashed || mutation (MUTATION_LAW_11), &next, f);
  if (r < 0)
    return r;
  r = dedup_area_check (d, &ok);
  if (r == -ENOMEM || (r < 0 && read_failed (d)))
    return fault_io (f, -r, UINT64_MAX, "reading refcounts: %s",
                     strerror (-r));
  if (r < 0 || !ok)
    return fault_corrupt (f, UINT64_MAX, "the anchor does not cover the "
                          "store's areas");
  r = dedup_guard (d, crashed, f);
  if (r < 0)
    return r;
  if (d->writable)
    dedup_area_back (d);
  if (crashed) {                /* step 4; in memory only if read-only */
    d->config->epoch += !mutation (MUTATION_SAME_EPOCH);
    d->config->epoch_start = next;
    if (!d->writable)
      d->config->checkpoint = d->checkpoint = next;
    if (!adopted)
      d->config->flags &= ~DEDUP_CONFIG_EXACT;
  }
  else if (d->writable &&
           (r = dedup_renew_epoch (d, next, &renewed, f)) < 0)
    return r;
  r = open_journal (d, next);
  if (r == 0 && d->writable && d->dedup)
    r = dedup_hints_new (qcow2_geometry (d->img)->nr_clusters, &d->hints);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  dedup_attach_log (d);
  d->has_store = true;
  if (!(d->config->flags & DEDUP_CONFIG_EXACT))
    doubt_index (d);
  d->replayed = crashed && !d->writable;
  if (renewed && (r = dedup_config_save (d)) < 0)
    return fault_io (f, -r, UINT64_MAX, "writing the store's configuration: "
                     "%s", strerror (-r));
  return crashed && d->writable ? complete_recovery (d, f) : 0;
}

static void
log_recovery (struct dedup_disk *d, bool crashed)
{
  if (crashed && d->writable)
    log_line (d->log, LOG_INFO, "%s: recovered after a crash: guests that "
              "still run must be reset", d->path);
  else if (crashed)
    log_line (d->log, LOG_INFO, "%s: not closed cleanly: replayed in memory",
              d->path);
}

static int
new_disk (struct io_store *io, const struct dedup_open_params *p,
          struct dedup_disk **out)
{
  struct dedup_disk *d = calloc (1, sizeof *d);

  if (d == NULL)
    return -ENOMEM;
  d->io = io;
  d->path = strdup (p->path ? p->path : "image");
  d->config = calloc (1, sizeof *d->config);
  if (d->path == NULL || d->config == NULL) {
    free (d->path);
    free (d->config);
    free (d);
    return -ENOMEM;
  }
  d->log = p->log;
  d->writable = p->writable;
  d->dedup = p->dedup;
  d->verify = p->verify;
  d->hasher.alg = p->hash;
  d->wake = p->wake;
  d->wake_opaque = p->opaque;
  pthread_mutex_init (&d->maintenance, NULL);
  pthread_cond_init (&d->gate, NULL);
  pthread_cond_init (&d->merged, NULL);
  pthread_cond_init (&d->give.changed, NULL);
  pthread_cond_init (&d->claims.changed, NULL);
  *out = d;
  return 0;
}

/* Does the store's hash suit what was asked for? */
static int
check_hash (const struct dedup_disk *d, const struct dedup_open_params *p,
            struct fault *f)
{
  const char *name = dedup_hash_name (d->hasher.alg);

  if (p->hash_given && p->hash != d->hasher.alg)
    return fault_usage (f, "hash=%s: its index was made with hash=%s: give "
                        "that, or leave hash= out", dedup_hash_name (p->hash),
                        name);
  return dedup_check_verify (d->hasher.alg, p->verify, f);
}

/* Is the bound enough for an index with log stores of this order? */
static int
check_window (const struct dedup_disk *d, const struct dedup_open_params *p,
              unsigned order, struct fault *f)
{
  const bool incarnations = p->max_incarnations < 0
    ? d->config->index.max_incarnations > 0 : p->max_incarnations > 0;
  const uint64_t least =
    dedup_index_least_memory (order, incarnations, dedup_hints_size
                              (qcow2_geometry (d->img)->nr_clusters));

  if (p->index_memory == 0 || p->index_memory >= least || !d->writable)
    return 0;
  return fault_usage (f, "index-memory=%" PRIu64 ": the index of this image "
                      "needs at least %" PRIu64 " bytes", p->index_memory,
                      least);
}

static void
set_max_incarnations (struct dedup_disk *d,
                      const struct dedup_open_params *p)
{
  if (d->writable && p->max_incarnations >= 0)
    d->config->index.max_incarnations = (uint32_t)
      MIN_OF (p->max_incarnations, DEDUP_MAX_INCARNATIONS);
}

/* Open with the store there is.  ADOPTED: it was made just now.  1: done; 0:
 * opened without a store. */
static int
open_with_store (struct dedup_disk *d, const struct dedup_open_params *p,
                 bool adopted, struct fault *f)
{
  struct fault why = { 0 };
  bool crashed;
  int r;

  r = open_image (d, p, f);
  if (r < 0)
    return r;
  crashed = d->recovery_bit;
  if (d->writable && !crashed) {
    r = qcow2_guard_begin (d->img, f);
    if (r < 0)
      return r;
  }
  if (d->direct || (p->no_disk_ok && qcow2_anchor_was_applied (d->img)))
    return 0;
  r = read_config (d, &why);
  if (r == 1) {
    r = check_hash (d, p, f);
    if (r == 0)
      r = dedup_store_file_attach (d, p, f);
    if (r == 0)
      r = check_window (d, p, d->config->index.order, f);
    if (r < 0)
      return r;
    set_max_incarnations (d, p);
    r = load_store (d, adopted, &why);
    if (r == 0) {
      if (!adopted)
        log_recovery (d, crashed);
      return 1;
    }
  }
  if (r == -ENOSPC && crashed && p->writable)
    return fault_io (f, ENOSPC, why.off, "was not closed cleanly, and there is "
                     "no space on the host to recover it: make some, and start "
                     "again (nothing is lost)");
  if (r == -ENOMEM ||
      (r < 0 && why.kind == FAULT_IO && (p->writable || crashed)))
    return fault_io (f, -r, why.off, "%s", why.msg[0] ? why.msg :
                     strerror (-r));
  if (crashed)
    return fault_corrupt (f, why.off, "needs recovery, but %s", why.msg[0] ?
                          why.msg : "has no dedup store");
  if (r < 0)
    log_line (d->log, LOG_ERROR, "%s: %s: its index cannot be used%s; the data "
              "is not affected", d->path, why.msg,
              d->writable ? ", a new one is begun" : "");
  return 0;
}

/* With verify=on freed clusters are not forgotten one by one; the file must
 * say so before the first of them is used again. */
static int
give_up_exact (struct dedup_disk *d, struct fault *f)
{
  bool exact;
  int r = 0;

  lock_acquire (d->lock);
  exact = dedup_index_exact_locked (d->index);
  lock_release (d->lock);
  if (d->verify && exact) {
    doubt_index (d);
    r = dedup_config_commit (d);
  }
  if (r == -ENOSPC)             /* owed: nothing is used again before */
    return 0;
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "writing the store's "
                           "configuration: %s", strerror (-r)) : 0;
}

/* What an earlier session kept may be too much for this one. */
static int
set_window (struct dedup_disk *d, const struct dedup_open_params *p,
            struct fault *f)
{
  int r = dedup_index_set_memory (d->index, p->index_memory);

  if (r == -ENOSPC)             /* owed, or some time later */
    r = 0;
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot make the index smaller: "
                           "%s", strerror (-r)) : 0;
}

static int
mend_index (struct dedup_disk *d, struct fault *f)
{
  int r = d->index_damaged ? dedup_relog_index (d) : 0;

  if (r == -ENOSPC) {           /* as it was; an entry more or less */
    doubt_index (d);
    r = 0;
  }
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot write the index again: "
                           "%s", strerror (-r)) : 0;
}

static int
open_once (struct io_store *io, const struct dedup_open_params *p,
           bool adopted, struct dedup_disk **out, struct fault *f)
{
  struct dedup_disk *d;
  int r;

  r = new_disk (io, p, &d);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = open_with_store (d, p, adopted, f);
  if (r == 1 && d->writable) {
    if ((r = set_window (d, p, f)) == 0 &&
        (r = give_up_exact (d, f)) == 0 &&
        (r = mend_index (d, f)) == 0 &&
        (r = dedup_grow_tables (d, f)) == 0)
      r = 1;
    if (r >= 0)
      dedup_index_look (d->index, false);
  }
  if (r < 0) {
    dedup_free (d);
    return r;
  }
  *out = d;
  return r;
}

/* The store in place of a void one has the same hash, unless another one is
 * asked for. */
static void
keep_hash (const struct dedup_disk *void_disk, struct dedup_open_params *p)
{
  const struct dedup_ext *ext = &void_disk->ext;

  if (ext->config_size > 0 && !p->hash_given &&
      dedup_hash_name (ext->hash_alg) != NULL)
    p->hash = ext->hash_alg;
}

int
dedup_open (struct io_store *io, const struct dedup_open_params *p,
            struct dedup_disk **out, struct fault *f)
{
  struct dedup_open_params q = *p;
  uint64_t void_id;
  int r;

  r = open_once (io, p, false, out, f);
  if (r != 0 || !(*out)->writable || (*out)->direct)
    return MIN_OF (r, 0);
  keep_hash (*out, &q);
  void_id = (*out)->config->store_id;
  r = check_window (*out, p, p->order ? p->order : dedup_default_order
                    (qcow2_geometry ((*out)->img)->nr_clusters), f);
  dedup_free (*out);
  *out = NULL;                  /* callers free what is there on failure */
  if (r == 0)
    r = dedup_store_file_take_over (p, void_id, f);
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

/* --- close -------------------------------------------------------------------------------- */

int
dedup_finish (struct dedup_disk *d)
{
  int r;

  if (!d->writable || (!d->has_store && !d->direct))
    return 0;
  if (dedup_failed (d))
    return -EIO;
  if (d->direct)
    return dedup_direct_finish (d);
  r = dedup_save_bitmaps (d);
  if (r < 0)
    return r;
  pthread_mutex_lock (&d->maintenance);
  r = dedup_config_settle (d);
  if (r == 0)
    r = dedup_index_reap (d->index);
  if (r == 0)
    r = dedup_clean (d);
  pthread_mutex_unlock (&d->maintenance);
  if (r == 0)
    r = qcow2_bitmaps_end (d->img);
  return r == 1 ? -EBUSY : r;
}

void
dedup_free (struct dedup_disk *d)
{
  if (d == NULL)
    return;
  dedup_journal_free (d->journal);
  dedup_index_close (d->index);
  dedup_hints_free (d->hints);
  dedup_claims_free (d);
  dedup_store_file_free (d->store_file);
  qcow2_close (d->img);
  pthread_cond_destroy (&d->claims.changed);
  pthread_cond_destroy (&d->gate);
  pthread_cond_destroy (&d->merged);
  pthread_cond_destroy (&d->give.changed);
  pthread_mutex_destroy (&d->maintenance);
  free (d->config);
  free (d->path);
  free (d);
}
